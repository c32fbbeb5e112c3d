"""Adjusted p-values by hand and against statsmodels."""

import numpy as np
import pytest
from statsmodels.stats.multitest import multipletests

from analyses.multiplicity import adjusted

P = [0.01, 0.04, 0.03, 0.005, 0.5]


def test_holm_by_hand():
    """Ascending 0.005, 0.01, 0.03, 0.04, 0.5 times 5, 4, 3, 2, 1, made monotone."""
    np.testing.assert_allclose(adjusted(P), [0.04, 0.09, 0.09, 0.025, 0.5])


def test_benjamini_hochberg_by_hand():
    """Ascending times 5/1, 5/2, 5/3, 5/4, 5/5, made monotone from above."""
    np.testing.assert_allclose(adjusted(P, "benjamini-hochberg"), [0.025, 0.05, 0.05, 0.025, 0.5])


@pytest.mark.parametrize(("ours", "theirs"), [("holm", "holm"), ("benjamini-hochberg", "fdr_bh")])
def test_many_values_are_statsmodels(ours, theirs):
    p = np.random.default_rng(0).uniform(size=40).round(2) ** 2
    np.testing.assert_allclose(adjusted(p, ours), multipletests(p, method=theirs)[1])


def test_missing_values_do_not_count():
    np.testing.assert_allclose(adjusted([0.01, np.nan, 0.04]), [0.02, np.nan, 0.04])
    assert np.isnan(adjusted([np.nan])).all() and len(adjusted([])) == 0


def test_one_value_stays():
    assert adjusted([0.3]) == pytest.approx([0.3])


def test_holm_on_paper() -> None:
    assert adjusted([0.01, 0.04, 0.03]).tolist() == pytest.approx([0.03, 0.06, 0.06])
    assert adjusted([0.5, 0.9]).tolist() == [1.0, 1.0] and adjusted([]).size == 0
