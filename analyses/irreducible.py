"""Irreducible variance of the flow-matching velocity of a Gaussian, in closed form (DRS, arXiv 2606.03578, eq. 4 and 5).

x0 ~ N(0, I), x1 ~ N(mu, Sigma), x_t = (1-t) x0 + t x1, v = x1 - x0. In an eigen-direction of Sigma with eigenvalue l,
Var v = 1+l, Cov(v, x_t) = t l - (1-t) and Var x_t = (1-t)^2 + t^2 l, hence Var(v | x_t) = l / Var x_t: it depends neither on
mu nor on x_t. Flow time: t = 0 is noise, t = 1 is data.

The exact flow moves with v*(x_t) = E[v | x_t], and its states are distributed as x_t. By the law of total variance, for any
data,

    E |dx_t/dt|^2 = E |v|^2 - I(t),    E |v|^2 = E |x1|^2 + d at every t

so its steps are short exactly where the irreducible variance is large (figure 10 of DRS). For Gaussians I(t) is eq. 4. For
others eq. 4 of their covariance is an upper bound, as the best affine velocity is no better than the best one: discrete latents
are nearly known at late times, where eq. 4 comes to the rank.
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


def gaussian_length_ratio(energy: float, variance: ArrayLike, integral: float) -> np.ndarray:
    """Return how long the steps of the exact flow of Gaussian data are, in units of an even step on the straight line.

    Root mean squares over paths: sqrt((E|v|^2 - I(t)) / E|x_1 - x_0|^2) with x_0 and x_1 the ends of a path, for which
    x_1 - x_0 = mu + (sqrt(l) - 1) x_0 in every eigen-direction, so E|x_1 - x_0|^2 = E|v|^2 - (4/pi) int_0^1 I dt.

    Args:
        energy: E|v|^2 = E|x1|^2 + d of noise and data that are drawn independently.
        variance: I(t) at some times, [T].
        integral: of I(t) over t from 0 to 1 (eq. 5). All three are sums over dimensions, or all are means over them.

    Returns:
        Length ratios, float64 [T].

    Raises:
        UserError: the ends of all paths coincide, as for white noise, which need not move.
    """
    squared = energy - 4 / np.pi * integral
    if squared <= 1e-12 * energy:
        raise UserError(
            "the flow from noise to white noise does not move: there is no distance to compare its steps with"
        )
    return np.sqrt(np.maximum(energy - _float64(variance), 0) / squared)


def _float64(values: ArrayLike | float) -> np.ndarray:
    if isinstance(values, Tensor):
        values = values.detach().cpu().double().numpy()
    return np.asarray(values, dtype=np.float64)
