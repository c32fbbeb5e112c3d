"""The primary question: rank correlations over all settings, held level, and the same tokenizers in all of them."""

from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from latentlab.study.analysis.analyze import analyse

from .analysed import PLAN, TARGET, only
from .example_study import example_study


@pytest.fixture(scope="module")
def whole():
    return analyse(example_study(), PLAN)


def primary(analysis, predictor, covariates=()):
    return only(analysis["primary"], predictor=predictor, covariates=list(covariates))


def means_by_setting(name):
    rows = example_study().rows
    own = rows[rows.control == ""]
    return [
        frame.groupby("tokenizer")[[name, TARGET, "decoder_sensitivity"]].mean()
        for _, frame in own.groupby(["generator", "guidance"])
    ]


def _mean_rank_correlation(name, left_out):
    frames = [one.drop(left_out)[[name, TARGET]].to_numpy().T for one in means_by_setting(name)]
    return np.mean([stats.spearmanr(*columns).statistic for columns in frames])


def test_the_primary_question_is_the_mean_of_rank_correlations_over_settings(whole):
    """Against scipy; held-out tokenizers count."""
    for name in PLAN.predictors:
        found = primary(whole, name)
        expected = [stats.spearmanr(one[name], one[TARGET]).statistic for one in means_by_setting(name)]
        assert (found["settings"], found["n"]) == (6, 24)
        assert found["value"] == pytest.approx(np.mean(expected)) and found["low"] <= found["value"] <= found["high"]
        without = {
            label: np.mean(
                [
                    stats.spearmanr(*one.drop(label)[[name, TARGET]].to_numpy().T).statistic
                    for one in means_by_setting(name)
                ]
            )
            for label in means_by_setting(name)[0].index
        }
        most = max(without, key=lambda label: abs(without[label] - found["value"]))
        assert found["without_it"] == pytest.approx(without[found["most_moved_by"]])
        assert abs(without[most] - found["value"]) == pytest.approx(abs(found["without_it"] - found["value"]))
    assert primary(whole, "m_viv")["p_adjusted"] == pytest.approx(3e-4) and primary(whole, "m_cds")["p"] > 0.05


def test_what_a_covariate_changes_has_an_interval(whole):
    """Partial less raw rank correlation, by residuals of ranks."""
    found = primary(whole, "m_lnc", ["decoder_sensitivity"])
    differences = []
    for one in means_by_setting("m_lnc"):
        ranks = one.rank().to_numpy()
        x, y = (ranks[:, i] - np.polyval(np.polyfit(ranks[:, 2], ranks[:, i], 1), ranks[:, 2]) for i in (0, 1))
        differences.append(np.corrcoef(x, y)[0, 1] - np.corrcoef(ranks[:, 0], ranks[:, 1])[0, 1])
    assert found["change"] == pytest.approx(np.mean(differences))
    assert found["value"] == pytest.approx(primary(whole, "m_lnc")["value"] + found["change"])
    assert found["change_low"] <= found["change"] <= found["change_high"] and "p" not in found


def test_the_primary_question_has_the_same_tokenizers_in_all_settings():
    study = example_study()
    lost = (study.rows.tokenizer == "tokenizer-02") & (study.rows.guidance == 1.5)
    rows = study.rows.assign(
        **{TARGET: study.rows[TARGET].where(~lost), "m_cds": np.where(study.rows.m_cds > 0, 1.0, 1.0)}
    )
    found = analyse(replace(study, rows=rows), PLAN)
    assert primary(found, "m_viv")["n"] == 23
    assert not [one for one in found["primary"] if one["predictor"] == "m_cds"]
    assert any(line.startswith("primary question: no correlation of m_cds") for line in found["warnings"])


def test_a_first_target_without_values_is_told():
    study = example_study(generators=("sit",))
    empty = replace(study, rows=study.rows.assign(**{TARGET: np.nan}))
    found = analyse(empty, PLAN.model_copy(update={"targets": (TARGET, "gfd_efficientnet_lite0")}))
    assert found["primary"] == found["reactions"] == [] and found["correlations"]
    assert f"primary question: no tokenizer has {TARGET}" in found["warnings"]
