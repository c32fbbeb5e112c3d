"""Covariance of the latents of one class without any structure, for small latents and as a check of the factored one."""

import numpy as np
import torch

from analyses.kronecker import KroneckerCovariance, shrunk
from latentlab.errors import UserError
from latentlab.latents import ChannelMoments, Latents

MAX_DIMENSIONS = 4096
"""Eigenvalues of a larger matrix take minutes per class."""


def fit_full(
    latents: Latents, images: np.ndarray, moments: ChannelMoments | None = None, *, shrinkage: float | None = None
) -> KroneckerCovariance:
    """Return the covariance (ddof=0) of flattened latents as the Kronecker product of the 1 x 1 identity and itself.

    Args:
        latents: where the images are.
        images: indices of the images of one class; they are held in memory.
        moments: standardise the channels with these first, or None.
        shrinkage: in (0,1]: replace this share of the covariance by a multiple of the identity with the same trace.

    Raises:
        UserError: not more images than dimensions, without shrinkage; or more dimensions than is practical.
    """
    d = latents.channels * latents.cells
    if d > MAX_DIMENSIONS:
        raise UserError(f"covariance='full' takes at most {MAX_DIMENSIONS} dimensions, got {d}: use 'kronecker'")
    if len(images) <= d and shrinkage is None:
        raise UserError(
            f"a full covariance of {d} dimensions needs more than {d} images per class, one has {len(images)}: give more "
            "images, set shrinkage (0.1, say), or use covariance='kronecker'"
        )
    batch = latents.take(images).double()
    rows = (batch if moments is None else moments.standardise(batch)).flatten(1)
    mean = rows.mean(0, keepdim=True)
    rows = rows - mean
    covariance = shrunk(rows.T @ rows / len(rows), shrinkage)
    return KroneckerCovariance(mean, torch.ones(1, 1, dtype=torch.float64), covariance)
