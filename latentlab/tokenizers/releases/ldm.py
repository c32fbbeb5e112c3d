"""Tokenizers with the encoder and decoder of latent diffusion and VQGAN (`latentlab.tokenizers.ldm`), under published names."""

from collections.abc import Mapping

from latentlab.tokenizers.latent_statistics import VAVAE_MEAN, VAVAE_STD
from latentlab.tokenizers.release import FASHION32, Release
from latentlab.weights import WeightFile

_FASHION32 = Release("fashion32", "MIT")

_F16 = {"ch": 128, "ch_mult": (1, 1, 2, 2, 4), "attn_resolutions": (16,), "resolution": 256}

_IBQ = _F16 | {"quantizer": "ibq", "num_res_blocks": 4, "z_channels": 256, "embed_dim": 256, "n_embed": 16384}
_VQGAN = _F16 | {"quantizer": "vq", "num_res_blocks": 2, "z_channels": 256, "embed_dim": 256, "n_embed": 16384}
_MAR = _F16 | {
    "quantizer": "kl",
    "double_z": True,
    "num_res_blocks": 2,
    "z_channels": 16,
    "embed_dim": 16,
    "decoder_attn_resolutions": (),
}
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
_VAVAE = _F16 | {"quantizer": "kl", "double_z": True, "num_res_blocks": 2, "z_channels": 32, "embed_dim": 32}


def _ibq(codes: int, size: int | None = None, sha256: str | None = None) -> Release:
    file = WeightFile(
        repo=f"TencentARC/IBQ-Tokenizer-{codes}", filename=f"imagenet256_{codes}.ckpt", size=size, sha256=sha256
    )
    name = "imagenet256" if codes == 16384 else f"imagenet256-{codes}"
    return Release(name, "Apache-2.0", file, _IBQ | {"n_embed": codes})


def _sdvae(release: str, sha256: str | None = None) -> Release:
    """Return a release of Stable Diffusion's autoencoder; the two share the encoder. The authors' own layout is read as well."""
    file = WeightFile(
        repo=f"stabilityai/sd-vae-{release}",
        filename="diffusion_pytorch_model.safetensors",
        size=334_643_276,
        sha256=sha256,
    )
    return Release(release, "MIT", file, _SDVAE, scale=(0.18215,))


RELEASES: Mapping[str, tuple[Release, ...]] = {
    "ae": (FASHION32,),
    "kl": (FASHION32,),
    # Shi et al. 2024, arXiv 2412.02692
    "ibq": (
        FASHION32,
        _ibq(16384, sha256="26ecf8be32c2796edd03d9b1aec1fe1fc18e9dae2ded51ef54b504cc32d05144"),
        _ibq(1024, sha256="68f6d2949a5a646acf0a384941e2ac03f3fbabf8babbe3e0a8659f6368750294"),
        _ibq(8192),
        _ibq(262144),
    ),
    # Esser et al. 2021, arXiv 2012.09841. Copies on the hub of 289 MB are the model with 1024 codes.
    "vqgan-f16": (
        Release(
            "imagenet256",
            "MIT",
            WeightFile(
                repo="CompVis/taming-transformers",
                filename="vqgan_imagenet_f16_16384/ckpts/last.ckpt",
                url="https://heibox.uni-heidelberg.de/f/867b05fc8c4841768640/?dl=1",
            ),
            _VQGAN,
        ),
    ),
    # Li et al. 2024, arXiv 2406.11838
    "mar-kl16": (
        Release(
            "imagenet256",
            "MIT",
            WeightFile(
                repo="jadechoghari/mar",
                filename="kl16.safetensors",
                size=265_856_244,
                sha256="ae6e66b66cce64248cace5aa6cf8bdb3e834947801cbf7e059028592e2b1de31",
            ),
            _MAR,
            scale=(0.2325,),
        ),
    ),
    # Yao et al. 2025, arXiv 2501.01423
    "va-vae": (
        Release(
            "imagenet256",
            "MIT",
            WeightFile(
                repo="hustvl/vavae-imagenet256-f16d32-dinov2",
                filename="vavae-imagenet256-f16d32-dinov2.pt",
                sha256="2088e07378d26047e7bfcbae669feb5d4eab37276f23621db3eebdacc7d82b6b",
            ),
            _VAVAE,
            shift=VAVAE_MEAN,
            scale=tuple(1 / std for std in VAVAE_STD),
            statistics="latents_stats.pt",
        ),
    ),
    # Rombach et al. 2022, arXiv 2112.10752, with the decoders fine-tuned later
    "sd-vae": (
        _sdvae("ft-mse", sha256="a1d993488569e928462932c8c38a0760b874d166399b14414135bd9c42df5815"),
        _sdvae("ft-ema"),
    ),
}
