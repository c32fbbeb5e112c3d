"""Irreducible variance of the flow-matching velocity of a Gaussian, in closed form (DRS, arXiv 2606.03578, eq. 4 and 5).

x0 ~ N(0, I), x1 ~ N(mu, Sigma), x_t = (1-t) x0 + t x1, v = x1 - x0. In an eigen-direction of Sigma with eigenvalue l,
Var v = 1+l, Cov(v, x_t) = t l - (1-t) and Var x_t = (1-t)^2 + t^2 l, hence Var(v | x_t) = l / Var x_t: it depends neither on
mu nor on x_t. Flow time: t = 0 is noise, t = 1 is data.
"""

from typing import Any

import numpy as np
from torch import Tensor

from latentlab.errors import UserError
from latentlab.latents import ArrayLike


def velocity_variance(eigenvalues: ArrayLike, t: ArrayLike | float) -> Any:
    """Return the variance of the velocity that no model can predict at flow time ``t``, summed over dimensions (eq. 4).

        I(t) = sum_i l_i / ((1-t)^2 + t^2 l_i)

    Directions without variance contribute 0, also at t = 1, so I(0) is the trace and I(1) the rank of the covariance.

    Args:
        eigenvalues: of the covariance of the data, [d], numpy or torch, none negative.
        t: flow time in [0,1] (0 noise, 1 data), a number or an array of any shape.

    Returns:
        float64, in the shape of ``t``.

    Raises:
        UserError: a negative or non-finite eigenvalue, eigenvalues that are not [d], or t outside [0,1].
    """
    values, times = _float64(eigenvalues), _float64(t)
    if values.ndim != 1 or not len(values):
        raise UserError(f"eigenvalues must be [d], got shape {list(values.shape)}")
    if not np.isfinite(values).all() or values.min() < 0:
        raise UserError(f"eigenvalues must be finite and not negative, got {values.min()}..{values.max()}")
    if not ((times >= 0) & (times <= 1)).all():
        raise UserError(f"t must lie in [0, 1], got {times.min()}..{times.max()}")
    positive = values[values > 0]
    return np.array([np.sum(positive / ((1 - u) ** 2 + u**2 * positive)) for u in times.flat]).reshape(times.shape)[()]


def integrated_variance(eigenvalues: np.ndarray) -> float:
    """Return the integral of `velocity_variance` over t from 0 to 1 (eq. 5): ``(pi/2) sum_i sqrt(l_i)``."""
    return float(np.pi / 2 * np.sqrt(eigenvalues).sum())


def _float64(values: ArrayLike | float) -> np.ndarray:
    if isinstance(values, Tensor):
        values = values.detach().cpu().numpy()
    return np.asarray(values, dtype=np.float64)
