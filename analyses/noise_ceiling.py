"""How well a perfect predictor could correlate with a noisy target: variance components of repeated cells.

Model: value of repeat j of unit i = mu + b_i + e_ij. With units i = 1..k of m_i repeats, N in all (Searle, Casella, McCulloch,
Variance Components, 1992, chapter 3):

    within^2 = MSW = sum_ij (v_ij - v_i.)^2 / (N - k)
    between^2 = max(0, (MSB - MSW) / m_0),   MSB = sum_i m_i (v_i. - v..)^2 / (k - 1),   m_0 = (N - sum m_i^2 / N) / (k - 1)

What is correlated is the mean over repeats, of which between^2 / (between^2 + within^2 / m) is no noise (its reliability; m the
harmonic mean of the m_i). A correlation with it is attenuated by the square root of that (Spearman, American Journal of
Psychology 15, 1904): the ceiling.
"""

from dataclasses import dataclass

import numpy as np

from latentlab.errors import UserError


@dataclass(frozen=True)
class NoiseCeiling:
    """Noise of a target.

    Attributes:
        n: units.
        repeats: harmonic mean of the number of repeats per unit.
        between_sd: standard deviation of the true values of units, in units of the target.
        within_sd: standard deviation of repeats of a unit.
        reliability: share of the variance of means over repeats that is no noise, in [0, 1].
        ceiling: sqrt(reliability): the highest correlation to expect of a perfect predictor.
    """

    n: int
    repeats: float
    between_sd: float
    within_sd: float
    reliability: float
    ceiling: float


def noise_ceiling(values: np.ndarray, units: np.ndarray) -> NoiseCeiling:
    """Return the variance components of repeated ``values`` [N] of ``units`` [N] (labels), and the ceiling they set.

    Raises:
        UserError: fewer than two units, no unit with two values, or values that are not finite.
    """
    values = np.asarray(values, dtype=np.float64)
    _, unit, repeats = np.unique(units, return_inverse=True, return_counts=True)
    k, total = len(repeats), len(values)
    if k < 2 or total <= k:
        raise UserError("a noise ceiling needs at least two tokenizers and repeats of at least one of them")
    if not np.isfinite(values).all():
        raise UserError("a noise ceiling needs finite values: leave out missing ones")
    means = np.bincount(unit, values) / repeats
    within = np.sum((values - means[unit]) ** 2) / (total - k)
    spread = np.sum(repeats * (means - values.mean()) ** 2) / (k - 1)
    m0 = (total - np.sum(repeats**2) / total) / (k - 1)
    between = max(0.0, (spread - within) / m0)
    m = k / np.sum(1 / repeats)
    observed = between + within / m
    reliability = between / observed if observed > 0 else 1.0
    return NoiseCeiling(k, float(m), between**0.5, float(within**0.5), float(reliability), float(reliability**0.5))
