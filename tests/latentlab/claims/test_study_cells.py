"""Statistics of a study's cells against slow ones: in every cell and resampling, of tokenizers that lack numbers."""

import numpy as np
import pytest
from scipy import stats

from latentlab.claims.statistic import Statistic, place
from latentlab.claims.study_cells import StudyCells
from latentlab.study.table import StudyTable

from ..study.example_study import example_study

TARGET = "gfd_fashion_classifier"


def test_correlations_are_those_of_scipy_in_every_cell_and_replicate() -> None:
    """Means over seeds, two tokenizers without the measurement, integer values with ties."""
    table = example_study(14)
    rows = table.rows.assign(m_lnc=lambda r: (r["m_lnc"] * 20).round())
    rows.loc[rows["tokenizer"].isin(["tokenizer-01", "tokenizer-05"]), "m_lnc"] = np.nan
    cells = StudyCells.of(StudyTable(rows, table.columns), "")
    for method, scipy_method in (("spearman", stats.spearmanr), ("pearson", stats.pearsonr)):
        found = cells.correlation("m_lnc", "gfd_fashion_classifier", method)  # type: ignore[arg-type]
        assert found.n == 12 and found.table.shape == (6, len(cells.counts))
        for i, (generator, guidance) in enumerate([(g, s) for g in ("sit", "lightningdit") for s in (1.0, 1.5, 2.0)]):
            chosen = rows[(rows["generator"] == generator) & (rows["guidance"] == guidance)]
            means = chosen.groupby("tokenizer", sort=False)[["m_lnc", "gfd_fashion_classifier"]].mean()
            for j in (0, 1, 7):
                drawn = means.loc[means.index.repeat(cells.counts[j].astype(int))].dropna()
                assert found.table[i, j] == pytest.approx(scipy_method(*drawn.to_numpy().T).statistic)


def test_partial_correlations_are_those_of_three_of_scipy_over_tokenizers_that_have_all() -> None:
    """r_xy.z = (r_xy - r_xz r_yz) / sqrt((1 - r_xz^2) (1 - r_yz^2)), each lacking one column of another tokenizer."""
    table = example_study(14)
    rows = table.rows.assign(m_srss=lambda r: (r["m_srss"] * 20).round())
    for number, name in ((2, "m_lnc"), (3, "m_srss"), (4, TARGET)):
        rows.loc[rows["tokenizer"] == f"tokenizer-{number:02d}", name] = np.nan
    cells = StudyCells.of(StudyTable(rows, table.columns), "")
    found = cells.partial_correlation("m_lnc", TARGET, "m_srss")
    assert found.n == 11
    columns = ["m_lnc", TARGET, "m_srss"]
    for i, frame in enumerate(cells.cells.values()):
        for j in (0, 1, 7):
            drawn = frame.loc[frame.index.repeat(cells.counts[j].astype(int)), columns].dropna()
            assert found.table[i, j] == pytest.approx(partial_of_three(drawn.to_numpy()))


def partial_of_three(table: np.ndarray) -> float:
    r = stats.spearmanr(table).statistic
    return float((r[0, 1] - r[0, 2] * r[1, 2]) / np.sqrt((1 - r[0, 2] ** 2) * (1 - r[1, 2] ** 2)))


def test_tokenizers_that_few_resamplings_draw_have_statistics() -> None:
    """6 of 24: some resamplings draw none of them, and have neither correlation."""
    table = example_study()
    rows = table.rows.assign(m_lnc=lambda r: r["m_lnc"].where(r["tokenizer"] < "tokenizer-06"))
    cells = StudyCells.of(StudyTable(rows, table.columns), "")
    there = np.array([name < "tokenizer-06" for name in cells.tokenizers])
    undrawn = ~cells.counts[:, there].any(axis=1)
    for found in (cells.correlation("m_lnc", TARGET), cells.partial_correlation("m_lnc", TARGET, "m_srss")):
        assert found.n == 6 and np.isfinite(found.value)
        assert undrawn.any() and np.isnan(found.table[:, undrawn]).all()
        assert np.isfinite(found.table).mean() > 0.8  # of three different ones, orders often coincide


def test_explained_is_of_fits_without_each() -> None:
    table = example_study(9)
    cells = StudyCells.of(table, "")
    expected: dict[int, list[float]] = {1: [], 2: []}
    for frame in cells.cells.values():
        x, y = frame[["m_lnc", "m_srss"]].to_numpy(), frame[TARGET].to_numpy()
        for k, found in expected.items():
            errors, means = [], []
            for i in range(9):
                others = np.delete(np.arange(9), i)
                design = np.column_stack([np.ones(8), x[others, :k]])
                fitted = np.linalg.lstsq(design, y[others], rcond=None)[0]
                errors.append(y[i] - np.array([1, *x[i, :k]]) @ fitted)
                means.append(y[i] - y[others].mean())
            found.append(1 - np.sum(np.square(errors)) / np.sum(np.square(means)))
    both = ["m_lnc", "m_srss"]
    for k, found in expected.items():
        assert cells.explained(both[:k], TARGET, both) == pytest.approx(np.mean(found))


def test_partial_correlations_given_several_are_those_of_residuals_of_ranks() -> None:
    cells = StudyCells.of(example_study(14), "")
    found = cells.partial_correlation("m_lnc", TARGET, "m_srss", "decoder_sensitivity")
    for i, frame in enumerate(cells.cells.values()):
        ranks = stats.rankdata(frame[["m_lnc", TARGET, "m_srss", "decoder_sensitivity"]].to_numpy(), axis=0)
        design = np.column_stack([np.ones(14), ranks[:, 2:]])
        left = ranks[:, :2] - design @ np.linalg.lstsq(design, ranks[:, :2], rcond=None)[0]
        assert found.table[i, 0] == pytest.approx(stats.pearsonr(*left.T).statistic)


def test_complete_leaves_out_who_lacks_a_column_and_says_so() -> None:
    """One seed of a tokenizer is enough; columns that are not asked for do not matter."""
    table = example_study(9)
    number = table.rows["tokenizer"].str[-2:].astype(int)
    rows = table.rows.copy()
    rows.loc[number.isin([1, 4]), ["m_lnc", "m_srss"]] = np.nan
    rows.loc[(number == 2) | (number == 3) & (rows["generator_seed"] == 0), "m_lnc"] = np.nan
    rows.loc[number == 5, "m_cds"] = np.nan
    whole = StudyCells.of(StudyTable(rows, table.columns), "").complete(["m_viv", "m_lnc", "m_srss"])
    assert whole.tokenizers == [f"tokenizer-{i:02d}" for i in (0, 3, 5, 6, 7, 8)]
    assert whole.left_out == (
        "not counted, as they lack m_lnc, m_srss: tokenizer-01, tokenizer-04",
        "not counted, as they lack m_lnc: tokenizer-02",
    )
    assert {len(frame) for frame in whole.cells.values()} == {6}


def test_place_counts_what_a_cell_has() -> None:
    """Second of three; where one of them is not there, second of two."""
    own = Statistic(np.array([[0.5], [0.5], [np.nan]]), 9)
    rest = [Statistic(np.array([[0.9], [0.9], [0.9]]), 8), Statistic(np.array([[0.1], [np.nan], [0.1]]), 9)]
    found = place(own, rest)
    assert found.table[:2, 0] == pytest.approx([2 / 3, 1]) and np.isnan(found.table[2, 0]) and found.n == 8


def test_rows_that_lack_one_number_keep_the_others() -> None:
    table = example_study(12)
    table.rows["error"] = "paths of it: not done yet"
    cells = StudyCells.of(table, "a command")
    assert len(cells.tokenizers) == 12 and cells.cells["sit", 1.0]["gfd_fashion_classifier"].notna().all()
