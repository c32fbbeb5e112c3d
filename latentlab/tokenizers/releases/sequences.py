"""Tokenizers with 1-D latents, under published names. Of files from the hub ``config.json`` beside the weights counts more."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from latentlab.tokenizers.release import FASHION32, Release
from latentlab.weights import WeightFile

_TAGGED = "Apache-2.0 (tag only)"


def _hub(
    release: str,
    repo: str,
    family: str,
    architecture: Mapping[str, Any],
    licence: str = "Apache-2.0",
    megabytes: float | None = None,
) -> Release:
    """Return a release that its authors put on the hub with a mixin: two files of fixed names."""
    weights = WeightFile(repo=repo, filename="model.safetensors", megabytes=megabytes)
    config = WeightFile(repo=repo, filename="config.json")
    return Release(release, licence, weights, architecture, companions=(config,), family=family)


def _transformer(size: str, suffix: str = ".lvd142m") -> str:
    return f"vit_{size}_patch14_dinov2{suffix}"


def _maetok(release: str, image_size: int) -> Release:
    architecture = {
        "image_size": image_size,
        "encoder_model": _transformer("base"),
        "decoder_model": _transformer("base", "_movqv2"),
        "num_latent_tokens": 128,
        "codebook_embed_dim": 32,
        "dec_cls_token": False,
        "use_ape": False,
        "use_rope": True,
        "rope_mixed": True,
    }
    return _hub(release, f"MAETok/maetok-{release}", "maetok", architecture, _TAGGED)


def _softvq(
    release: str,
    encoder: str,
    decoder: str,
    tokens: int,
    image_size: int = 256,
    megabytes: float | None = None,
    **statistics: float,
) -> Release:
    """Return a release of SoftVQ; all have 2048 numbers per image. Statistics not known here are in ``config.json``."""
    architecture = {
        "image_size": image_size,
        "encoder_model": _transformer(encoder),
        "decoder_model": _transformer(decoder),
        "num_latent_tokens": tokens,
        "codebook_embed_dim": 2048 // tokens,
        "num_codebooks": 4,
        "codebook_size": 8192,
        "tau": 0.07,
        **statistics,
    }
    return _hub(release, f"SoftVQVAE/softvq-{release}", "softvq", architecture, _TAGGED, megabytes)


_LEGACY = {"codebook_size": 4096, "token_size": 12, "use_l2_norm": True}
_MODERN = {"is_legacy": False, "finetune_decoder": False}
_VQ8K = _MODERN | {"codebook_size": 8192, "token_size": 64}
_VAE = _MODERN | {"quantize_mode": "vae", "token_size": 16}


def _titok(
    release: str, encoder: str, decoder: str, tokens: int, fields: Mapping[str, Any], megabytes: float | None = None
) -> Release:
    sizes = {"vit_enc_model_size": encoder, "vit_dec_model_size": decoder, "num_latent_tokens": tokens}
    repo = f"yucornetto/tokenizer_titok_{release.replace('-', '_')}_imagenet"
    return _hub(release, repo, "titok", {**sizes, **fields}, megabytes=megabytes)


def _gigatok(release: str, encoder: str, decoder: str, file: str, drive_id: str) -> Release:
    url = f"https://drive.usercontent.google.com/download?id={drive_id}&export=download&confirm=t"
    weights = WeightFile(repo="SilentView/GigaTok", filename=file, url=url)
    return Release(release, "MIT", weights, {"encoder_size": encoder, "decoder_size": decoder}, family="gigatok")


RELEASES: Mapping[str, tuple[Release, ...]] = {
    # Chen et al. 2025, arXiv 2502.03444
    "maetok": (replace(FASHION32, family="maetok"), _maetok("b-128", 256), _maetok("b-512", 512)),
    # Chen et al. 2024, arXiv 2412.10958. The encoder of l-32 is a base one, in spite of its name.
    "softvq": (
        _softvq("bl-64", "base", "large", 64, megabytes=1570, vq_mean=-0.00077168207, vq_std=0.07157949),
        _softvq("l-32", "base", "large", 32, vq_mean=0.00060894643, vq_std=0.029030401),
        _softvq("b-32", "base", "base", 32, megabytes=697),
        _softvq("b-64", "base", "base", 64),
        _softvq("bl-32", "base", "large", 32, megabytes=1570),
        _softvq("l-64", "large", "large", 64, megabytes=2430),
        _softvq("bl-64-512", "base", "large", 64, 512),
        _softvq("l-32-512", "base", "large", 32, 512),
    ),
    # Yu et al. 2024, arXiv 2406.07550
    "titok": (
        _titok("l32", "large", "large", 32, _LEGACY, megabytes=2564),
        _titok("b64", "base", "base", 64, _LEGACY, megabytes=819),
        _titok("s128", "small", "small", 128, _LEGACY, megabytes=335),
        _titok("bl64-vq8k", "base", "large", 64, _VQ8K, megabytes=1560),
        _titok("bl128-vq8k", "base", "large", 128, _VQ8K),
        _titok("sl256-vq8k", "small", "large", 256, _VQ8K, megabytes=1320),
        _titok("ll32-vae-c16", "large", "large", 32, _VAE),
        _titok("bl64-vae-c16", "base", "large", 64, _VAE),
        _titok("bl128-vae-c16", "base", "large", 128, _VAE),
    ),
    # Xiong et al. 2025, arXiv 2504.08736
    "gigatok": (
        _gigatok("b-l-dino-disc", "base", "large", "VQ_BL256_dino_disc.pt", "11bXyg6y15hIWYnIsl7YbwDtRAJMK7jjn"),
        _gigatok("b-l", "base", "large", "VQ_BL256_e200.pt", "1VnBu4aj0N7lFa1_wKBdTgLNZmaNgFvwi"),
        _gigatok("s-b", "small", "base", "VQ_SB256_e200.pt", "17K-h2Jwep53RUEf6CEOV3ro7Cz_DaIWC"),
        _gigatok("s-s", "small", "small", "VQ_SS256_e100.pt", "1Q_WHCT6mdNnu0GkHCm0CbXaP6kFeTe5h"),
        _gigatok("xl-xxl", "xl", "xxl", "VQ_XLXXL256_e300.pt", "1HK_bV_zklLfGmIHGE4gMwjfhLLKi6Z3G"),
    ),
}
