"""One vector per image: the mean over its foreground cells, or the pooled or flattened latent; streamed in batches."""

from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import adaptive_max_pool2d

from latentlab.errors import UserError
from latentlab.latents import BATCH_BYTES, Latents

MaskMode = Literal["nearest", "maxpool", "none"]
MASK_MODES = ("nearest", "maxpool", "none")

Feature = Literal["avgpool", "maxpool", "avgmaxpool", "flatten"]
FEATURES = ("avgpool", "maxpool", "avgmaxpool", "flatten")


def masks_on_grid(masks: Tensor, grid: tuple[int, int], mode: MaskMode) -> Tensor:  # bool [b,H,W] => bool [b,h,w]
    """Return which cells of the latent grid are foreground.

    Args:
        masks: foreground of each image, at any resolution.
        grid: (h, w) of the latents.
        mode: ``nearest`` reads the pixel at the upper left of each cell (nearest-neighbour interpolation); ``maxpool``
            counts a cell as soon as one of its pixels is foreground.
    """
    if tuple(masks.shape[1:]) == grid:
        return masks
    if mode == "maxpool":
        return adaptive_max_pool2d(masks.float()[:, None], grid)[:, 0] > 0
    rows, columns = (torch.arange(cells) * size // cells for cells, size in zip(grid, masks.shape[1:], strict=True))
    return masks.index_select(1, rows).index_select(2, columns)


def masked_means(latents: Latents, mode: MaskMode) -> tuple[Tensor, Tensor]:  # => float64 [n,c], int64 [n]
    """Return each image's mean over its foreground cells, and how many cells that are (0: an empty mask, mean 0).

    ``mode="none"`` averages over all cells. Raises `UserError` for NaN or infinity, and for a mask without a grid.
    """
    if mode != "none" and latents.grid is None:
        raise UserError("masks need latents on a grid, and these are 1-D tokens: use mask='none'")
    # A large offset shared by all cells would cost digits in float32 sums.
    offset = latents.moments.offset
    means = torch.empty(latents.n, latents.channels, dtype=torch.float64)
    counts = torch.full((latents.n,), latents.cells)
    for part in latents.slices():
        cells = latents.take(part).flatten(2)
        shift = offset.to(cells)
        if shift.any():
            cells = cells - shift[:, None]
        if mode == "none" or latents.grid is None:
            sums = cells.sum(2)
        else:
            foreground = masks_on_grid(latents.masks(part), latents.grid, mode).flatten(1)
            counts[part] = foreground.sum(1)
            sums = torch.bmm(cells, foreground.to(cells)[:, :, None])[:, :, 0]
        means[part] = sums.double() / counts[part].clamp_min(1)[:, None] + shift.double()
    means[counts == 0] = 0
    return means, counts


def feature_width(latents: Latents, feature: Feature) -> int:
    """Return the length of one image's feature."""
    return {"flatten": latents.cells, "avgmaxpool": 2}.get(feature, 1) * latents.channels


def features(latents: Latents, feature: Feature, indices: np.ndarray) -> np.ndarray:
    """Return one feature per image of ``indices``, [m, `feature_width`].

    ``avgpool`` and ``maxpool`` are the mean and the largest value over cells or tokens, ``avgmaxpool`` both one after the
    other, ``flatten`` all numbers of the latent. Pooled features are float64; flattened ones stay float32, since they are
    as large as the latents.
    """
    width = feature_width(latents, feature)
    pooled = np.empty((len(indices), width), dtype=np.float32 if feature == "flatten" else np.float64)
    step = max(1, BATCH_BYTES // (4 * latents.channels * latents.cells))
    for start in range(0, len(indices), step):
        part = slice(start, start + step)
        pooled[part] = _pool(latents.take(indices[part]).flatten(2), feature).numpy()
    return pooled


def _pool(cells: Tensor, feature: Feature) -> Tensor:  # [b,c,s] => [b,width]
    if feature == "flatten":
        return cells.flatten(1)
    pools = []
    if feature in ("avgpool", "avgmaxpool"):
        pools.append(cells.mean(2, dtype=torch.float64))
    if feature in ("maxpool", "avgmaxpool"):
        pools.append(cells.amax(2).double())
    return torch.cat(pools, dim=1)
