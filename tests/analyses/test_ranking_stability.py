"""Agreement of rankings: scipy's values, order of tokenizers irrelevant, equal and reversed orders."""

import numpy as np
import pytest
from scipy import stats

from analyses.ranking_stability import ranking_stability
from latentlab.errors import UserError

FIRST = np.random.default_rng(0).gamma(2.0, size=16)
SECOND = FIRST + 0.5 * np.random.default_rng(1).normal(size=16)


def test_values_are_scipys():
    found = ranking_stability(FIRST, SECOND)
    assert found.spearman == pytest.approx(stats.spearmanr(FIRST, SECOND).statistic)
    assert found.kendall == pytest.approx(stats.kendalltau(FIRST, SECOND).statistic)
    assert found.interval[0] < found.spearman < found.interval[1]


def test_any_rising_change_of_units_keeps_a_ranking():
    found = ranking_stability(FIRST, np.exp(3 * FIRST))
    assert found.spearman == pytest.approx(1) and found.kendall == pytest.approx(1)
    assert ranking_stability(FIRST, -FIRST).kendall == pytest.approx(-1)


def test_too_few_are_refused():
    with pytest.raises(UserError, match="got 4"):
        ranking_stability(FIRST[:4], SECOND[:4])
