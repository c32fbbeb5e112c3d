"""Correlation within groups: partial correlation given indicators, Simpson's paradox, exact permutations, degrees of freedom."""

import itertools

import numpy as np
import pytest
import statsmodels.api as sm
from scipy import stats

from analyses.within_groups import correlate_within
from latentlab.errors import UserError


def grouped(
    seed: int = 0, groups: int = 6, each: int = 4, slope: float = 0.6
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Within groups y rises with x; between groups it falls steeply (Simpson's paradox)."""
    rng = np.random.default_rng(seed)
    label = np.repeat(np.arange(groups), each)
    x = rng.normal(size=groups * each)
    y = slope * x + np.sqrt(1 - slope**2) * rng.normal(size=groups * each) - 20 * label
    return x + 5 * label, y, label


@pytest.mark.parametrize("method", ["pearson", "spearman"])
def test_it_is_the_partial_correlation_given_indicators(method):
    x, y, label = grouped()
    a, b = (x, y) if method == "pearson" else (stats.rankdata(x), stats.rankdata(y))
    dummies = (label[:, None] == np.unique(label)).astype(float)
    left = [sm.OLS(v, dummies).fit().resid for v in (a, b)]
    assert correlate_within(x, y, label, method).value == pytest.approx(np.corrcoef(*left)[0, 1], abs=1e-10)


def test_simpsons_paradox_is_seen():
    x, y, label = grouped(each=10)
    assert np.corrcoef(x, y)[0, 1] < -0.9
    found = correlate_within(x, y, label)
    assert found.value > 0.3 and found.p < 0.01


def test_interval_and_p_have_the_right_degrees_of_freedom():
    """300 samples of 6 groups of 3 (11 degrees of freedom): coverage 95 % and 5 % false alarms; n - 2 would cover about 91 %."""
    covered, alarms = 0, 0
    for seed in range(300):
        x, y, label = grouped(seed, each=3)
        low, high = correlate_within(x, y, label).interval
        covered += low <= 0.6 <= high
        alarms += correlate_within(grouped(seed, each=3, slope=0)[0], y - 0.6 * x, label).p <= 0.05 if seed < 100 else 0
    assert 0.93 <= covered / 300 <= 0.98
    assert alarms / 100 <= 0.11


def test_p_is_that_of_all_permutations_within_groups():
    x, y, label = grouped(groups=3, each=3)
    observed = abs(correlate_within(x, y, label).value)
    hits, total = 0, 0
    for orders in itertools.product(*[list(itertools.permutations(range(3 * g, 3 * g + 3))) for g in range(3)]):
        moved = y[np.concatenate([np.array(o) for o in orders])]
        hits += abs(correlate_within_value(x, moved, label)) >= observed - 1e-12
        total += 1
    exact = hits / total
    assert correlate_within(x, y, label).p == pytest.approx(exact, abs=4 * np.sqrt(exact / 9999))


def correlate_within_value(x: np.ndarray, y: np.ndarray, label: np.ndarray) -> float:
    means = [np.array([v[label == g].mean() for g in label]) for v in (x, y)]
    return np.corrcoef(x - means[0], y - means[1])[0, 1]


def test_groups_of_one_do_not_count():
    x, y, label = grouped()
    found = correlate_within(np.append(x, 99), np.append(y, 99), np.append(label, 77))
    assert (found.n, found.groups) == (24, 6)
    assert found.value == pytest.approx(correlate_within(x, y, label).value)


def test_order_of_points_and_names_of_groups_do_not_matter():
    x, y, label = grouped()
    order = np.random.default_rng(1).permutation(24)
    named = np.array(list("zyxwvu"))[label]
    assert correlate_within(x[order], y[order], named[order]).value == pytest.approx(
        correlate_within(x, y, label).value
    )


@pytest.mark.parametrize(
    ("columns", "method", "message"),
    [
        (lambda x, y, g: (x, y, np.arange(24)), "pearson", "got 0"),
        (lambda x, y, g: (x, y, np.repeat(np.arange(12), 2)), "kendall", "pearson or spearman"),
        (lambda x, y, g: (g.astype(float), y, g), "pearson", "vary within groups"),
        (lambda x, y, g: (x[:6], y[:6], np.repeat([0, 1, 2, 3], 2)[:6]), "pearson", None),
    ],
)
def test_what_says_nothing_within_groups_is_refused(columns, method, message):
    arguments = columns(*grouped())
    if message is None:  # 6 points in 3 groups: just enough
        assert correlate_within(*arguments, method).n == 6
        return
    with pytest.raises(UserError, match=message):
        correlate_within(*arguments, method)
