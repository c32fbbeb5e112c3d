"""DC-AE (`latentlab.tokenizers.deep_compression`) and RAE (`latentlab.tokenizers.rae`), in diffusers' layout."""

from collections.abc import Mapping
from typing import Any

from latentlab.tokenizers.release import Release
from latentlab.weights import WeightFile

_HUB_FILE = "diffusion_pytorch_model.safetensors"

_BLOCKS = ("ResBlock",) * 3 + ("EfficientViTBlock",) * 3
_NO_SCALES = ((),) * 6
_DC = {"latent_channels": 32, "encoder_block_types": _BLOCKS, "decoder_block_types": _BLOCKS}
_DC_IMAGENET = _DC | {
    "encoder_layers_per_block": (0, 4, 8, 2, 2, 2),
    "decoder_layers_per_block": (0, 5, 10, 2, 2, 2),
    "encoder_qkv_multiscales": _NO_SCALES,
    "decoder_qkv_multiscales": _NO_SCALES,
    "decoder_norm_types": ("batch_norm",) * 3 + ("rms_norm",) * 3,
    "decoder_act_fns": ("relu",) * 3 + ("silu",) * 3,
}
_DC_SANA = _DC | {
    "encoder_layers_per_block": (2, 2, 2, 3, 3, 3),
    "decoder_layers_per_block": (3, 3, 3, 3, 3, 3),
    "downsample_block_type": "conv",
    "upsample_block_type": "interpolate",
}
_RAE = {
    "decoder_hidden_size": 1152,
    "decoder_num_hidden_layers": 28,
    "decoder_num_attention_heads": 16,
    "decoder_intermediate_size": 4096,
}


def _dc(name: str, architecture: Mapping[str, Any], scaling_factor: float, megabytes: float) -> Release:
    """Return a release that shrinks images 32 times."""
    file = WeightFile(repo=f"mit-han-lab/dc-ae-f32c32-{name}-diffusers", filename=_HUB_FILE, megabytes=megabytes)
    fields = {**architecture, "scaling_factor": scaling_factor}
    return Release(name, "Apache-2.0", file, fields, scale=(scaling_factor,), family="dc-ae")


RELEASES: Mapping[str, tuple[Release, ...]] = {
    # Chen et al. 2024, arXiv 2410.10733; the last one belongs to SANA (Xie et al. 2024, arXiv 2410.10629)
    "dc-ae": (
        _dc("in-1.0", _DC_IMAGENET, 0.3189, 1293),
        _dc("mix-1.0", _DC_IMAGENET, 0.4552, 1293),
        _dc("sana-1.0", _DC_SANA, 0.41407, 1249),
    ),
    # Zheng et al. 2025, arXiv 2510.11690
    "rae": (
        Release(
            "dinov2-base",
            "MIT",
            WeightFile(repo="nyu-visionx/RAE-dinov2-wReg-base-ViTXL-n08", filename=_HUB_FILE),
            _RAE,
            family="rae",
        ),
    ),
}
