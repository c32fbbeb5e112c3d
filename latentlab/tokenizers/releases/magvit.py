"""Open-MAGVIT2 (`latentlab.tokenizers.magvit`)."""

from collections.abc import Mapping

from latentlab.tokenizers.release import Release
from latentlab.weights import WeightFile


def _release(
    name: str, repo: str, filename: str, megabytes: float, bits: int = 18, ch_mult: tuple[int, ...] = (1, 1, 2, 2, 4)
) -> Release:
    """Return a release; its latent grid is 16x16 at the nominal resolution."""
    architecture = {
        "ch": 128,
        "ch_mult": ch_mult,
        "num_res_blocks": 4,
        "z_channels": bits,
        "resolution": 16 << (len(ch_mult) - 1),
    }
    file = WeightFile(repo=f"TencentARC/Open-MAGVIT2-Tokenizer-{repo}", filename=filename, megabytes=megabytes)
    return Release(name, "Apache-2.0", file, architecture, family="open-magvit2", averaged=True)


RELEASES: Mapping[str, tuple[Release, ...]] = {
    # Luo et al. 2024, arXiv 2409.04410
    "open-magvit2": (
        _release("imagenet256", "256-resolution", "imagenet_256_L.ckpt", 921),
        _release("imagenet128", "128-resolution", "imagenet_128_L.ckpt", 896, ch_mult=(1, 2, 2, 4)),
        _release("pretrain256-262144", "262144-Pretrain", "pretrain256_262144.ckpt", 921),
        _release("pretrain256-16384", "16384-Pretrain", "pretrain256_16384.ckpt", 921, bits=14),
    ),
}
