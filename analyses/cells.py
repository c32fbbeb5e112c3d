"""One random cell of each of many images: points in channel space that are independent where the images are."""

import numpy as np
import torch
from torch import Tensor

from latentlab.latents import BATCH_BYTES, Latents


def random_cells(
    latents: Latents, images: np.ndarray, random: np.random.Generator, *, normalize: bool
) -> Tensor:  # => float64 [m,c]
    """Return one cell of each of the ``images`` [m] (positions, ascending), drawn by ``random``.

    Memory: the result and one batch of latents.

    Args:
        latents: a grid or tokens.
        images: which images.
        random: draws one cell per image.
        normalize: standardise each channel over the whole set (not over the chosen cells).

    Raises:
        UserError: NaN or infinity, when normalised.
    """
    cells = torch.from_numpy(random.integers(latents.cells, size=len(images)))
    points = torch.empty(len(images), latents.channels, dtype=torch.float64)
    step = max(1, BATCH_BYTES // (4 * latents.channels * latents.cells))
    for start in range(0, len(images), step):
        part = slice(start, start + step)
        batch = latents.take(images[part]).flatten(2)
        points[part] = batch[torch.arange(len(batch)), :, cells[part]].double()
    return latents.moments.standardise(points) if normalize else points
