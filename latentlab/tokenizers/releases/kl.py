"""The autoencoders of large image generators (`latentlab.tokenizers.ldm`): Stable Diffusion, EQ-VAE, FLUX.

On the hub they lie in diffusers' layout beside a ``config.json``; the authors' own layouts are read as well.
"""

from collections.abc import Mapping
from typing import Any

from latentlab.tokenizers.release import Release
from latentlab.weights import WeightFile

_HUB_FILE = "diffusion_pytorch_model.safetensors"

_SDVAE = {
    "quantizer": "kl",
    "double_z": True,
    "ch": 128,
    "ch_mult": (1, 2, 4, 4),
    "num_res_blocks": 2,
    "attn_resolutions": (),
    "resolution": 256,
    "z_channels": 4,
    "embed_dim": 4,
}
_FLUX1 = _SDVAE | {"z_channels": 16, "embed_dim": 16, "use_quant_conv": False, "use_post_quant_conv": False}
_FLUX2 = _SDVAE | {"z_channels": 32, "embed_dim": 32, "patch_size": 2, "batch_norm_eps": 1e-4}


def _sdvae(name: str, licence: str, repo: str, filename: str = _HUB_FILE, **file: Any) -> Release:
    """Return a release with the network and the scale of Stable Diffusion's autoencoder."""
    return Release(name, licence, WeightFile(repo=repo, filename=filename, **file), _SDVAE, scale=(0.18215,))


def _flux1(name: str, filename: str, **file: Any) -> Release:
    weights = WeightFile(repo="black-forest-labs/FLUX.1-schnell", filename=filename, **file)
    return Release(name, "Apache-2.0", weights, _FLUX1, shift=(0.1159,), scale=(0.3611,))


def _flux2(name: str, repo: str, filename: str, file: Mapping[str, Any] | None = None, **architecture: Any) -> Release:
    """Return a release; its file holds the statistics that normalise its latents."""
    weights = WeightFile(repo=repo, filename=filename, **(file or {}))
    return Release(name, "Apache-2.0", weights, _FLUX2 | architecture)


RELEASES: Mapping[str, tuple[Release, ...]] = {
    # Rombach et al. 2022, arXiv 2112.10752, with the decoders fine-tuned later; the two share the encoder
    "sd-vae": (
        _sdvae(
            "ft-mse",
            "MIT",
            "stabilityai/sd-vae-ft-mse",
            size=334_643_276,
            sha256="a1d993488569e928462932c8c38a0760b874d166399b14414135bd9c42df5815",
        ),
        _sdvae("ft-ema", "MIT", "stabilityai/sd-vae-ft-ema", size=334_643_276),
    ),
    # Kouzelis et al. 2025, arXiv 2502.09509
    "eq-vae": (
        _sdvae("imagenet-ema", "unknown", "zelaki/eq-vae-ema", megabytes=335),
        _sdvae("imagenet-ema-ldm", "unknown", "zelaki/eq-vae-ema-ldm", "model.ckpt", megabytes=335),
        _sdvae("openimages", "unknown", "zelaki/eq-vae", megabytes=335),
    ),
    # Black Forest Labs 2024
    "flux1": (
        _flux1(
            "schnell",
            "ae.safetensors",
            size=335_304_388,
            sha256="afc8e28272cd15db3919bacdb6918ce9c1ed22e96cb12c4d5ed0fba823529e38",
        ),
        _flux1("schnell-diffusers", f"vae/{_HUB_FILE}"),
    ),
    # Black Forest Labs 2025
    "flux2": (
        _flux2("dev", "black-forest-labs/FLUX.2-dev", f"vae/{_HUB_FILE}", file={"gated": True}),
        _flux2("dev-authors", "black-forest-labs/FLUX.2-dev", "ae.safetensors", file={"gated": True}),
        # The same tensors, without the terms that stand before the authors' own repository
        _flux2(
            "dev-copy",
            "Comfy-Org/flux2-dev",
            "split_files/vae/flux2-vae.safetensors",
            file={
                "size": 336_213_556,
                "sha256": "d64f3a68e1cc4f9f4e29b6e0da38a0204fe9a49f2d4053f0ec1fa1ca02f9c4b5",
            },
        ),
        _flux2("small-decoder", "black-forest-labs/FLUX.2-small-decoder", _HUB_FILE, decoder_ch=96),
    ),
}
