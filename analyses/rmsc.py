"""RMSC, root-mean-square spatial contrast: how much the directions of an image's tokens differ from their mean.

Definition: Singh et al., "What matters for Representation Alignment" (iREPA, arXiv 2512.10794), with u_t = x_t / |x_t| the unit
tokens of an image and m their mean:

    RMSC = sqrt( mean_t |u_t - m|^2 )

per image, then averaged over images. It says nothing about where tokens lie, and its authors name no better direction; the
correlation study of Zhong et al. (arXiv 2606.03578) leaves it out.
"""

import numpy as np
from torch import Tensor

from analyses.intervals import bootstrap_means, percentile_interval
from analyses.spatial import rows_per_image, token_cautions
from latentlab.errors import Unmeasurable
from latentlab.latents import Latents
from latentlab.measurement import Measurement, MetricCard
from latentlab.registry import measurement


@measurement(
    MetricCard(
        name="rmsc",
        title="Root-mean-square spatial contrast",
        summary="how much the directions of an image's tokens differ from each other",
        formula="mean_n sqrt( mean_t |u_t - m|^2 ),  u_t = x_t / |x_t| = unit tokens of image n, m = their mean",
        unit="distance of unit vectors",
        range="0 (all tokens of an image have one direction) to 1 (their directions cancel)",
        better="none",
        source="Singh et al., iREPA, arXiv 2512.10794; per-channel normalisation is our choice, as for the other spatial "
        "measurements",
        confounds="a channel offset shared by all tokens when not normalised: it makes them all alike; the number of tokens, as "
        "independent ones give sqrt(1 - 1/s)",
        variants={"normalize=False": "raw latents"},
        invariances="batch size, order of the images, any order of an image's tokens, a rotation or positive scale of the "
        "tokens' space when not normalised; per-channel shift and scale when normalised",
        known_values={
            "s orthogonal tokens": "sqrt(1 - 1/s)",
            "two opposite directions in equal shares": "1",
            "one direction": "0",
        },
        test="tests/analyses/test_rmsc.py::test_orthogonal_and_opposite_tokens",
    )
)
def rmsc(latents: Latents, *, normalize: bool = True, seed: int = 0) -> Measurement:
    """Measure the spread of token directions within an image, in one pass over the latents; 1-D tokens need no grid.

    Args:
        latents: any.
        normalize: standardise each channel over the whole set first.
        seed: of the bootstrap over images.

    Returns:
        Root-mean-square distance of unit tokens from their mean. Interval: bootstrap over images, with the normalisation held
        fixed. ``details``: ``quantiles`` of the images' values at 0, 5, 25, 50, 75, 95 and 100 %.

    Raises:
        UserError: non-finite latents.
        Unmeasurable: latents of one token, which has nothing to differ from.
    """
    if latents.cells == 1:
        raise Unmeasurable("rmsc compares the tokens of an image, and these latents have one each")
    contrast = rows_per_image(latents, _contrast, normalize=normalize, epsilon=1e-8)[:, 0]
    replicates = bootstrap_means(contrast, seed) if latents.n > 1 else None
    return Measurement(
        name="rmsc",
        variant="per-channel normalised" if normalize else "raw",
        value=float(contrast.mean()),
        interval=None if replicates is None else percentile_interval(replicates, latents.n),
        direction="none",
        unit="distance of unit vectors",
        n=latents.n,
        parameters={"normalize": normalize, "seed": seed},
        warnings=tuple(token_cautions(latents, normalize)),
        details={"quantiles": np.quantile(contrast, (0, 0.05, 0.25, 0.5, 0.75, 0.95, 1))},
        replicates=replicates,
    )


def _contrast(units: Tensor, _: slice) -> Tensor:  # => float64 [b,1]
    tokens = units.flatten(2)
    spread = tokens - tokens.mean(2, keepdim=True)  # not 1 - |m|^2, which cancels where tokens are alike
    return (spread.square_().sum(1).double().mean(1)).sqrt_()[:, None]
