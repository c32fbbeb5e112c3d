"""SRSS, semantic-region self-similarity: how much more a foreground token resembles nearby foreground than distant background.

Definition: Singh et al., "What matters for Representation Alignment" (iREPA, arXiv 2512.10794), as in their code, which takes all
pairs of a mask where the paper describes sampled triplets. With K the cosine similarity of two tokens of an image, d their
Manhattan distance in cells and A the foreground cells that have tokens of both kinds:

    P(a) = foreground at d_pos_min <= d <= d_pos,    N(a) = background at d >= d_neg
    SRSS = mean_{a in A} ( mean_{t in P(a)} K(a,t) - mean_{t in N(a)} K(a,t) )

per image, then averaged over the images that have such cells.
"""

from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from analyses.intervals import bootstrap_means, percentile_interval
from analyses.pooling import masks_on_grid
from analyses.spatial import PairSums, cautions, check_distance, described, rows_per_image
from latentlab.errors import UserError, unknown_name
from latentlab.latents import Latents, on_grid
from latentlab.measurement import Estimate, Measurement, MetricCard
from latentlab.registry import measurement

PIPELINE_SHARE = 0.25
"""The authors keep images with at least 64 foreground and 64 background cells of 256."""

_MASKS = ("maxpool", "nearest")


@measurement(
    MetricCard(
        name="srss",
        title="Semantic-region self-similarity",
        summary="how much more a foreground token resembles the foreground around it than distant background",
        formula="mean_n mean_a ( mean_{t fg, d_pos_min <= d(a,t) <= d_pos} K_n(a,t) - mean_{t bg, d(a,t) >= d_neg} K_n(a,t) ),  "
        "K = cosine similarity, d = Manhattan distance, a = foreground cells that have both",
        unit="cosine similarity",
        range="-2 to 2; 0 where similarity depends neither on the mask nor on distance",
        better="higher",
        source="Singh et al., iREPA, arXiv 2512.10794, as in its code (all pairs; the paper samples triplets); per-channel "
        "normalisation follows a port of Diffusing in the Right Space, arXiv 2606.03578; masks are max-pooled from their own "
        "resolution, where iREPA's code resizes them to 256 pixels first (bicubic for grey images, which widens them)",
        needs=("grid", "masks"),
        confounds="grid size: distances are in cells, so 8x8, 16x16 and 32x32 grids do not compare; the masks and which images "
        "they leave; distance itself, as near tokens are alike without any semantics; a channel offset shared by all tokens "
        "when not normalised",
        variants={
            "d_pos=2": "positives up to 2 cells away",
            "d_pos_min=2": "positives from 2 cells away on",
            "d_neg=4": "negatives from 4 cells away on",
            "mask='nearest'": "a cell is foreground if the pixel at its upper left is, instead of any of its pixels",
            "min_share=0": "every image counts that has an anchor with a positive and a negative; by default images are left out "
            "whose masks, at image resolution, have less than a quarter of foreground or of background cells",
            "normalize=False": "raw latents",
            "grid=(8, 16)": "lays 1-D tokens out on a grid, row by row; their order need not have a place in the image",
        },
        invariances="batch size, order of the images, a rotation or positive scale of the tokens' space when not normalised; "
        "per-channel shift and scale when normalised; images and masks mirrored or transposed together",
        known_values={
            "foreground of one direction, background of another, cosine x between them": "1 - x",
            "independent tokens": "0 in expectation",
        },
        test="tests/analyses/test_srss.py::test_two_regions_of_one_direction_each",
    )
)
def srss(
    latents: Latents,
    *,
    d_pos: int = 1,
    d_pos_min: int = 1,
    d_neg: int = 6,
    mask: Literal["maxpool", "nearest"] = "maxpool",
    min_share: float | None = None,
    normalize: bool = True,
    grid: tuple[int, int] | None = None,
    seed: int = 0,
) -> Measurement:
    """Measure semantic-region self-similarity, in one pass over the latents.

    Args:
        latents: with a grid, and masks at the resolution of the grid or of the images.
        d_pos: largest Manhattan distance of a positive, in cells.
        d_pos_min: smallest distance of a positive, at least 1.
        d_neg: smallest distance of a negative, at least 1.
        mask: how a mask at image resolution reaches the grid: ``maxpool`` (a cell with any foreground pixel is foreground) or
            ``nearest`` (the pixel at the upper left of the cell decides).
        min_share: in [0, 0.5]: images with a smaller share of foreground or of background cells are left out. None means
            0.25 for masks at image resolution (64 of 256 cells, as the authors choose images) and 0 for masks on the grid.
        normalize: standardise each channel over the whole set first.
        grid: (rows, columns) on which 1-D tokens are laid out; None for latents that have a grid.
        seed: of the bootstrap over images.

    Returns:
        Difference of cosine similarities, over the images that have an anchor with both kinds of tokens; the others are
        counted in a warning. Interval: bootstrap over all images, with the normalisation held fixed. Companions: the means of
        both kinds. ``details``: ``images``, how many were measured and left out.

    Raises:
        UserError: no masks, 1-D tokens without a grid, distances that are out of order or do not fit the grid, an unknown mask
            mode, no image to measure, or non-finite latents.
    """
    latents = on_grid(latents, grid, "srss")
    assert latents.grid is not None
    if not latents.has_masks:
        raise UserError("srss needs masks, and these latents have none")
    if mask not in _MASKS:
        raise unknown_name("mask mode", str(mask), _MASKS)
    _check_distances(latents.grid, d_pos_min, d_pos, d_neg)
    least = _least_share(latents, min_share)
    cells, contrast = latents.grid, _Contrast(latents.grid, d_pos_min, d_pos, d_neg)

    def rows(units: Tensor, part: slice) -> Tensor:
        return contrast(units, masks_on_grid(latents.masks(part), cells, mask))

    positive, negative, share = rows_per_image(latents, rows, normalize=normalize, epsilon=1e-12).T
    large = np.minimum(share, 1 - share) >= least - 1e-6
    kept = large & ~np.isnan(positive)
    left_out = {"too little foreground or background": int((~large).sum()), "no anchor": int((large & ~kept).sum())}
    if not kept.any():
        raise UserError(_nothing_left(latents.n, left_out, least))
    estimates, replicates = _means(np.stack([positive - negative, positive, negative], axis=1), kept, seed)
    definition = (
        f"positives {_range(d_pos_min, d_pos)}, negatives from {d_neg} cells on, {mask} masks, shares >= {least:.0%}"
    )
    return Measurement(
        name="srss",
        variant=described(latents, definition, normalize),
        value=estimates[0].value,
        interval=estimates[0].interval,
        direction="higher",
        unit="cosine similarity",
        n=int(kept.sum()),
        parameters={
            "d_pos": d_pos,
            "d_pos_min": d_pos_min,
            "d_neg": d_neg,
            "mask": mask,
            "min_share": least,
            "normalize": normalize,
            "grid": grid,
            "seed": seed,
        },
        companions={"positive similarity": estimates[1], "negative similarity": estimates[2]},
        warnings=(*_cautions(latents.n, int(kept.sum()), left_out, least), *cautions(latents, normalize)),
        details={"images": {"measured": int(kept.sum()), **left_out}},
        replicates=replicates,
    )


class _Contrast:
    """Mean similarity of the anchors of an image to their positives and to their negatives."""

    def __init__(self, grid: tuple[int, int], d_pos_min: int, d_pos: int, d_neg: int) -> None:
        self._distances = d_pos_min, d_pos, d_neg
        self._steps = [
            (i, j)
            for i in range(d_pos + 1)
            for j in range(-d_pos, d_pos + 1)
            if d_pos_min <= i + abs(j) <= d_pos and (i > 0 or j > 0) and i < grid[0] and abs(j) < grid[1]
        ]
        self._far_sums = PairSums(grid, torch.zeros(1, d_neg, dtype=torch.float64), beyond=1.0)

    def __call__(self, units: Tensor, mask: Tensor) -> Tensor:  # [b,c,h,w], bool [b,h,w] => float64 [b,3]
        """Return similarity to positives and to negatives (NaN without an anchor), and the share of foreground cells."""
        foreground = mask.to(units)
        background = 1 - foreground
        d_pos_min, d_pos, d_neg = self._distances
        # How many positives and negatives a cell has.
        positives = _within(foreground, d_pos) - _within(foreground, d_pos_min - 1)
        negatives = background.sum((1, 2), keepdim=True) - _within(background, d_neg - 1)
        anchors = foreground * (positives > 0) * (negatives > 0)
        # Share of a cell in the mean over anchors; NaN where there is none.
        share = anchors / anchors.sum((1, 2), keepdim=True)
        positive = self._similarity_nearby(units, share / positives.clamp_min(1), foreground)
        of_negative = share / negatives.clamp_min(1)
        negative = self._far_sums(units * of_negative[:, None], units * background[:, None])[:, 0]
        return torch.stack([positive, negative, foreground.mean((1, 2)).double()], dim=1)

    def _similarity_nearby(self, units: Tensor, weights: Tensor, foreground: Tensor) -> Tensor:  # => float64 [b]
        """Return sum_{a,t} weights_a foreground_t K(a,t) over cells a, t that are as far apart as positives are."""
        total = torch.zeros(len(units), dtype=torch.float64)
        for i, j in self._steps:  # each pair once, with either of the two as the anchor
            a, t = _shifted(units, i, j)
            (weight_a, weight_t), (at_a, at_t) = _shifted(weights, i, j), _shifted(foreground, i, j)
            total += ((a * t).sum(1) * (weight_a * at_t + weight_t * at_a)).sum((1, 2)).double()
        return total


def _within(fields: Tensor, reach: int) -> Tensor:  # [b,h,w] => [b,h,w]
    """Return the sum of ``fields`` over the cells at Manhattan distance <= ``reach``, row by row: no matrix of all pairs."""
    h, w = fields.shape[1:]
    before = functional.pad(fields.cumsum(2), (1, 0))  # sum of the columns left of each
    column, total = torch.arange(w), torch.zeros_like(fields)
    for i in range(-min(reach, h - 1), min(reach, h - 1) + 1):
        half = reach - abs(i)
        of_row = before[..., (column + half + 1).clamp_max(w)] - before[..., (column - half).clamp_min(0)]
        total[:, max(0, -i) : h - max(0, i)] += of_row[:, max(0, i) : h - max(0, -i)]
    return total


def _shifted(field: Tensor, i: int, j: int) -> tuple[Tensor, Tensor]:
    """Return the cells [...,h,w] of ``field`` that have a cell i >= 0 rows below and j columns to the right, and those cells."""
    h, w = field.shape[-2:]
    left, right = max(0, -j), max(0, j)
    return field[..., : h - i, left : w - right], field[..., i:, right : w - left]


def _check_distances(grid: tuple[int, int], d_pos_min: int, d_pos: int, d_neg: int) -> None:
    check_distance("d_pos_min", d_pos_min, 1, grid)
    check_distance("d_pos", d_pos, 1, grid)
    check_distance("d_neg", d_neg, 1, grid)
    if d_pos < d_pos_min:
        raise UserError(f"d_pos must be at least d_pos_min, got d_pos={d_pos} and d_pos_min={d_pos_min}")


def _least_share(latents: Latents, asked: float | None) -> float:
    """Return the smallest share of foreground and of background cells that an image must have."""
    if asked is None:
        on_grid_already = tuple(latents.masks(slice(0, 1)).shape[1:]) == latents.grid
        return 0.0 if on_grid_already else PIPELINE_SHARE
    if not 0 <= asked <= 0.5:
        raise UserError(f"min_share must lie in [0, 0.5], got {asked}")
    return asked


def _means(values: np.ndarray, kept: np.ndarray, seed: int) -> tuple[list[Estimate], np.ndarray | None]:
    """Return the means of the columns [n,m] over the ``kept`` images [n], and bootstrap replicates of the first.

    All images are resampled, and each resampling averages over those of them that are kept: so replicates of two tokenizers
    stay paired although other images may have been left out.
    """
    means = values[kept].mean(0)
    if kept.sum() < 2:
        return [Estimate(float(mean)) for mean in means], None
    sums = bootstrap_means(np.column_stack([np.where(kept[:, None], values, 0), kept]), seed)
    with np.errstate(invalid="ignore"):  # resamplings of images that were all left out
        replicates = sums[:, :-1] / sums[:, -1:]
    intervals = [percentile_interval(column, int(kept.sum())) for column in replicates.T]
    return [Estimate(float(m), i) for m, i in zip(means, intervals, strict=True)], replicates[:, 0]


def _range(first: int, last: int) -> str:
    return f"at {first}" if first == last else f"{first} to {last}"


def _nothing_left(n: int, left_out: dict[str, int], least: float) -> str:
    few, none = left_out.values()
    return (
        f"srss can be measured on none of {n} images: {few} have less than {least:.0%} foreground or background cells "
        f"(min_share), {none} have no foreground cell with foreground nearby and background far away"
    )


def _cautions(n: int, measured: int, left_out: dict[str, Any], least: float) -> list[str]:
    """Return what the masks do to this very result."""
    said = []
    few, none = left_out.values()
    if few:
        said.append(f"{few} of {n} images have less than {least:.0%} foreground or background cells and were left out")
    if none:
        said.append(f"{none} of {n} images have no foreground cell with both kinds of tokens and were left out")
    if measured == 1 < n:
        said.append("one image was measured: an interval over images is not possible")
    return said
