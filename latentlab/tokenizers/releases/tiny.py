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
    encoder: tuple[int, str] | None = None,
    decoder: tuple[int, str] | None = None,
) -> Release:
    """Return a release of the TAESD family; (size, SHA-256) of the two files where they are known."""
    halves = []
    for half, known in (("encoder", encoder), ("decoder", decoder)):
        size, sha256 = known or (None, None)
        name = f"{file}_{half}.pth"
        halves.append(WeightFile(repo="madebyollin/taesd", filename=name, size=size, sha256=sha256, url=_TAESD + name))
    return Release(release, "MIT", halves[0], architecture, companions=(halves[1],), family="taesd")


RELEASES: Mapping[str, tuple[Release, ...]] = {
    # Tiny autoencoders for the latent spaces of Stable Diffusion 1, 3, FLUX.1 and FLUX.2; releases are named after those.
    "taesd": (_tiny("sd", "taesd", {"latent_channels": 4}),),
    "taesd3": (_tiny("sd3", "taesd3", {"latent_channels": 16}),),
    "taef1": (_tiny("flux1", "taef1", {"latent_channels": 16}),),
    "taef2": (
        _tiny(
            "flux2",
            "taef2",
            {"latent_channels": 32, "pooled": True},
            encoder=(2_704_692, "10a4e1021e89d7551eaf161352da8dbd0b1aa83872ae28b150c1df1ce2f147b6"),
            decoder=(2_704_756, "0a44a31e1ae59eb9dbf9359d24942fd3ef5928162c1800d97a28c61d51be0ab5"),
        ),
    ),
}
