"""One measurement and one tokenizer, found by latentlab through the entry points in pyproject.toml."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pixel_shuffle, pixel_unshuffle

from latentlab import Latents, Measurement, MetricCard, Tokenizer, TokenizerSpec, UserError
from latentlab.registry import measurement

PATCH = 4


@measurement(
    MetricCard(
        name="channel_correlation",
        title="Mean absolute correlation between channels",
        summary="How much of a latent's channels say the same thing.",
        formula="mean over channel pairs of |corr(z_i, z_j)|, over all images and cells",
        unit="",
        range="[0, 1]",
        better="none",
        source="this example",
    )
)
def channel_correlation(latents: Latents) -> Measurement:
    """Return the mean |correlation| over pairs of channels; streams, holds only [c,c] sums."""
    if latents.channels < 2:
        raise UserError(f"channel_correlation needs at least 2 channels, got {latents.channels}")
    products = torch.zeros(latents.channels, latents.channels, dtype=torch.float64)
    for batch in latents.batches():
        rows = latents.moments.standardise(batch.double()).transpose(0, 1).flatten(1)  # [c, b*s]
        products += rows @ rows.T
    correlation = products / (latents.n * latents.cells - 1)
    pairs = correlation[~torch.eye(latents.channels, dtype=torch.bool)]
    return Measurement(
        name="channel_correlation",
        variant="Pearson, mean over pairs",
        value=float(pairs.abs().mean()),
        interval=None,
        direction="none",
        unit="",
        n=latents.n,
    )


class PixelPatches(Tokenizer):
    """The pixels themselves, every 4x4 patch as one cell of 48 channels. Nothing is lost and nothing is learned."""

    spec = TokenizerSpec("pixel-patches", "plug-in", "continuous", "grid", channels=3 * PATCH**2, downsampling=PATCH)

    def encode(self, images: Tensor, sample: bool = False, generator: torch.Generator | None = None) -> Tensor:
        """Return [n,48,H/4,W/4]."""
        return pixel_unshuffle(images, PATCH)

    def decode(self, latents: Tensor) -> Tensor:
        """Return the images again."""
        return pixel_shuffle(latents, PATCH)


def pixel_patches(weights: str | Path | None = None, architecture: Mapping[str, Any] | None = None) -> PixelPatches:
    """Build the tokenizer; it has nothing to load or to change."""
    if weights is not None or architecture:
        raise UserError("pixel-patches has no weights and no architecture: leave both out")
    return PixelPatches()
