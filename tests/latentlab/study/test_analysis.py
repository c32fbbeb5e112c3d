"""The analysis of the made-up study: known answers found, controls and held-out tokenizers kept apart, every doubt flagged."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from latentlab.errors import UserError
from latentlab.study.analysis.analyze import FILE, analyse, write_analysis
from latentlab.study.analysis.plan import AnalysisPlan, Dependence
from latentlab.study.table import TABLE_KEY, StudyTable, is_of_another_table

from .analysed import PLAN, TARGET, one_setting, only
from .example_study import example_study


@pytest.fixture(scope="module")
def whole():
    return analyse(example_study(), PLAN)


def raw(analysis, predictor, method="pearson", **facts):
    return only(analysis["correlations"], predictor=predictor, method=method, covariates=[], within="", **facts)


def test_known_answers(whole):
    """Quality follows m_viv alone: it correlates in the expected direction, and the empty measurement does not."""
    where = {"generator": "sit", "guidance": 1.5}
    viv, lnc, cds = (raw(whole, name, **where) for name in ("m_viv", "m_lnc", "m_cds"))
    assert viv["value"] > 0.99 and viv["p_adjusted"] == pytest.approx(3e-4)
    assert (viv["expected"], viv["agrees"]) == ("positive", True)
    assert lnc["value"] < -0.9 and (lnc["expected"], lnc["agrees"]) == ("negative", True)
    assert (lnc["predictor_better"], lnc["target_better"]) == ("higher", "lower")
    assert abs(cds["value"]) < 0.5 and cds["low"] < 0 < cds["high"]
    pair = only(whole["pairs"], first="m_viv", second="m_lnc", **where)
    assert pair["r2"] > pair["r2_adjusted"] > pair["r2_cross_validated"] > 0.98


def test_values_are_those_of_pandas_and_scipy(whole):
    """18 of 24 tokenizers are fitted (a quarter is held out), two generator seeds averaged."""
    rows = example_study().rows
    chosen = rows[(rows.generator == "lightningdit") & (rows.guidance == 2.0) & ~rows.held_out]
    means = chosen.groupby("tokenizer")[["m_lnc", TARGET, "decoder_sensitivity"]].mean()
    found = raw(whole, "m_lnc", "kendall", generator="lightningdit", guidance=2.0)
    assert found["n"] == 18 and found["value"] == pytest.approx(
        stats.kendalltau(means["m_lnc"], means[TARGET]).statistic
    )
    left = [
        means[name] - np.polyval(np.polyfit(means["decoder_sensitivity"], means[name], 1), means["decoder_sensitivity"])
        for name in ("m_lnc", TARGET)
    ]
    partial = only(
        whole["correlations"], predictor="m_lnc", method="pearson", covariates=["decoder_sensitivity"],
        generator="lightningdit", guidance=2.0,
    )  # fmt: skip
    assert partial["value"] == pytest.approx(np.corrcoef(*left)[0, 1])


def test_without_each_cluster(whole):
    found = raw(whole, "m_lnc", generator="sit", guidance=1.0)
    rows = example_study().rows
    chosen = rows[(rows.generator == "sit") & (rows.guidance == 1.0) & ~rows.held_out]
    means = chosen.groupby(["tokenizer", "cluster"])[["m_lnc", TARGET]].mean().reset_index()
    slow = {name: means[means.cluster != name][["m_lnc", TARGET]].corr().iloc[0, 1] for name in means.cluster.unique()}
    assert found["left_out"] == "cluster"
    assert found["left_out_low"] == pytest.approx(min(slow.values()))
    assert found["left_out_high"] == pytest.approx(max(slow.values()))
    assert slow[found["left_out_most"]] == max(slow.values(), key=lambda value: abs(value - found["value"]))


def test_within_groups(whole):
    found = only(
        whole["correlations"], predictor="m_viv", method="pearson", within="family", generator="sit", guidance=1.0
    )
    assert found["value"] > 0.99 and found["n"] == 24


def test_within_a_cluster_architectures_are_kept_apart():
    """Of the three tokenizers of every cluster two are convolutional; a level per architecture moves nothing."""
    study = one_setting()
    level = np.where(study.rows.family == "conv", 0.0, 50.0)
    moved = replace(study, rows=study.rows.assign(m_viv=study.rows.m_viv + level))
    told, same = (
        only(analyse(table, PLAN)["correlations"], predictor="m_viv", method="pearson", within="cluster")
        for table in (study, moved)
    )
    assert same["value"] == pytest.approx(told["value"], abs=1e-9) and same["p"] == told["p"]
    assert told["n"] == 16 and told["value"] > 0.9


def test_pairs_are_compared_over_the_same_tokenizers():
    """One tokenizer lacks one predictor: no pair is scored over it, so that no score is better for want of it."""
    study = one_setting()
    lacking = study.rows.m_cds.where(study.rows.tokenizer != "tokenizer-04")
    found = analyse(replace(study, rows=study.rows.assign(m_cds=lacking)), PLAN)
    assert {one["n"] for one in found["pairs"]} == {17}
    assert {one["n"] for one in found["prediction"] if one["scheme"] == "leave_one_out"} == {17}
    rare = study.rows.m_cds.where(study.rows.tokenizer < "tokenizer-12")
    found = analyse(replace(study, rows=study.rows.assign(m_cds=rare)), PLAN)
    assert {(one["first"], one["second"]): one["n"] for one in found["pairs"]} == {
        ("m_viv", "m_lnc"): 18, ("m_viv", "m_cds"): 9, ("m_lnc", "m_cds"): 9,
    }  # fmt: skip


def test_tokenizers_that_learned_from_a_judge_do_not_count_where_it_judges():
    """Cluster repa, with distances that no measurement explains, changes nothing that is fitted or correlated."""
    other = "gfd_efficientnet_lite0"
    plan = PLAN.model_copy(update={"targets": (TARGET, other), "mixed": True})
    study = one_setting()
    repa = study.rows.cluster == "repa"
    flattered = study.rows[other].where(~repa, -1e4)
    plain, found = (
        analyse(replace(study, rows=study.rows.assign(**{other: v})), plan) for v in (study.rows[other], flattered)
    )
    for part in ("correlations", "pairs", "prediction", "mixed", "noise"):
        assert found[part] == plain[part]
    left = 18 - study.rows[repa & ~study.rows.held_out].tokenizer.nunique()
    assert raw(found, "m_viv", target=other)["n"] == left < 18 == raw(found, "m_viv", target=TARGET)["n"]
    assert {one["n"] for one in found["pairs"] if one["target"] == other} == {left}


def test_rankings_of_a_judge_are_of_those_that_did_not_learn_from_it():
    """A cluster that it flatters in every setting would make all settings agree."""
    other = "gfd_efficientnet_lite0"
    plan = PLAN.model_copy(update={"targets": (other,)})
    study = example_study(generators=("sit",), noise=8.0)
    repa = study.rows.cluster == "repa"
    flattered = study.rows.assign(**{other: study.rows[other].where(~repa, -1e4)})
    without = analyse(replace(study, rows=study.rows[~repa]), plan)["stability"]
    assert analyse(replace(study, rows=flattered), plan)["stability"] == without and len(without) == 3


def test_a_judge_of_one_seed_leaves_nothing_missing():
    study = one_setting()
    dear = "gfd_efficientnet_lite0"
    plan = PLAN.model_copy(update={"targets": (TARGET, dear)})
    once = study.rows.assign(**{dear: study.rows[dear].where(study.rows.generator_seed == 0)})
    assert not [one for one in analyse(replace(study, rows=once), plan)["flags"] if one["flag"] == "missing"]
    failed = once.assign(
        error=np.where((once.generator_seed == 1) & (once.tokenizer == "tokenizer-04"), "it failed", "")
    )
    (flag,) = [one for one in analyse(replace(study, rows=failed), plan)["flags"] if one["flag"] == "missing"]
    assert (flag["column"], flag["tokenizers"]) == (dear, ["tokenizer-04"])


def test_predictions(whole):
    """Left-out and held-out tokenizers are predicted by m_viv within the noise of the mean of two seeds, 0.3 / sqrt 2."""
    where = {"generator": "sit", "guidance": 1.5, "predictors": ["m_viv"]}
    for scheme, n in (("leave_one_out", 18), ("leave_cluster_out", 18), ("leave_family_out", 18), ("held_out", 6)):
        found = only(whole["prediction"], scheme=scheme, **where)
        assert found["n"] == n == len(found["rows"]) and found["r2"] > 0.99 and found["rmse"] < 0.4
    held_out = {f"tokenizer-{i:02d}" for i in range(3, 24, 4)}
    assert {row["tokenizer"] for row in found["rows"]} == held_out
    best = [one for one in whole["prediction"] if len(one["predictors"]) == 2]
    assert all("optimistic" in one["warnings"][0] for one in best) and len(best) == 6 * 4


def test_judges_are_compared_over_tokenizers_that_learned_from_neither():
    """Against scipy's rank correlation of seed means, without the cluster that the second judge's features shaped."""
    other = "gfd_efficientnet_lite0"
    study = one_setting()
    plan = PLAN.model_copy(update={"targets": (TARGET, other)})
    (found,) = analyse(study, plan)["judges"]
    rows = study.rows[(study.rows.control == "") & (study.rows.cluster != "repa")]
    means = rows.groupby("tokenizer")[[TARGET, other]].mean()
    assert (found["first"], found["second"], found["n"]) == (TARGET, other, len(means))
    assert found["spearman"] == pytest.approx(stats.spearmanr(means[TARGET], means[other]).statistic, abs=1e-12)
    assert found["low"] <= found["spearman"] <= found["high"]
    assert found["without"] == sorted(set(study.rows.tokenizer[study.rows.cluster == "repa"]))
    assert analyse(study, PLAN)["judges"] == []


def test_noise_and_stability(whole):
    """Noise of the target is 0.3 by construction; guidance shifts all tokenizers alike, so rankings agree."""
    found = only(whole["noise"], generator="sit", guidance=1.0)
    assert found["within_sd"] == pytest.approx(0.3, rel=0.3) and found["repeats"] == 2 and found["n"] == 24
    assert 0.99 < found["ceiling"] < 1 and found["tokenizer_seed_sd"] is None
    assert len(whole["stability"]) == 15
    assert all(one["spearman"] > 0.95 and one["n"] == 24 for one in whole["stability"])


def test_seeds_of_tokenizers_have_their_own_noise():
    study = one_setting()
    again = study.rows.assign(tokenizer_seed=1, **{TARGET: study.rows[TARGET] + np.tile([3.0, 3.0, -3.0, -3.0], 12)})
    found = analyse(replace(study, rows=pd.concat([study.rows, again])), PLAN)["noise"][0]
    assert found["n"] == 48 and found["within_sd"] < 0.5
    assert found["tokenizer_seed_sd"] == pytest.approx(3 / 2**0.5, rel=0.01)


def test_controls_are_left_out_and_told_apart():
    study = one_setting()
    base = study.rows[study.rows.tokenizer == "tokenizer-00"]
    control = base.assign(
        tokenizer="mixed",
        control="orthogonal",
        control_of="tokenizer-00",
        m_cds=base.m_cds / 2,
        **{TARGET: 10 * base[TARGET]},
    )
    found = analyse(replace(study, rows=pd.concat([study.rows, control])), PLAN)
    plain = analyse(study, PLAN)
    assert found["correlations"] == plain["correlations"]
    quality = only(found["controls"], name=TARGET)
    assert (quality["control"], quality["of"], quality["role"]) == ("orthogonal", "tokenizer-00", "quality")
    assert quality["relative"] == pytest.approx(9) and quality["changed"] == pytest.approx(base[TARGET].mean() * 10)
    cds = only(found["controls"], name="m_cds")
    assert cds["relative"] == pytest.approx(-0.5) and (cds["generator"], cds["guidance"]) == ("", None)
    assert only(found["controls"], name="m_viv")["relative"] == 0


def test_a_control_is_compared_with_the_training_it_was_made_of():
    study = one_setting()
    first = study.rows[study.rows.tokenizer == "tokenizer-00"]
    other = first.assign(tokenizer_seed=1, m_viv=3 * first.m_viv, **{TARGET: 3 * first[TARGET]})
    copy = first.assign(tokenizer="same", control="channel_permutation", control_of="tokenizer-00")
    found = analyse(replace(study, rows=pd.concat([study.rows, other, copy])), PLAN)
    assert {one["relative"] for one in found["controls"]} == {0}
    assert only(found["controls"], name="m_viv")["base"] == first.m_viv.iloc[0]
    of_another = copy.assign(tokenizer_seed=2)
    found = analyse(replace(study, rows=pd.concat([study.rows, other, of_another])), PLAN)
    assert not found["controls"] and "the same seeds" in found["warnings"][-1]


def test_a_control_without_its_base_is_told():
    study = one_setting()
    control = study.rows[:1].assign(tokenizer="mixed", control="orthogonal", control_of="gone")
    found = analyse(replace(study, rows=pd.concat([study.rows, control])), PLAN)
    assert not found["controls"] and "no row of its base 'gone'" in found["warnings"][-1]


def test_missing_cells_are_left_out_and_named():
    study = one_setting()
    lost = study.rows[TARGET].where(study.rows.tokenizer != "tokenizer-04")
    rows = study.rows.assign(**{TARGET: lost})
    found = analyse(replace(study, rows=rows), PLAN)
    record = raw(found, "m_viv")
    assert record["n"] == 17 and record["warnings"] == ["without tokenizer-04: a value is missing"]
    flag = only(found["flags"], flag="missing")
    assert (flag["column"], flag["tokenizers"]) == (TARGET, ["tokenizer-04"]) and "2 cells" in flag["text"]


def test_a_setting_that_a_judge_did_not_judge_is_named_and_nothing_is_computed_of_it():
    study = example_study(generators=("sit",))
    dear = "gfd_efficientnet_lite0"
    rows = study.rows.assign(**{dear: study.rows[dear].where(study.rows.guidance == 1.0)})
    plan = PLAN.model_copy(update={"targets": (TARGET, dear)})
    found = analyse(replace(study, rows=rows), plan)
    others = analyse(study, PLAN)
    for part in ("correlations", "noise", "stability"):
        of_judge = [one for one in found[part] if one["target"] == dear]
        assert [one for one in found[part] if one not in of_judge] == others[part]
        assert {one.get("guidance") for one in of_judge} <= {1.0}
    assert [one for one in found["correlations"] if one["target"] == dear]
    scales = sorted(set(study.rows.guidance) - {1.0})
    told = [f"{dear}: no value with sit at guidance {scale:g}" for scale in scales]
    assert [one["text"] for one in found["flags"] if one["flag"] == "missing"] == told
    assert not [line for line in found["warnings"] if "not computed" in line]


def test_a_tokenizer_without_a_row_is_named():
    study = example_study(generators=("sit",))
    gone = (study.rows.tokenizer == "tokenizer-01") & (study.rows.guidance == 2.0)
    found = analyse(replace(study, rows=study.rows[~gone]), PLAN)
    assert only(found["flags"], flag="missing")["text"] == "no row with sit at guidance 2: tokenizer-01"


def test_constant_columns_are_flagged_and_not_correlated():
    found = analyse(one_setting(m_cds=0.3), PLAN)
    assert only(found["flags"], flag="constant")["column"] == "m_cds"
    assert not [one for one in found["correlations"] if one["predictor"] == "m_cds"]
    assert any(line.startswith("m_cds with gfd_fashion_classifier: not computed") for line in found["warnings"])


def test_doubles_are_flagged():
    study = one_setting()
    again = study.rows[study.rows.tokenizer == "tokenizer-05"].assign(tokenizer="copy")
    found = analyse(replace(study, rows=pd.concat([study.rows, again])), PLAN)
    assert only(found["flags"], flag="duplicated")["tokenizers"] == ["tokenizer-05", "copy"]


def test_mixed_sample_sizes_are_flagged():
    found = analyse(one_setting(n_samples=np.where(np.arange(48) < 4, 1000, 5000)), PLAN)
    assert "n_samples is 1000, 5000" in only(found["flags"], flag="sample sizes")["text"]
    assert raw(found, "m_viv")["warnings"] == ["mixed sample sizes: n_samples is 1000, 5000"]


def test_dependent_judges_are_flagged():
    plan = PLAN.model_copy(update={"targets": (TARGET, "gfd_efficientnet_lite0")})
    found = analyse(one_setting(), plan)
    flag = only(found["flags"], flag="dependent judge")
    assert flag["column"] == "gfd_efficientnet_lite0" and flag["tokenizers"] == [
        f"tokenizer-{i:02d}" for i in (2, 10, 18)
    ]
    assert raw(found, "m_viv", target=TARGET)["warnings"] == []
    assert "dependent judge" in raw(found, "m_viv", target="gfd_efficientnet_lite0")["warnings"][0]
    other = plan.model_copy(update={"dependent": (Dependence(judge="fashion", clusters=("kl",)),)})
    assert only(analyse(one_setting(), other)["flags"], flag="dependent judge")["column"] == TARGET


def test_few_points_are_warned_about_and_fewer_refused():
    rows = one_setting().rows
    seven = analyse(StudyTable(rows[rows.tokenizer < "tokenizer-09"], example_study().columns), PLAN)
    assert raw(seven, "m_viv")["n"] == 7 and raw(seven, "m_viv")["warnings"] == ["only 7 points"]
    with pytest.raises(UserError, match=r"at least 5 tokenizers .* got 4"):
        analyse(StudyTable(rows[rows.tokenizer < "tokenizer-05"], example_study().columns), PLAN)


def test_a_target_that_explains_itself_is_refused():
    with pytest.raises(UserError, match="m_viv is a target"):
        AnalysisPlan(targets=("m_viv",), predictors=("m_viv",))


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        (AnalysisPlan(targets=("gfd_fashion",)), "Did you mean gfd_fashion_classifier"),
        (AnalysisPlan(predictors=("cluster",)), "must hold numbers, but one of its values is 'baseline'"),
        (AnalysisPlan(held_out=("tokenizer-99",)), "unknown held-out tokenizer"),
    ],
)
def test_plans_that_do_not_fit_the_table_are_refused(plan, message):
    with pytest.raises(UserError, match=message):
        analyse(one_setting(), plan)


def test_infinite_values_are_refused():
    with pytest.raises(UserError, match=r"m_viv holds an infinite value \(tokenizer tokenizer-00\)"):
        analyse(one_setting(m_viv=np.inf), PLAN)


def test_mixed_slopes():
    study = one_setting()
    found = analyse(study, PLAN.model_copy(update={"mixed": True, "predictors": ("m_viv",), "groups": ("cluster",)}))
    record = only(found["mixed"], predictor="m_viv", group="cluster")
    assert record["value"] == pytest.approx(1, abs=0.02) and record["n"] == 18


def test_order_of_rows_does_not_matter():
    study = one_setting()
    shuffled = replace(study, rows=study.rows.sample(frac=1, random_state=0))
    first, second = (raw(analyse(table, PLAN), "m_lnc") for table in (study, shuffled))
    assert (
        second["value"] == pytest.approx(first["value"], abs=1e-12)
        and second["left_out_most"] == first["left_out_most"]
    )


def test_written_and_read_again(whole, tmp_path):
    table = tmp_path / "results.csv"
    table.write_text("a,b\n1,2\n")
    write_analysis(whole, tmp_path / FILE, table)
    told = json.loads((tmp_path / FILE).read_text())
    assert not is_of_another_table(told, table)
    assert {name: value for name, value in told.items() if name != TABLE_KEY} == whole
    table.write_text("a,b\n1,3\n")
    assert is_of_another_table(told, table)


def test_logarithms_are_analysed_and_predictions_told_in_the_units_of_the_column():
    """Quality exp(ease): Pearson of logarithms is that of the plain study, ranks are the same, scores are of logarithms."""
    study = one_setting()
    plan = PLAN.model_copy(update={"logarithms": (TARGET,)})
    grown = replace(study, rows=study.rows.assign(**{TARGET: np.exp(study.rows[TARGET] / 10)}))
    plain, found = analyse(study, PLAN), analyse(grown, plan)
    for method in ("pearson", "spearman"):
        assert raw(found, "m_lnc", method)["value"] == pytest.approx(raw(plain, "m_lnc", method)["value"], abs=1e-12)
    assert found["noise"][0]["within_sd"] == pytest.approx(plain["noise"][0]["within_sd"] / 10)
    told, same = (only(one["prediction"], scheme="leave_one_out", predictors=["m_lnc"]) for one in (found, plain))
    assert told["r2"] == pytest.approx(same["r2"]) and told["rmse"] == pytest.approx(same["rmse"] / 10)
    for name in ("observed", "predicted"):
        np.testing.assert_allclose(
            [row[name] for row in told["rows"]], [np.exp(row[name] / 10) for row in same["rows"]]
        )
    negative = replace(study, rows=study.rows.assign(**{TARGET: -1.0}))
    with pytest.raises(UserError, match=r"has no logarithm: it holds -1 \(tokenizer tokenizer-00\)"):
        analyse(negative, plan)


# --- what is doubtful -------------------------------------------------------------------------------------------------


def test_a_group_without_which_little_remains_is_not_predicted():
    """Of 18 tokenizers 16 in one family: the others fit no line worth the name."""
    study = one_setting()
    family = np.where(study.rows.tokenizer < "tokenizer-03", "transformer", "conv")
    found = analyse(replace(study, rows=study.rows.assign(family=family)), PLAN)
    assert not [one for one in found["prediction"] if one["scheme"] == "leave_family_out"]
    assert any("without conv only 3 of 18 tokenizers remain to be fitted" in line for line in found["warnings"])


def test_few_orders_within_groups_are_told():
    """Two groups of two and one of three have 2 x 2 x 6 orders; single members have none."""
    study = one_setting()
    number = study.rows.tokenizer.str[-2:].astype(int)
    small = np.select([number < 2, number < 4, number < 7], ["a", "b", "c"], study.rows.tokenizer)
    plan = PLAN.model_copy(update={"groups": ("cluster",), "predictors": ("m_viv",)})
    found = analyse(replace(study, rows=study.rows.assign(cluster=small)), plan)
    record = only(found["correlations"], within="cluster", method="pearson")
    assert (record["n"], record["orders"]) == (7, 24)
    assert "only 24 orders within groups: p is at least 0.042, over all predictors 0.042" in record["warnings"]


def test_a_predictor_of_the_judge_is_told_and_reconstruction_is_held_level_by_the_target_s_own_judge():
    dear = "gfd_efficientnet_lite0"
    study = one_setting()
    rows = study.rows.assign(rfd_efficientnet_lite0=study.rows.rfd_fashion_classifier**2 + study.rows.m_cds)
    column = replace(study.column("rfd_fashion_classifier"), name="rfd_efficientnet_lite0")
    table = replace(study, rows=rows, columns=(*study.columns, column))
    plan = PLAN.model_copy(update={
        "targets": (TARGET, dear), "covariates": ("rfd_fashion_classifier",), "predictors": ("m_viv", "rfd_fashion_classifier"),
    })  # fmt: skip
    found = analyse(table, plan)
    given = {one["target"]: one["covariates"] for one in found["correlations"] if one["covariates"]}
    assert given == {TARGET: ["rfd_fashion_classifier"], dear: ["rfd_efficientnet_lite0"]}
    told = "by the judge of the target, whose reconstruction error is in both"
    assert told in raw(found, "rfd_fashion_classifier", target=TARGET)["warnings"]
    assert told not in raw(found, "rfd_fashion_classifier", target=dear)["warnings"]
    assert told not in raw(found, "m_viv", target=TARGET)["warnings"]


def test_a_judge_without_repeats_says_that_it_knows_no_noise():
    dear = "gfd_efficientnet_lite0"
    study = one_setting()
    once = study.rows.assign(**{dear: study.rows[dear].where(study.rows.generator_seed == 0)})
    found = analyse(replace(study, rows=once), PLAN.model_copy(update={"targets": (TARGET, dear)}))
    assert [one["target"] for one in found["noise"]] == [TARGET]
    assert any(line.startswith(f"noise of {dear}: not computed: no trained tokenizer") for line in found["warnings"])
