"""Tokenizers with encoder and decoder of latent diffusion and VQGAN (`latentlab.tokenizers.ldm`), ours among them."""

from collections.abc import Mapping
from typing import Any

from latentlab.tokenizers.latent_statistics import VAVAE_MEAN, VAVAE_STD
from latentlab.tokenizers.release import FASHION32, Release
from latentlab.weights import WeightFile

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
_LLAMAGEN16 = {
    "quantizer": "vq-cosine",
    "ch": 128,
    "ch_mult": (1, 1, 2, 2, 4),
    "num_res_blocks": 2,
    "attn_resolutions": "coarsest",
    "resolution": 256,
    "z_channels": 256,
    "embed_dim": 8,
    "n_embed": 16384,
}
_VAVAE = _F16 | {"quantizer": "kl", "double_z": True, "num_res_blocks": 2, "z_channels": 32, "embed_dim": 32}


def _ibq(codes: int, megabytes: float, sha256: str | None = None) -> Release:
    file = WeightFile(
        repo=f"TencentARC/IBQ-Tokenizer-{codes}",
        filename=f"imagenet256_{codes}.ckpt",
        sha256=sha256,
        megabytes=megabytes,
    )
    name = "imagenet256" if codes == 16384 else f"imagenet256-{codes}"
    return Release(name, "Apache-2.0", file, _IBQ | {"n_embed": codes}, averaged=True)


def _ibq_pretrained(codes: int, megabytes: float) -> Release:
    """Return a release trained on pictures from the web, made for generation from text."""
    repo = f"TencentARC/IBQ-Tokenizer-{codes}-Pretrain"
    file = WeightFile(repo=repo, filename=f"IBQ_pretrain_{codes}.ckpt", megabytes=megabytes)
    return Release(f"pretrain-{codes}", "Apache-2.0", file, _IBQ | {"n_embed": codes}, averaged=True)


def _llamagen(name: str, repo: str, filename: str, architecture: Mapping[str, Any], **file: Any) -> Release:
    return Release(name, "MIT", WeightFile(repo=repo, filename=filename, **file), architecture)


RELEASES: Mapping[str, tuple[Release, ...]] = {
    "ae": (FASHION32,),
    "kl": (FASHION32,),
    "eq": (FASHION32,),
    "lmr": (FASHION32,),
    "vavae": (FASHION32,),
    "vq": (FASHION32,),
    # Shi et al. 2024, arXiv 2412.02692
    "ibq": (
        FASHION32,
        _ibq(16384, 888, sha256="26ecf8be32c2796edd03d9b1aec1fe1fc18e9dae2ded51ef54b504cc32d05144"),
        _ibq(1024, 857, sha256="68f6d2949a5a646acf0a384941e2ac03f3fbabf8babbe3e0a8659f6368750294"),
        _ibq(8192, 871),
        _ibq(262144, 1391),
        _ibq_pretrained(16384, 888),
        _ibq_pretrained(262144, 1391),
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
                megabytes=2150,
            ),
            _VAVAE,
            shift=VAVAE_MEAN,
            scale=tuple(1 / std for std in VAVAE_STD),
            statistics="latents_stats.pt",
        ),
    ),
    # Sun et al. 2024, arXiv 2406.06525
    "llamagen-vq16": (
        _llamagen("c2i", "FoundationVision/LlamaGen", "vq_ds16_c2i.pt", _LLAMAGEN16, megabytes=288),
        _llamagen("c2i-safetensors", "FoundationVision/vq-ds16-c2i", "model.safetensors", _LLAMAGEN16, megabytes=288),
        _llamagen("t2i", "peizesun/llamagen_t2i", "vq_ds16_t2i.pt", _LLAMAGEN16, megabytes=288),
    ),
    "llamagen-vq8": (
        _llamagen(
            "c2i",
            "FoundationVision/LlamaGen",
            "vq_ds8_c2i.pt",
            _LLAMAGEN16 | {"ch_mult": (1, 2, 2, 4)},
            sha256="c70d2966ec012f378793214ff0755087e7c5fe6f035b469995143325dca4a4e3",
            megabytes=281,
        ),
    ),
}
