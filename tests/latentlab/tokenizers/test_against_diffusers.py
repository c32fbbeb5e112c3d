"""The tokenizers that diffusers implements too, against it: files it wrote, latents and images it computes.

It is no dependency; where it is not installed, these comparisons are left out.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from latentlab.tokenizers import Tokenizer, load_tokenizer

diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed")

KL: dict[str, Any] = {
    "down_block_types": ("DownEncoderBlock2D",) * 3,
    "up_block_types": ("UpDecoderBlock2D",) * 3,
    "block_out_channels": (32, 64, 64),
    "layers_per_block": 1,
}
DC: dict[str, Any] = {
    "latent_channels": 4,
    "attention_head_dim": 8,
    "encoder_block_types": ("ResBlock", "ResBlock", "EfficientViTBlock"),
    "decoder_block_types": ("ResBlock", "ResBlock", "EfficientViTBlock"),
    "encoder_block_out_channels": (16, 32, 32),
    "decoder_block_out_channels": (16, 32, 32),
    "scaling_factor": 0.41407,
}
IMAGENET = DC | {
    "encoder_layers_per_block": (0, 2, 1),
    "decoder_layers_per_block": (0, 1, 2),
    "encoder_qkv_multiscales": ((), (), ()),
    "decoder_qkv_multiscales": ((), (), ()),
    "decoder_norm_types": ("batch_norm", "batch_norm", "rms_norm"),
    "decoder_act_fns": ("relu", "relu", "silu"),
}
SANA = DC | {
    "encoder_layers_per_block": (1, 1, 1),
    "decoder_layers_per_block": (1, 1, 2),
    "encoder_qkv_multiscales": ((), (), (5,)),
    "decoder_qkv_multiscales": ((), (), (5,)),
    "downsample_block_type": "conv",
    "upsample_block_type": "interpolate",
}
RAE: dict[str, Any] = {
    "encoder_hidden_size": 128,
    "encoder_num_hidden_layers": 2,
    "encoder_input_size": 56,
    "decoder_hidden_size": 24,
    "decoder_num_hidden_layers": 2,
    "decoder_num_attention_heads": 3,
    "decoder_intermediate_size": 40,
    "latents_mean": torch.linspace(-1, 1, 128 * 16).view(128, 4, 4),
    "latents_std": torch.linspace(0.5, 2, 128 * 16).view(128, 4, 4),
}


LAST = [f"decoder.{name}.weight" for name in ("conv_out", "conv_out.conv", "decoder_pred")]


def saved(network: nn.Module, folder: Path) -> Path:
    """Give norms, tokens, biases and statistics random values, so that swapped or ignored ones show, and write the file."""
    source = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, tensor in network.state_dict().items():
            small = torch.randn(tensor.shape, generator=source) * 0.1 if tensor.is_floating_point() else None
            if name.endswith("running_var"):
                tensor.copy_(1 + small.abs())
            elif small is not None and "latents" not in name and (tensor.ndim < 2 or "token" in name):
                tensor.add_(small)
            elif name in LAST:
                tensor.mul_(0.1)  # so that most pixels stay inside their range
    network.eval().save_pretrained(folder)  # type: ignore[operator]
    return folder / "diffusion_pytorch_model.safetensors"


def pictures(height: int = 32, width: int = 48) -> Tensor:
    return torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(1)) * 2 - 1


def compare(tokenizer: Tokenizer, images: Tensor, latents: Tensor, decoded: Tensor) -> None:
    torch.testing.assert_close(tokenizer.encode(images), latents, atol=1e-5, rtol=0)
    assert (decoded.abs() < 1).double().mean() > 0.2
    torch.testing.assert_close(tokenizer.decode(latents), decoded.clamp(-1, 1), atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("sd-vae", {"latent_channels": 4}),
        ("eq-vae", {"latent_channels": 4}),
        (
            "flux1",
            {
                "latent_channels": 16, "use_quant_conv": False, "use_post_quant_conv": False,
                "scaling_factor": 0.3611, "shift_factor": 0.1159,
            },
        ),
    ],
)  # fmt: skip
def test_autoencoder_kl(name: str, fields: dict[str, Any], tmp_path: Path) -> None:
    network = diffusers.AutoencoderKL(**KL, **fields)
    tokenizer = load_tokenizer(name, weights=saved(network, tmp_path))
    with torch.no_grad():
        latents = network.encode(pictures()).latent_dist.mode()
        compare(tokenizer, pictures(), latents, network.decode(latents).sample)
        draw = network.encode(pictures()).latent_dist.sample(torch.Generator().manual_seed(5))
    torch.testing.assert_close(
        tokenizer.encode(pictures(), sample=True, generator=torch.Generator().manual_seed(5)), draw, atol=1e-5, rtol=0
    )
    config = network.config
    expected = (latents - (config.shift_factor or 0)) * config.scaling_factor
    torch.testing.assert_close(tokenizer.normalize(latents), expected)


def test_autoencoder_kl_flux2_and_the_patches_of_its_pipeline(tmp_path: Path) -> None:
    network = diffusers.AutoencoderKLFlux2(**KL, latent_channels=32, decoder_block_out_channels=(64, 128, 128))
    tokenizer = load_tokenizer("flux2", weights=saved(network, tmp_path))
    pipeline = diffusers.Flux2Pipeline
    with torch.no_grad():
        latents = network.encode(pictures()).latent_dist.mode()
        compare(tokenizer, pictures(), latents, network.decode(latents).sample)
        patches = pipeline._patchify_latents(latents)
        mean, var = (v.view(1, -1, 1, 1) for v in (network.bn.running_mean, network.bn.running_var))
    expected = (patches - mean) / torch.sqrt(var + network.config.batch_norm_eps)
    torch.testing.assert_close(tokenizer.normalize(latents), expected)
    torch.testing.assert_close(tokenizer.denormalize(expected), latents)


@pytest.mark.parametrize("fields", [IMAGENET, SANA])
def test_autoencoder_dc(fields: dict[str, Any], tmp_path: Path) -> None:
    network = diffusers.AutoencoderDC(**fields)
    tokenizer = load_tokenizer("dc-ae", weights=saved(network, tmp_path))
    for size in ((32, 48), (4, 8)):  # few cells: its attention is then computed in the other order
        images = pictures(*size)
        with torch.no_grad():
            latents = network.encode(images).latent
            compare(tokenizer, images, latents, network.decode(latents).sample)
    assert tokenizer.spec.scale == (0.41407,)


@pytest.mark.parametrize("side", [56, 64])
def test_autoencoder_rae(side: int, tmp_path: Path) -> None:
    pytest.importorskip("transformers", reason="transformers is not installed")
    network = diffusers.AutoencoderRAE(**RAE)
    tokenizer = load_tokenizer("rae", weights=saved(network, tmp_path))
    images = pictures(side, side)
    with torch.no_grad():
        latents = network.encode((images + 1) / 2).latent
        compare(tokenizer, images, latents, network.decode(latents).sample * 2 - 1)


def test_autoencoder_tiny(tmp_path: Path) -> None:
    network = diffusers.AutoencoderTiny(
        encoder_block_out_channels=(8,) * 4, decoder_block_out_channels=(8,) * 4, latent_channels=16
    )
    tokenizer = load_tokenizer("taef1", weights=saved(network, tmp_path), architecture={"width": 8})
    with torch.no_grad():
        latents = network.encode(pictures()).latents
        compare(tokenizer, pictures(), latents, network.decode(latents).sample)
