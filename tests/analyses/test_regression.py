"""Least squares against statsmodels and against fits that really leave points out."""

import numpy as np
import pytest
import statsmodels.api as sm

from analyses.regression import fit, leave_out, predict
from latentlab.errors import UserError

RNG = np.random.default_rng(0)
X = RNG.normal(size=(20, 2)) * [1, 1e4] + [0, 1e6]
Y = X[:, 0] - 1e-4 * X[:, 1] + 0.5 * RNG.normal(size=20)
GROUPS = np.repeat(["a", "b", "c", "d"], 5)


def test_r2_is_statsmodels():
    theirs, ours = sm.OLS(Y, sm.add_constant(X)).fit(), fit(X, Y)
    assert ours.r2 == pytest.approx(theirs.rsquared, abs=1e-9)
    assert ours.r2_adjusted == pytest.approx(theirs.rsquared_adj, abs=1e-9)


def test_r2_of_two_predictors_closed_form():
    """R^2 = (r1^2 + r2^2 - 2 r1 r2 r12) / (1 - r12^2)."""
    r = np.corrcoef(np.column_stack([X, Y]).T)
    closed = (r[0, 2] ** 2 + r[1, 2] ** 2 - 2 * r[0, 2] * r[1, 2] * r[0, 1]) / (1 - r[0, 1] ** 2)
    assert fit(X, Y).r2 == pytest.approx(closed, abs=1e-9)


@pytest.mark.parametrize("groups", [np.arange(20), GROUPS], ids=["points", "clusters"])
def test_leaving_out_is_fitting_without(groups):
    slow, mean = np.empty(20), np.empty(20)
    design = np.column_stack([np.ones(20), (X - X.mean(0)) / X.std(0)])
    for label in np.unique(groups):
        out = groups == label
        slow[out] = design[out] @ np.linalg.lstsq(design[~out], Y[~out], rcond=None)[0]
        mean[out] = Y[~out].mean()
    ours = leave_out(X, Y, groups)
    np.testing.assert_allclose(ours.predicted, slow, atol=1e-8)
    assert ours.r2 == pytest.approx(1 - np.sum((Y - slow) ** 2) / np.sum((Y - mean) ** 2))
    assert ours.rmse == pytest.approx(np.sqrt(np.mean((Y - slow) ** 2)))
    assert ours.n == 20


def test_cross_validation_leaves_out_one():
    assert fit(X, Y).r2_cross_validated == leave_out(X, Y, np.arange(20)).r2 < fit(X, Y).r2


def test_a_useless_predictor_does_not_predict():
    noise = np.random.default_rng(1).normal(size=(200, 1))
    target = np.random.default_rng(2).normal(size=200)
    assert leave_out(noise, target, np.arange(200)).r2 < 0.02


def test_new_points_are_predicted_by_the_fit():
    theirs = sm.OLS(Y[:15], sm.add_constant(X[:15])).fit()
    ours = predict(X[:15], Y[:15], X[15:], Y[15:])
    np.testing.assert_allclose(ours.predicted, theirs.predict(sm.add_constant(X[15:])), rtol=1e-6)
    assert ours.r2 == pytest.approx(1 - np.sum((Y[15:] - ours.predicted) ** 2) / np.sum((Y[15:] - Y[:15].mean()) ** 2))


def test_a_group_without_which_there_is_no_fit_is_not_predicted():
    """Only group a has x different from 0."""
    x = np.zeros((10, 1))
    x[:3, 0] = [1, 2, 3]
    groups = np.array(["a"] * 3 + ["b"] * 4 + ["c"] * 3)
    found = leave_out(x, np.random.default_rng(0).normal(size=10), groups)
    assert np.isnan(found.predicted[:3]).all() and np.isfinite(found.predicted[3:]).all()
    assert found.n == 7


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (X[:4], Y[:4], "at least 5 points, got 4"),
        (np.column_stack([X[:, 0], 2 * X[:, 0] + 1]), Y, "linearly dependent"),
        (X, np.ones(20), "constant"),
        (np.column_stack([X[:, 0], np.ones(20)]), Y, "constant"),
    ],
)
def test_bad_designs_are_refused(x, y, message):
    with pytest.raises(UserError, match=message):
        fit(x, y)


def test_one_group_is_refused():
    with pytest.raises(UserError, match="two groups"):
        leave_out(X, Y, np.zeros(20))
