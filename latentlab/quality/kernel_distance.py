"""Kernel distance of two sets of features: KID (Binkowski et al. 2018, arXiv 1801.01401), as torch-fidelity computes it.

The unbiased squared maximum mean discrepancy with the kernel (x.y/d + 1)^3, averaged over random subsets of both sets. It can be
slightly negative where the sets agree.
"""

from typing import NamedTuple

import numpy as np
import torch

from latentlab.errors import UserError


class KernelDistance(NamedTuple):
    """The distance and how much it varies between subsets."""

    value: float
    spread: float
    """Standard deviation over the subsets: not the error of their mean, since subsets share images."""


def kernel_distance(
    made: np.ndarray, real: np.ndarray, *, subsets: int = 100, subset_size: int = 1000, seed: int = 2020
) -> KernelDistance:  # [n,d], [m,d]
    """Return the kernel distance of the features of generated and of real images.

    Args:
        made: [n,d] float32.
        real: [m,d] float32.
        subsets: random subsets of each.
        subset_size: images in a subset.
        seed: of the subsets.

    Raises:
        UserError: fewer images than a subset has.
    """
    for what, table in (("generated", made), ("real", real)):
        if len(table) < subset_size:
            raise UserError(
                f"subsets of {subset_size} need as many {what} images, got {len(table)}: give more, or set kid_subset_size"
            )
    from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, KEY_METRIC_KID_STD, kid_features_to_metric

    found = kid_features_to_metric(
        torch.from_numpy(made), torch.from_numpy(real),
        kid_subsets=subsets, kid_subset_size=subset_size, rng_seed=seed, verbose=False,
    )  # fmt: skip
    return KernelDistance(found[KEY_METRIC_KID_MEAN], found[KEY_METRIC_KID_STD])
