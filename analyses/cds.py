"""CDS, correlation decay slope: how fast the similarity of an image's tokens falls with their distance.

Definition: Singh et al., "What matters for Representation Alignment" (iREPA, arXiv 2512.10794), with K the cosine similarity of
two tokens of an image and g(delta) its mean over all pairs at Manhattan distance delta, in cells:

    CDS = - slope of the least-squares line through (delta, g(delta)), delta = 1..d_max

per image, then averaged over images; every distance counts the same, however many pairs there are at it.
"""

import numpy as np

from analyses.spatial import cautions, described, largest_distance, measure_decay
from latentlab.errors import UserError
from latentlab.latents import Latents, on_grid
from latentlab.measurement import Measurement, MetricCard
from latentlab.registry import measurement


@measurement(
    MetricCard(
        name="cds",
        title="Correlation decay slope",
        summary="how fast the similarity of two tokens falls with each cell of distance between them",
        formula="- slope of the least-squares line through (delta, g(delta)), delta = 1..d_max,  g(delta) = mean cosine "
        "similarity of tokens at Manhattan distance delta",
        unit="cosine similarity per cell",
        range="0 where similarity does not depend on distance; negative where it grows with it; at most 0.38 "
        "(d_max = 8)",
        better="higher",
        source="Singh et al., iREPA, arXiv 2512.10794, paper and code; per-channel normalisation follows a port of Diffusing in "
        "the Right Space, arXiv 2606.03578",
        needs=("grid",),
        confounds="grid size: the slope is per cell, so 8x8, 16x16 and 32x32 grids do not compare; a channel offset shared by "
        "all tokens when not normalised; a similarity that falls within one or two cells is flat afterwards and scores low",
        variants={
            "d_max=4": "the line is fitted to the first 4 distances",
            "normalize=False": "raw latents",
            "grid=(8, 16)": "lays 1-D tokens out on a grid, row by row; their order need not have a place in the image",
        },
        invariances="batch size, order of the images, a rotation or positive scale of the tokens' space when not normalised; "
        "per-channel shift and scale when normalised; mirrored and transposed grids",
        known_values={
            "8x8 grid of u(row, col) = (cos 0.2 row, sin 0.2 row), raw, d_max = 8": "0.04924541",
            "independent tokens": "0 in expectation",
            "similarity falling by a from cell to cell": "a",
        },
        test="tests/analyses/test_cds.py::test_closed_form_on_a_turning_field",
    )
)
def cds(
    latents: Latents,
    *,
    d_max: int = 8,
    normalize: bool = True,
    grid: tuple[int, int] | None = None,
    seed: int = 0,
) -> Measurement:
    """Measure the correlation decay slope, in one pass over the latents.

    Args:
        latents: with a grid.
        d_max: largest Manhattan distance in cells that the line is fitted to, at least 2; distances that a small grid does not
            have are skipped.
        normalize: standardise each channel over the whole set first.
        grid: (rows, columns) on which 1-D tokens are laid out; None for latents that have a grid.
        seed: of the bootstrap over images.

    Returns:
        Fall of cosine similarity per cell. Interval: bootstrap over images, with the normalisation held fixed. ``details``:
        ``distance`` 1 to h + w - 2, ``similarity`` at each, its 95 % band ``similarity_low`` and ``similarity_high``, all [D];
        ``d_max`` used, and ``intercept`` of the line.

    Raises:
        UserError: 1-D tokens without a grid, d_max below 2, a grid with a single distance, or non-finite latents.
    """
    latents = on_grid(latents, grid, "cds")
    assert latents.grid is not None
    largest = largest_distance(latents.grid)
    if d_max < 2:
        raise UserError(f"d_max must be at least 2 cells, or there is no line to fit: got {d_max}")
    if largest < 2:
        raise UserError(
            f"cds needs two distances for a slope, and a {latents.grid[0]}x{latents.grid[1]} grid has {largest}"
        )
    used = min(d_max, largest)
    decay = measure_decay(latents, normalize=normalize, seed=seed)
    slope, level = _line(used, largest)
    estimate, replicates = decay.mean_of(-slope)
    warnings = cautions(latents, normalize)
    if used < d_max:
        warnings.append(f"the grid has no distances above {used}: the line is fitted to 1 to {used}, not to {d_max}")
    return Measurement(
        name="cds",
        variant=described(latents, f"distances 1 to {used}", normalize),
        value=estimate.value,
        interval=estimate.interval,
        direction="higher",
        unit="cosine similarity per cell",
        n=latents.n,
        parameters={"d_max": d_max, "normalize": normalize, "grid": grid, "seed": seed},
        warnings=tuple(warnings),
        details={**decay.details(), "d_max": used, "intercept": decay.mean_of(level)[0].value},
        replicates=replicates,
    )


def _line(used: int, largest: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the weights [largest] of g(1), g(2), ... in slope and intercept of the least-squares line through the first ones."""
    delta = np.arange(1, used + 1)
    centred = delta - delta.mean()
    slope = centred / (centred @ centred)
    level = 1 / used - delta.mean() * slope
    rest = np.zeros(largest - used)
    return np.concatenate([slope, rest]), np.concatenate([level, rest])
