"""LDS, local against distant similarity: how much more alike near tokens of an image are than far ones.

Definition: Singh et al., "What matters for Representation Alignment" (iREPA, arXiv 2512.10794), appendix B and their code, with K
the cosine similarity of two tokens of an image and d their Manhattan distance in cells:

    code (default)   LDS = mean K over d = 1  -  mean K over d >= far
    paper            LDS = mean K over 0 < d < h/2  -  mean K over d >= h/2

per image, then averaged over images. The two are not interchangeable.
"""

from typing import Literal

import numpy as np

from analyses.spatial import cautions, check_distance, described, largest_distance, measure_decay
from latentlab.errors import UserError, unknown_name
from latentlab.latents import Latents, on_grid
from latentlab.measurement import Measurement, MetricCard
from latentlab.registry import measurement

_VARIANTS = ("code", "paper")


@measurement(
    MetricCard(
        name="lds",
        title="Local against distant similarity",
        summary="how much more alike neighbouring tokens are than tokens far apart: spatial structure of a latent",
        formula="mean_n ( mean_{d(t,t') = 1} K_n(t,t') - mean_{d(t,t') >= far} K_n(t,t') ),  K = cosine similarity, d = "
        "Manhattan distance",
        unit="cosine similarity",
        range="-2 to 2; 0 where similarity does not depend on distance; published tokenizers 0.35 to 0.75",
        better="higher",
        source="Singh et al., iREPA, arXiv 2512.10794, its code (far = 6) and appendix B (the paper variant); per-channel "
        "normalisation follows a port of Diffusing in the Right Space, arXiv 2606.03578, which does not name its variant",
        needs=("grid",),
        confounds="grid size: distances are in cells, so 8x8, 16x16 and 32x32 grids do not compare; a channel offset shared by "
        "all tokens when not normalised",
        variants={
            "variant='paper'": "split at half the grid's height: mean over 0 < d < h/2 minus mean over d >= h/2; not "
            "interchangeable with the default",
            "far=3": "tokens count as distant from 3 cells on",
            "normalize=False": "raw latents",
            "grid=(8, 16)": "lays 1-D tokens out on a grid, row by row; their order need not have a place in the image",
        },
        invariances="batch size, order of the images, a rotation or positive scale of the tokens' space when not normalised; "
        "per-channel shift and scale when normalised; mirrored grids, and transposed ones (paper variant: if square)",
        known_values={
            "8x8 grid of u(row, col) = (cos 0.2 row, sin 0.2 row), raw, far = 6": "0.32145662",
            "independent tokens": "0 in expectation",
            "all tokens of an image alike": "0",
            "both variants on the same latents": "0.779 (code) against 0.187 (paper), correlation 0.59",
        },
        test="tests/analyses/test_lds.py::test_closed_form_on_a_turning_field",
    )
)
def lds(
    latents: Latents,
    *,
    variant: Literal["code", "paper"] = "code",
    far: int = 6,
    normalize: bool = True,
    grid: tuple[int, int] | None = None,
    seed: int = 0,
) -> Measurement:
    """Measure local against distant similarity, in one pass over the latents.

    Args:
        latents: with a grid.
        variant: ``code`` of the authors, or their ``paper``, which splits at half the height of the grid and has no ``far``.
        far: Manhattan distance in cells from which tokens are distant, at least 2.
        normalize: standardise each channel over the whole set first.
        grid: (rows, columns) on which 1-D tokens are laid out; None for latents that have a grid.
        seed: of the bootstrap over images.

    Returns:
        Difference of cosine similarities. Interval: bootstrap over images, with the normalisation held fixed. Companions: the
        two means. ``details``: ``distance`` 1 to h + w - 2, ``similarity`` at each, its 95 % band ``similarity_low`` and
        ``similarity_high``, all [D]; ``near`` and ``far``, the largest near and the smallest far distance.

    Raises:
        UserError: 1-D tokens without a grid, no pair of tokens as near or as far apart as asked, an unknown variant, or
            non-finite latents.
    """
    latents = on_grid(latents, grid, "lds")
    assert latents.grid is not None
    if variant not in _VARIANTS:
        raise unknown_name("variant", str(variant), _VARIANTS)
    near_to, far_from = _split(latents.grid, variant, far)
    decay = measure_decay(latents, normalize=normalize, seed=seed)
    distance = np.arange(1, len(decay.pairs) + 1)
    near, distant = (chosen * decay.pairs for chosen in (distance <= near_to, distance >= far_from))
    near, distant = near / near.sum(), distant / distant.sum()
    estimate, replicates = decay.mean_of(near - distant)
    sets = "neighbours" if near_to == 1 else f"up to {near_to} cells"
    return Measurement(
        name="lds",
        variant=described(latents, f"{variant}: {sets} against {far_from} cells and more", normalize),
        value=estimate.value,
        interval=estimate.interval,
        direction="higher",
        unit="cosine similarity",
        n=latents.n,
        parameters={"variant": variant, "far": far, "normalize": normalize, "grid": grid, "seed": seed},
        companions={"near similarity": decay.mean_of(near)[0], "far similarity": decay.mean_of(distant)[0]},
        warnings=tuple(cautions(latents, normalize)),
        details={**decay.details(), "near": near_to, "far": far_from},
        replicates=replicates,
    )


def _split(grid: tuple[int, int], variant: str, far: int) -> tuple[int, int]:
    """Return the largest near and the smallest far distance."""
    if variant == "code":
        check_distance("far", far, 2, grid)
        return 1, far
    far_from = -(-grid[0] // 2)  # the smallest whole number that is not below h/2
    if far_from < 2 or far_from > largest_distance(grid):
        raise UserError(
            f"the paper variant splits at half the height of the grid, which leaves a {grid[0]}x{grid[1]} grid without near "
            "or without far tokens: use variant='code'"
        )
    return far_from - 1, far_from
