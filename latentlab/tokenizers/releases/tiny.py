"""The TAESD family: tiny autoencoders for the latent spaces of large ones (`latentlab.tokenizers.taesd`)."""

from collections.abc import Mapping
from typing import Any

from latentlab.tokenizers.release import Release
from latentlab.weights import WeightFile

_TAESD = "https://raw.githubusercontent.com/madebyollin/taesd/main/"


def _tiny(
    release: str,
    file: str,
    architecture: Mapping[str, Any],
    hashes: tuple[str, str],
    sizes: tuple[int | None, int | None] = (None, None),
) -> Release:
    """Return a release of the TAESD family; hashes and sizes of encoder and decoder."""
    halves = []
    for half, sha256, size in zip(("encoder", "decoder"), hashes, sizes, strict=True):
        name = f"{file}_{half}.pth"
        halves.append(WeightFile(repo="madebyollin/taesd", filename=name, size=size, sha256=sha256, url=_TAESD + name))
    return Release(release, "MIT", halves[0], architecture, companions=(halves[1],), family="taesd")


RELEASES: Mapping[str, tuple[Release, ...]] = {
    # Tiny autoencoders for the latent spaces of Stable Diffusion 1, XL and 3, FLUX.1 and FLUX.2, and SANA's DC-AE; releases are
    # named after those.
    "taesd": (
        _tiny(
            "sd",
            "taesd",
            {"latent_channels": 4},
            hashes=(
                "15bc6128f0ac51c673d3427216082ebfa62402ffc89763af74edfe259b32d49d",
                "02873377c3f4659cd9f9adb2f718dcb434ba4c7bba3af3ee7bb95cbdabe2d3cf",
            ),
        ),
    ),
    "taesdxl": (
        _tiny(
            "sdxl",
            "taesdxl",
            {"latent_channels": 4},
            hashes=(
                "a5648de089aba6b641e505c0f132b2dc7ff70ab6070c31be5e624e807e711c5e",
                "a3956b8a7a763f251c7357aad6375dacdb6d971121c73e97a3069fc33a94fe1e",
            ),
        ),
    ),
    "taesd3": (
        _tiny(
            "sd3",
            "taesd3",
            {"latent_channels": 16},
            hashes=(
                "b8fefa64b92a867df673c7f22fb2cbc6ae144070e22e7a0b3af0f21de2f43f92",
                "178fbb90c8c3bab4fe5e30dcba3b85d8bd2c9a203f71239c3a3223720c310b58",
            ),
        ),
    ),
    "taef1": (
        _tiny(
            "flux1",
            "taef1",
            {"latent_channels": 16},
            hashes=(
                "1d1ad34546aea0edd99dc2db9411d870319f428ced5065c6464582c17c070536",
                "beae86f2eeaf0cea884dc8ffe639fb297dac8c984441bb53420f07d767785104",
            ),
        ),
    ),
    "taef2": (
        _tiny(
            "flux2",
            "taef2",
            {"latent_channels": 32, "pooled": True},
            hashes=(
                "10a4e1021e89d7551eaf161352da8dbd0b1aa83872ae28b150c1df1ce2f147b6",
                "0a44a31e1ae59eb9dbf9359d24942fd3ef5928162c1800d97a28c61d51be0ab5",
            ),
            sizes=(2_704_692, 2_704_756),
        ),
    ),
    "taesana": (
        _tiny(
            "sana",
            "taesana",
            {"latent_channels": 32, "downsampling": 32},
            hashes=(
                "858f4e4cc293f88efaf58107f4154b960b9ced0cb5d9c050dad11f926b618c1f",
                "3eb733ab918dd5840fa6e6309642edb49359bd1c7624d9e5884f92438aa07c36",
            ),
            sizes=(2_537_004, None),
        ),
    ),
}
