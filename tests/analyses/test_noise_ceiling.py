"""Variance components: balanced closed form, statsmodels on unequal repeats, and a ceiling that simulated predictors reach."""

import numpy as np
import pytest
import statsmodels.api as sm

from analyses.noise_ceiling import noise_ceiling
from latentlab.errors import UserError


def repeated(units: int, repeats: int, between: float, within: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the true values [u] and noisy repeats of them [u,r]."""
    rng = np.random.default_rng(seed)
    truth = 10 + between * rng.normal(size=units)
    return truth, truth[:, None] + within * rng.normal(size=(units, repeats))


def test_balanced_two_repeats_by_hand():
    """Within: mean squared difference of pairs / 2. Between: variance of means - within / 2."""
    _, values = repeated(20, 2, 3.0, 1.0, seed=0)
    found = noise_ceiling(values.ravel(), np.repeat(np.arange(20), 2))
    within = np.mean(np.diff(values, axis=1) ** 2) / 2
    between = np.var(values.mean(1), ddof=1) - within / 2
    assert found.within_sd**2 == pytest.approx(within)
    assert found.between_sd**2 == pytest.approx(between)
    assert found.ceiling**2 == found.reliability == pytest.approx(between / (between + within / 2))
    assert (found.n, found.repeats) == (20, 2)


def test_unequal_repeats_agree_with_mean_squares_of_statsmodels():
    _, values = repeated(30, 3, 2.0, 1.0, seed=1)
    kept = np.ones((30, 3), bool)
    kept[:15, 1:] = False
    units = np.repeat(np.arange(30), 3)[kept.ravel()]
    flat = values.ravel()[kept.ravel()]
    dummies = (units[:, None] == np.arange(30)).astype(float)
    model = sm.OLS(flat, dummies).fit()
    found = noise_ceiling(flat, units)
    assert found.within_sd**2 == pytest.approx(model.mse_resid)
    assert found.repeats == pytest.approx(30 / (15 / 1 + 15 / 3))
    m0 = (60 - (15 * 1 + 15 * 9) / 60) / 29
    between_squares = (np.sum((flat - flat.mean()) ** 2) - model.ssr) / 29
    assert found.between_sd**2 == pytest.approx((between_squares - model.mse_resid) / m0)


def test_a_perfect_predictor_reaches_the_ceiling_and_no_more():
    """Truth against the mean of 2 repeats with between = within: sqrt(1 / (1 + 1/2)) = 0.816."""
    reached, ceilings = [], []
    for seed in range(200):
        truth, values = repeated(40, 2, 1.0, 1.0, seed)
        reached.append(np.corrcoef(truth, values.mean(1))[0, 1])
        ceilings.append(noise_ceiling(values.ravel(), np.repeat(np.arange(40), 2)).ceiling)
    assert np.mean(reached) == pytest.approx((2 / 3) ** 0.5, abs=0.01)
    assert np.mean(ceilings) == pytest.approx(np.mean(reached), abs=0.02)


def test_pure_noise_has_a_low_ceiling_and_no_noise_one_of_1():
    _, values = repeated(200, 2, 0.0, 1.0, seed=3)
    assert noise_ceiling(values.ravel(), np.repeat(np.arange(200), 2)).ceiling < 0.4
    _, values = repeated(10, 2, 1.0, 0.0, seed=3)
    assert noise_ceiling(values.ravel(), np.repeat(np.arange(10), 2)).ceiling == pytest.approx(1)


@pytest.mark.parametrize(
    ("values", "units", "message"),
    [
        ([1.0, 2.0, 3.0], ["a", "b", "c"], "repeats"),
        ([1.0, 2.0], ["a", "a"], "two tokenizers"),
        ([1.0, np.nan, 3.0], ["a", "a", "b"], "finite"),
    ],
)
def test_what_has_no_noise_estimate_is_refused(values, units, message):
    with pytest.raises(UserError, match=message):
        noise_ceiling(np.array(values), np.array(units))
