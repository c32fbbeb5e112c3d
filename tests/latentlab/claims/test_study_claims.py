"""C2 to C8 and C16 from made-up studies: confirmed, refuted, too noisy, too few, missing; statistics against slow ones."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from latentlab.claims.study_cells import StudyCells, left_out_r2
from latentlab.errors import UserError
from latentlab.study.table import Column, StudyTable

from ..study.example_study import example_study
from .made_up_results import judged

MORE = (
    Column("m_linear_probe", "measurement", "Accuracy.", "", "higher"),
    Column("m_gmm", "measurement", "Modes.", "", "lower"),
    Column("m_equivariance", "measurement", "Error.", "", "lower"),
    Column("m_uniformity", "measurement", "Unevenness.", "", "lower"),
    Column("m_ifid", "measurement", "Distance of interpolations.", "", "lower"),
    Column("step_variance_correlation", "trajectory", "Of step length and variance."),
)
Change = Callable[[pd.DataFrame], pd.DataFrame | None]


def study(folder: Path, change: Change | None = None, tokenizers: int = 24, noise: float = 0.3) -> Path:
    """Write the example study with more columns: all follow the hidden ease, uniformity and iFID loosely, equivariance not."""
    table = example_study(tokenizers, noise=noise)
    rows = table.rows.copy()
    names = rows["tokenizer"].unique()
    ease = 2 - rows.groupby("tokenizer", sort=False)["m_viv"].first().to_numpy()
    ours = np.random.default_rng(11).normal(size=(len(names), 4))
    per_tokenizer = {
        "m_linear_probe": rows.groupby("tokenizer", sort=False)["m_lnc"].first().to_numpy() + 0.002 * ours[:, 0],
        "m_gmm": np.round(30 - 20 * ease + ours[:, 1]),
        "m_equivariance": _unrelated(ease, ours[:, 2]),
        "m_uniformity": ease + 0.2 * ours[:, 2],
        "m_ifid": ease + 0.2 * ours[:, 3],
        "step_variance_correlation": -0.9 + 0.02 * ours[:, 0],
        "m_srss": ease + 0.15 * ours[:, 1],
        "m_cds": ease + 0.05 * ours[:, 3],
    }
    for name, values in per_tokenizer.items():
        rows[name] = rows["tokenizer"].map(dict(zip(names, values, strict=True)))
    changed = None if change is None else change(rows)
    rows = rows if changed is None else changed
    StudyTable(rows, (*table.columns, *MORE)).write(folder / "diffusability")
    return folder


def _unrelated(ease: np.ndarray, noise: np.ndarray) -> np.ndarray:
    """Return ``noise`` without what it shares with ``ease``."""
    centred = ease - ease.mean()
    found: np.ndarray = noise - centred * (centred @ noise) / (centred @ centred)
    return found


def setting(**columns: Callable[[pd.DataFrame], Any]) -> Change:
    def change(rows: pd.DataFrame) -> None:
        for name, of in columns.items():
            rows[name] = of(rows)

    return change


def per_tokenizer(rows: pd.DataFrame, scale: float = 1.0, seed: int = 5) -> pd.Series:
    """Return random numbers, one per tokenizer."""
    names = rows["tokenizer"].unique()
    values = np.random.default_rng(seed).normal(size=len(names)) * scale
    return rows["tokenizer"].map(dict(zip(names, values, strict=True)))


def two_parts(rows: pd.DataFrame) -> pd.Series:
    """Return quality that is half LNC's and half SRSS's doing."""
    shares = [(rows[name] - rows[name].mean()) / rows[name].std() for name in ("m_lnc", "m_srss")]
    return 50 - 5 * shares[0] - 5 * shares[1] + 0.2 * per_tokenizer(rows, seed=9)


def viv(rows: pd.DataFrame) -> pd.Series:
    return rows["m_viv"]


def turned(rows: pd.DataFrame) -> pd.Series:
    """Return quality that is the other way round under the second generator."""
    quality: pd.Series = rows["gfd_fashion_classifier"]
    return quality.where(rows["generator"] == "sit", 100 - quality)


def random_srss(rows: pd.DataFrame) -> pd.Series:
    return per_tokenizer(rows, seed=21)


def masked(ratio: float, spread: float = 0.02) -> Change:
    """Return a study with 4 plain and 4 masked tokenizers of one family, whose gFD are in this ratio."""

    def change(rows: pd.DataFrame) -> None:
        number = rows["tokenizer"].str[-2:].astype(int)
        rows["family"] = np.where(number < 8, "transformer", "conv")
        rows["cluster"] = np.where(number < 4, "mae", np.where(number < 8, "baseline", "repa"))
        factor = np.where(number < 4, ratio, 1.0) * np.exp(spread * per_tokenizer(rows))
        rows["gfd_fashion_classifier"] = 20 * factor + 5 * (rows["generator"] != "sit")

    return change


CONFIRMED: dict[str, Change | None] = {
    "C2": None, "C3": None, "C4": setting(gfd_fashion_classifier=two_parts), "C5": None, "C6": None, "C7": None, "C8": None,
    "C16": masked(0.5),
}  # fmt: skip

REFUTED: dict[str, list[Change]] = {
    "C2": [
        setting(m_viv=lambda rows: per_tokenizer(rows)),
        setting(m_viv=lambda rows: -rows["m_viv"]),  # as strong, the wrong way
        setting(gfd_fashion_classifier=turned),
    ],
    "C3": [setting(m_linear_probe=lambda rows: rows["m_lnc"] + per_tokenizer(rows, 0.1))],
    "C4": [],
    "C5": [setting(straightness=lambda rows: -rows["straightness"]), setting(efficiency=lambda rows: per_tokenizer(rows))],
    "C6": [setting(step_variance_correlation=lambda rows: per_tokenizer(rows, 0.1))],
    "C7": [setting(m_equivariance=viv), setting(m_equivariance=viv, m_uniformity=viv, m_ifid=viv)],
    "C8": [setting(m_gmm=lambda rows: -rows["m_gmm"]), setting(m_linear_probe=lambda rows: -rows["m_linear_probe"])],
    "C16": [masked(2.0)],
}  # fmt: skip

NEEDS = {
    "C2": "m_viv", "C3": "m_linear_probe", "C4": "m_srss", "C5": "efficiency", "C7": "m_ifid", "C8": "held_out_loss",
}  # fmt: skip


@pytest.mark.parametrize("identity", CONFIRMED)
def test_confirmed(identity: str, tmp_path: Path) -> None:
    found = judged(identity, study(tmp_path, CONFIRMED[identity]))
    assert found.verdict == "confirmed", found.why
    assert found.n == (4 if identity == "C16" else 24) and "24 tokenizers, 2 generators x 3 guidance" in found.scale
    assert found.source == "diffusability/results.csv"


@pytest.mark.parametrize(("identity", "place"), [(name, i) for name, many in REFUTED.items() for i in range(len(many))])
def test_refuted(identity: str, place: int, tmp_path: Path) -> None:
    found = judged(identity, study(tmp_path, REFUTED[identity][place]))
    assert found.verdict == "refuted", found.why


def test_a_second_predictor_that_says_nothing_is_no_gain(tmp_path: Path) -> None:
    """C4: in sample it would raise R^2; left out, it lowers it a little."""
    found = judged("C4", study(tmp_path, setting(m_srss=random_srss), noise=3))
    assert found.verdict != "confirmed" and found.value is not None and found.value < 0


@pytest.mark.parametrize("identity", CONFIRMED)
def test_too_few_tokenizers(identity: str, tmp_path: Path) -> None:
    change = masked(0.5) if identity == "C16" else CONFIRMED[identity]

    def few(rows: pd.DataFrame) -> None:
        if change is not None:
            change(rows)
        if identity == "C16":  # one training of each kind
            rows["cluster"] = rows["cluster"].where(rows["tokenizer"].str[-2:].astype(int).isin([0, 4]), "eq")

    found = judged(identity, study(tmp_path, few, tokenizers=8))
    assert found.verdict == "undecided" and "to decide: " in found.why, found.why


@pytest.mark.parametrize("identity", ["C2", "C4", "C5", "C7", "C8"])
def test_noise(identity: str, tmp_path: Path) -> None:
    """Quality that has nothing to do with the latents, over 14 tokenizers."""
    columns = ("gfd_fashion_classifier", "held_out_loss")
    change = setting(**{name: (lambda rows: 30 + per_tokenizer(rows, seed=3)) for name in columns})
    found = judged(identity, study(tmp_path, change, tokenizers=14))
    assert found.verdict != "confirmed"
    assert found.verdict == "undecided" or identity in ("C2", "C5"), found.why


def test_mask_modelling_with_trainings_that_disagree(tmp_path: Path) -> None:
    found = judged("C16", study(tmp_path, masked(0.5, spread=1.0)))
    assert found.verdict == "undecided" and found.low is not None and "mean rfd_fashion_classifier: mae" in found.why


@pytest.mark.parametrize("identity", CONFIRMED)
def test_missing(identity: str, tmp_path: Path) -> None:
    found = judged(identity, tmp_path)
    assert found.verdict == "undecided" and found.value is found.n is None and found.source == ""
    assert "diffusability/results.csv is not there" in found.why and found.command.startswith("latentlab study run ")
    if identity in NEEDS:
        study(tmp_path, setting(**{NEEDS[identity]: lambda rows: np.nan}))
        assert (
            judged(identity, tmp_path).why == f"missing: diffusability/results.csv has no numbers in {NEEDS[identity]}"
        )
    if identity == "C2":
        study(tmp_path, setting(m_viv=lambda rows: 1.0))
        assert "m_viv in diffusability/results.csv is the same" in judged(identity, tmp_path).why
    if identity == "C16":
        study(tmp_path, setting(cluster=lambda rows: "repa"))
        assert "both clusters, mae and baseline" in judged(identity, tmp_path).why
    if identity == "C8":
        study(tmp_path, setting(m_gmm=lambda rows: 5.0))
        assert (
            "no cell of diffusability/results.csv has 4 tokenizers over which both m_gmm and"
            in judged("C8", tmp_path).why
        )


def test_example_study_as_it_is(tmp_path: Path) -> None:
    """Quality follows VIV best, and so do straightness and efficiency; SRSS adds nothing to LNC; the rest is not measured."""
    example_study().write(tmp_path / "diffusability")
    words = {name: judged(name, tmp_path) for name in ("C2", "C3", "C4", "C5", "C7", "C8")}
    assert words["C5"].verdict == "confirmed" and words["C5"].value is not None and words["C5"].value < -0.9
    assert words["C2"].verdict != "refuted" and "0.25 [0.25, " in words["C2"].why  # the first of four
    assert words["C4"].verdict != "confirmed" and words["C4"].value is not None and words["C4"].value < 0
    assert {name for name, one in words.items() if one.value is None} == {"C3", "C7", "C8"}


def test_controls_and_failures_are_left_out(tmp_path: Path) -> None:
    """A dozen controls with absurd numbers and a failed cell without any change nothing."""
    clean = judged("C5", study(tmp_path / "a"))

    def polluted(rows: pd.DataFrame) -> pd.DataFrame:
        absurd = rows[rows["tokenizer"].str[-2:].astype(int) < 12].copy()
        absurd["control"], absurd["control_of"] = "orthogonal", absurd["tokenizer"]
        absurd["tokenizer"] += "-mixed"
        absurd["gfd_fashion_classifier"] = 1e6 * absurd["straightness"]
        failed = rows.iloc[[0]].assign(generator_seed=9, error="diverged")
        failed[[column.name for column in example_study(1).columns if column.role in ("quality", "trajectory")]] = (
            np.nan
        )
        return pd.concat([rows, absurd, failed], ignore_index=True)

    found = judged("C5", study(tmp_path / "b", polluted))
    assert (found.value, found.low, found.high, found.n) == (clean.value, clean.low, clean.high, 24)


def test_headline_judge_is_the_study_s_own_and_the_other_is_reported(tmp_path: Path) -> None:
    found = judged("C2", study(tmp_path, setting(gfd_efficientnet_lite0=lambda rows: per_tokenizer(rows))))
    assert found.verdict == "confirmed" and "judged by gfd_fashion_classifier" in found.why
    assert "mean r by other judges: gfd_efficientnet_lite0" in found.why


def test_a_folder_that_is_a_study_itself(tmp_path: Path) -> None:
    assert judged("C5", study(tmp_path) / "diffusability").verdict == "confirmed"


def test_damaged(tmp_path: Path) -> None:
    study(tmp_path)
    (tmp_path / "diffusability" / "columns.json").write_text("[")
    with pytest.raises(UserError, match=r"columns.json is not a readable JSON"):
        judged("C2", tmp_path)


# --- statistics -------------------------------------------------------------------------------------------------------


def test_correlations_are_those_of_scipy_in_every_cell_and_replicate(tmp_path: Path) -> None:
    """Means over seeds, two tokenizers without the measurement, integer values with ties."""
    table = example_study(10)
    rows = table.rows.assign(m_lnc=lambda r: (r["m_lnc"] * 20).round())
    rows.loc[rows["tokenizer"].isin(["tokenizer-01", "tokenizer-05"]), "m_lnc"] = np.nan
    cells = StudyCells.of(StudyTable(rows, table.columns), "")
    for method, scipy_method in (("spearman", stats.spearmanr), ("pearson", stats.pearsonr)):
        found = cells.correlation("m_lnc", "gfd_fashion_classifier", method)  # type: ignore[arg-type]
        assert found.n == 8 and found.table.shape == (6, len(cells.counts))
        for i, (generator, guidance) in enumerate([(g, s) for g in ("sit", "lightningdit") for s in (1.0, 1.5, 2.0)]):
            chosen = rows[(rows["generator"] == generator) & (rows["guidance"] == guidance)]
            means = chosen.groupby("tokenizer", sort=False)[["m_lnc", "gfd_fashion_classifier"]].mean()
            for j in (0, 1, 7):
                drawn = means.loc[means.index.repeat(cells.counts[j].astype(int))].dropna()
                assert found.table[i, j] == pytest.approx(scipy_method(*drawn.to_numpy().T).statistic)


def test_left_out_r2_is_that_of_fits_without_each() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(9, 2)), rng.normal(size=9)
    errors, means = [], []
    for i in range(9):
        others = np.delete(np.arange(9), i)
        design = np.column_stack([np.ones(8), x[others]])
        fitted = np.linalg.lstsq(design, y[others], rcond=None)[0]
        errors.append(y[i] - np.array([1, *x[i]]) @ fitted)
        means.append(y[i] - y[others].mean())
    counts = np.array([[1] * 9, [3, 0, 0, 1, 1, 1, 1, 1, 1]], dtype=float)
    expected = [1 - (c @ np.square(errors)) / (c @ np.square(means)) for c in counts]
    assert left_out_r2(counts, x, y) == pytest.approx(expected)


def test_rows_that_lack_one_number_keep_the_others() -> None:
    table = example_study(12)
    table.rows["error"] = "paths of it: not done yet"
    cells = StudyCells.of(table, "a command")
    assert len(cells.tokenizers) == 12 and cells.cells["sit", 1.0]["gfd_fashion_classifier"].notna().all()
