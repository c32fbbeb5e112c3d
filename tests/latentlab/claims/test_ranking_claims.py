"""C2 and C7 from made-up studies: what is ranked, over whom, and given what."""

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from .made_up_results import judged
from .made_up_study import TARGET, drawn_study, odd, per_tokenizer, setting, study

NAMES = ("viv", "lnc", "linear_probe", "lds", "cds", "srss", "sec")


def test_equivariance_that_is_least_is_not_refuted(tmp_path: Path) -> None:
    """C7, true by 0.05 to 0.1: the least of 9 estimates less that of equivariance has an interval below 0 in 2 of 12 draws."""
    strengths = {**dict.fromkeys(NAMES, 0.5), "ifid": 0.45, "uniformity": 0.45, "equivariance": 0.4}
    found = [judged("C7", drawn_study(tmp_path, seed, strengths)) for seed in range(12)]
    assert [one.verdict for one in found] == ["undecided"] * 12
    assert all(one.why.count(" less that of equivariance: ") == 9 for one in found)


def test_a_predictor_of_every_cell_is_not_refuted(tmp_path: Path) -> None:
    """C2, r = 0.55 in each of 6 cells: the least of six estimates has an interval below 0.5 in 4 of 8 draws."""
    strengths = {"viv": 0.9, "lnc": 0.3, "lds": 0.3, "cds": 0.3}
    found = [judged("C2", drawn_study(tmp_path, seed, strengths, cells=6, noise=1.2)) for seed in range(8)]
    assert [one.verdict for one in found] == ["undecided"] * 8
    assert all(one.why.count("r of VIV with gFD, sit at guidance ") == 6 for one in found)


@pytest.mark.parametrize("identity", ["C2", "C7"])
def test_measurements_that_hardly_vary_or_are_rare_are_not_listed(identity: str, tmp_path: Path) -> None:
    every = judged(identity, study(tmp_path, odd("m_cds", 5)))
    assert "not counted" not in every.why and ", cds " in every.why

    def rare(rows: pd.DataFrame) -> None:
        odd("m_cds", 4)(rows)
        rows["m_srss"] = rows["m_srss"].where(rows["tokenizer"] < "tokenizer-17")

    found = judged(identity, study(tmp_path, rare))
    told = "not counted: m_srss is there for 17 of 24 tokenizers, m_cds is the same for all but 4 of 24 tokenizers"
    assert told in found.why and ", cds " not in found.why and ", srss " not in found.why
    assert found.n == 24 and "as they lack" not in found.why  # what is not counted costs no tokenizer


@pytest.mark.parametrize("identity", ["C2", "C7"])
def test_only_what_the_publication_ranked_counts(identity: str, tmp_path: Path) -> None:
    """8 of these are; the number of modes is not, and says less than equivariance would have to."""
    found = judged(identity, study(tmp_path, setting(m_gmm=lambda rows: per_tokenizer(rows, seed=8))))
    assert found.verdict == "confirmed", found.why
    assert re.search(r"; measured beside them, not ranked by the publication: gmm -?0\.\d+; ", found.why)
    assert identity == "C7" or "(the upper third of 8)" in found.why
    assert "of gmm less" not in found.why and found.why.count(" less that of equivariance: ") == 7 * (identity == "C7")


@pytest.mark.parametrize("identity", ["C2", "C7"])
def test_measurements_are_compared_over_the_same_tokenizers(identity: str, tmp_path: Path) -> None:
    def change(rows: pd.DataFrame) -> None:
        rows.loc[rows["tokenizer"] == "tokenizer-05", ["m_lnc", "m_srss"]] = np.nan
        rows.loc[rows["tokenizer"] == "tokenizer-06", "m_gmm"] = np.nan  # does not count

    found = judged(identity, study(tmp_path, change))
    assert "; not counted, as they lack m_lnc, m_srss: tokenizer-05" in found.why and "tokenizer-06" not in found.why
    assert found.n == 23 and found.scale.startswith("23 tokenizers")


def test_nothing_is_compared_where_no_tokenizer_has_all(tmp_path: Path) -> None:
    def change(rows: pd.DataFrame) -> None:
        rows["m_ifid"] = rows["m_ifid"].where(rows["tokenizer"] < "tokenizer-12")
        rows["m_uniformity"] = rows["m_uniformity"].where(rows["tokenizer"] >= "tokenizer-12")

    found = judged("C7", study(tmp_path, change))
    assert found.verdict == "undecided" and "no tokenizer in diffusability/results.csv has all of m_viv, " in found.why


def test_what_turns_round_between_generators_predicts_nothing(tmp_path: Path) -> None:
    """Equivariance as strong as VIV in every cell, but the other way under the second generator."""

    def change(rows: pd.DataFrame) -> None:
        rows["m_equivariance"] = rows["m_viv"].where(rows["generator"] == "sit", 6 - 2 * rows["m_viv"])

    found = judged("C7", study(tmp_path, change))
    assert found.verdict == "confirmed", found.why
    told = re.search(r"mean r with gFD: (.*?);", found.why)
    assert told is not None
    listed = {name: float(value) for name, value in (one.split(" ") for one in told[1].split(", "))}
    assert abs(listed["equivariance"]) < 0.05 and listed["viv"] > 0.9 > -0.9 > listed["lnc"]
    assert list(listed.values()) == sorted(listed.values(), key=abs, reverse=True)

    def viv_turns(rows: pd.DataFrame) -> None:
        change(rows)
        rows["m_viv"], rows["m_equivariance"] = rows["m_equivariance"], rows["m_viv"].copy()

    second = judged("C2", study(tmp_path / "second", viv_turns))
    assert "place of VIV by |mean r| with gFD, as a share of the ranked: 1 [" in second.why


def test_ifid_is_given_what_the_judge_says_of_reconstructions(tmp_path: Path) -> None:
    """iFID follows rFD alone, and gFD contains much of it: raw it would predict as well as others."""

    def change(rows: pd.DataFrame) -> None:
        lost = per_tokenizer(rows, 8.0, seed=2)
        rows["rfd_fashion_classifier"] = 30 + lost
        rows["m_ifid"] = 30 + lost + per_tokenizer(rows, 2.0, seed=12)
        rows[TARGET] = rows[TARGET] + lost

    found = judged("C7", study(tmp_path, change))
    raw = re.search(r"r of ifid is given rfd_fashion_classifier, .*, raw (\S+);", found.why)
    told = re.search(r"mean r with gFD: .*ifid (-?[\d.e-]+)", found.why)
    assert raw is not None and told is not None and float(raw[1]) > 0.6 > 0.3 > abs(float(told[1]))
    assert "r of ifid is given rfd_fashion_classifier" in judged("C2", tmp_path).why

    def unknown(rows: pd.DataFrame) -> None:
        change(rows)
        rows["rfd_fashion_classifier"] = np.nan

    without = judged("C7", study(tmp_path / "without", unknown)).why
    assert f"ifid {raw[1]}" in without and "is given" not in without


def test_stable_is_said_to_be_a_level(tmp_path: Path) -> None:
    assert (
        "; stable is judged as a level in every cell, not as a spread over cells" in judged("C2", study(tmp_path)).why
    )


def test_a_cell_without_a_correlation_is_missing_from_every_cell(tmp_path: Path) -> None:
    """C2 holds everywhere else."""

    def change(rows: pd.DataFrame) -> None:
        lost = (rows["generator"] == "lightningdit") & (rows["guidance"] == 1.5) & (rows["tokenizer"] > "tokenizer-04")
        rows[TARGET] = rows[TARGET].where(~lost)

    found = judged("C2", study(tmp_path, change))
    told = (
        f"missing: r of VIV with gFD, lightningdit at guidance 1.5: 5 tokenizers have m_viv and {TARGET}, 6 are needed"
    )
    assert found.verdict == "undecided" and told in found.why
