"""Reactions of measurements on made-up tables: by hand, blind, moved alone, made easier for nothing, and what is left out."""

import io
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from latentlab.study.analysis.analyze import analyse
from latentlab.study.analysis.plan import AnalysisPlan
from latentlab.study.analysis.reaction_words import in_words, of_card
from latentlab.study.analysis.reactions import reaction_records
from latentlab.study.analysis.report import print_analysis
from latentlab.study.table import Column, StudyTable

from .example_study import example_study
from .test_analysis import PLAN as PLAN_OF_EXAMPLE
from .test_analysis import TARGET, only

PLAN = AnalysisPlan(targets=("gfd",), predictors=("m_viv",))
SHIFT = {("sit", 1.0): 0.0, ("sit", 2.0): 5.0, ("dit", 1.0): 40.0}
"""What a setting adds to the target of all tokenizers."""


def rows_of(label, quality, measured, seeds=(0, 1), generator_noise=0.2, training_noise=0.5, **facts):
    """Return the rows of a tokenizer: two trainings at +- training_noise, each with two generators at +- generator_noise."""
    known = {"cluster": "kl", "family": "conv", "control": "", "control_of": "", "held_out": False, **facts}
    return [
        {
            **known, "tokenizer": label, "tokenizer_seed": seed, "generator": generator, "guidance": guidance,
            "generator_seed": j, "m_viv": measured,
            "gfd": quality + shift + sign(seed, seeds) * training_noise + (-1) ** j * generator_noise,
        }
        for seed in seeds for (generator, guidance), shift in SHIFT.items() for j in (0, 1)
    ]  # fmt: skip


def sign(seed, seeds):
    return (-1) ** seed if len(seeds) > 1 else 0


def control(label, quality, measured, of="plain", **facts):
    """Return a control of the first training of a tokenizer."""
    return rows_of(
        label, quality, measured, seeds=(0,), cluster="control", control="orthogonal", control_of=of, **facts
    )


def plain():
    return rows_of("plain", 10, 1.0, cluster="baseline")


def others():
    """Two tokenizers that differ from the baseline in both: with it, measurements 1, 2, 3 of standard deviation 1."""
    return [*rows_of("kl-a", 14, 2.0, seeds=(0,)), *rows_of("kl-b", 18, 3.0)]


def study(*more, better="lower"):
    columns = (Column("m_viv", "measurement", "", better=better), Column("gfd", "quality", "", better="lower"))
    return StudyTable(pd.DataFrame([*plain(), *others(), *(row for one in more for row in one)]), columns)


def reactions(table, plan=PLAN):
    warnings: list[str] = []
    return list(reaction_records(table, plan, warnings)), warnings


def of(label, table, plan=PLAN):
    return only(reactions(table, plan)[0], tokenizer=label)


def test_records_by_hand():
    """The base of a control is its own training (10.5, measured 0.9); the baseline is the mean of both (10, measured 1)."""
    table = study(control("ruined", 30, 1.7))
    first = (table.rows.tokenizer == "plain") & (table.rows.tokenizer_seed == 0)
    second = (table.rows.tokenizer == "plain") & (table.rows.tokenizer_seed == 1)
    table.rows.loc[first, "m_viv"], table.rows.loc[second, "m_viv"] = 0.9, 1.1
    records, warnings = reactions(table)
    assert not warnings and [one["tokenizer"] for one in records] == ["ruined", "kl-a", "kl-b"]
    assert records[0] == {
        "predictor": "m_viv", "kind": "control", "tokenizer": "ruined", "of": "plain", "target": "gfd",
        "moved_sd": pytest.approx(1.7 - 0.9), "measurement": "harder",
        "quality_change": pytest.approx(30 - 10.5),
        "quality_error": pytest.approx(0.2 * 2**0.5),  # seeds at +-0.2: sd 0.2 sqrt 2; two against two: times sqrt(1/2 + 1/2)
        "quality": "worse", "says": "agrees",
    }  # fmt: skip
    assert records[1] == {
        "predictor": "m_viv", "kind": "training", "tokenizer": "kl-a", "of": "baseline of conv", "target": "gfd",
        "moved_sd": pytest.approx(1.0), "measurement": "harder",
        "quality_change": pytest.approx(4),
        "quality_error": pytest.approx((4 * 0.5**2 / (5 - 3) * (1 / 1 + 1 / 2)) ** 0.5),  # 5 trainings of 3 tokenizers
        "quality": "worse", "says": "agrees",
    }  # fmt: skip


def test_noise_is_that_of_means_over_the_settings_compared():
    """Noise of one generator counts a third where it has one of three settings, all where nothing else is compared."""
    table = study(control("same", 10.5, 1.0), control("some", 10.5, 1.0))
    table = replace(table, rows=table.rows[(table.rows.tokenizer != "some") | (table.rows.generator == "dit")])
    noisy = table.rows.generator == "dit"
    moved = table.rows.gfd + np.where(noisy, 3.0, 0.0) * (-1.0) ** table.rows.generator_seed
    noisier = replace(table, rows=table.rows.assign(gfd=moved))
    assert of("same", noisier)["quality_error"] == pytest.approx((0.2 + 3.0 / 3) * 2**0.5)
    assert of("some", noisier)["quality_error"] == pytest.approx((0.2 + 3.0) * 2**0.5)


def test_the_noise_of_controls_does_not_count():
    """A ruined one may be far noisier than what is told apart."""
    assert of("calm", study(control("calm", 10.5, 1.0), control("wild", 30, 1.0, generator_noise=9.0))) == of(
        "calm", study(control("calm", 10.5, 1.0))
    )


@pytest.mark.parametrize(
    ("quality", "measured", "says"),
    [
        (30, 1.0, "blind"),  # ruined, and not seen
        (1, 1.0, "blind"),
        (10.5, 3.0, "moves alone"),
        (10.5, 1.0, "agrees"),
        (30, 3.0, "agrees"),
        (1, 0.0, "agrees"),
        (30, 0.0, "opposite"),  # worse, and called easier
        (1, 3.0, "opposite"),
    ],
)
def test_what_a_control_says(quality, measured, says):
    assert of("mixed", study(control("mixed", quality, measured)))["says"] == says


def test_a_regularised_training_that_makes_a_measurement_easier_for_nothing():
    table = study(rows_of("gamed", 10.3, -1.0), control("power", 10.5, 9.0))
    found = of("gamed", table)
    assert (found["kind"], found["measurement"], found["quality"]) == ("training", "easier", "same")
    assert found["says"] == "moves alone"
    words = in_words(reactions(table)[0])
    assert words == (
        "blind to none; moves alone under power, gamed (made easier without better generation by gamed); opposite in none; "
        "agrees in 2 of 4"
    )


@pytest.mark.parametrize(("errors", "quality"), [(1.9, "same"), (2.1, "worse"), (-1.9, "same"), (-2.1, "better")])
def test_changes_below_two_errors_are_noise(errors, quality):
    assert of("near", study(control("near", 10.5 + errors * 0.2 * 2**0.5, 1.0)))["quality"] == quality
    sd = 4 * 0.5**2 / (5 - 3)  # the new tokenizer, trained once, adds none
    assert of("near", study(rows_of("near", 10 + errors * (sd * 1.5) ** 0.5, 1.0, seeds=(0,))))["quality"] == quality


@pytest.mark.parametrize(("moved", "way"), [(0.49, "same"), (0.51, "harder"), (-0.49, "same"), (-0.51, "easier")])
def test_half_a_standard_deviation_is_a_move(moved, way):
    """Of tokenizers, means over seeds; controls do not make it larger."""
    found = of("near", study(control("near", 10.5, 1 + moved), control("far", 10.5, 1000.0)))
    assert found["measurement"] == way and found["moved_sd"] == pytest.approx(moved)


def test_a_move_within_the_intervals_is_none():
    table = study(control("near", 10.5, 2.0), control("bare", 10.5, 2.0))
    for width, way in ((0.45, "harder"), (0.55, "same")):
        known = table.rows.m_viv.where(table.rows.tokenizer != "bare")
        rows = table.rows.assign(m_viv_low=known - width, m_viv_high=known + width)
        with_ends = replace(table, rows=rows)
        assert of("near", with_ends)["measurement"] == way and of("kl-b", with_ends)["measurement"] == "harder"
        assert of("bare", with_ends)["measurement"] == "harder"  # one interval alone says nothing


def test_higher_may_be_easier():
    assert of("up", study(control("up", 1, 3.0), better="higher"))["measurement"] == "easier"


def test_a_measurement_without_direction_agrees_when_it_moves_with_quality():
    cases = {"both": (30, -4.0), "neither": (10.5, 1.0), "quality": (1, 1.0), "alone": (10.5, -4.0)}
    records, _ = reactions(study(*(control(label, *case) for label, case in cases.items()), better="none"))
    told = {one["tokenizer"]: (one["measurement"], one["says"]) for one in records if one["kind"] == "control"}
    assert told == {
        "both": ("moved", "agrees"), "neither": ("same", "agrees"),
        "quality": ("same", "blind"), "alone": ("moved", "moves alone"),
    }  # fmt: skip


def test_without_repeats_nothing_is_told_and_that_is_said():
    table = study(control("ruined", 30, 1.0), control("kept", 10, 1.0))
    one_generator = replace(table, rows=table.rows[table.rows.generator_seed == 0])
    records, warnings = reactions(one_generator)
    assert {one["kind"] for one in records} == {"training"}
    assert warnings == ["reactions to ruined, kept: not told, as nothing was judged with two generator seeds"]
    one_training = replace(table, rows=table.rows[table.rows.tokenizer_seed == 0])
    records, warnings = reactions(one_training)
    assert {one["kind"] for one in records} == {"control"}
    assert warnings == ["reactions to kl-a, kl-b: not told, as no tokenizer was trained twice"]


def test_only_settings_that_both_have_are_compared():
    """Settings differ by far more than tokenizers; a repeat that lacks one of them does not count."""
    table = study(control("some", 10.5, 1.0), control("broken", 10.5, 1.0))
    rows = table.rows
    rows = rows[(rows.tokenizer != "some") | (rows.generator == "dit")]
    rows = rows[(rows.tokenizer != "broken") | (rows.generator == "dit") | (rows.generator_seed == 0)]
    table = replace(table, rows=rows)
    assert of("some", table)["quality_change"] == pytest.approx(0)
    broken = of("broken", table)
    assert broken["quality_change"] == pytest.approx(0) and broken["quality_error"] == pytest.approx(
        0.4
    )  # one against one
    unjudged = rows.gfd.where(rows.tokenizer != "kl-a", np.nan)
    assert not [
        one for one in reactions(replace(table, rows=rows.assign(gfd=unjudged)))[0] if one["tokenizer"] == "kl-a"
    ]
    elsewhere = rows.assign(generator=rows.generator.where(rows.tokenizer != "kl-a", "other"))
    _, warnings = reactions(replace(table, rows=elsewhere))
    assert warnings == ["reactions to kl-a: not told, as no repeat of each side was judged in all settings of both"]


def test_families_are_compared_with_their_own_baseline():
    table = study(rows_of("tokens", 10, 3.0, family="1-d"), rows_of("plain-2", 20, 2.0, seeds=(0,), cluster="baseline"))
    records, warnings = reactions(table)
    assert {one["tokenizer"] for one in records} == {"kl-a", "kl-b"} and not warnings
    assert only(records, tokenizer="kl-b")["quality_change"] == pytest.approx(18 - (2 * 10 + 20) / 3)


def test_held_out_tokenizers_take_part():
    held_out = [{**row, "held_out": True} for row in rows_of("late", 14, 2.0)]
    assert of("late", study(held_out))["says"] == "agrees"


def test_tokenizers_that_learned_from_the_judge_are_left_out_with_their_controls():
    aligned = rows_of("repa", 5, 0.0, cluster="repa", generator_noise=50.0, training_noise=50.0)
    table = study(aligned, control("of-repa", 30, 1.0, of="repa"), control("ruined", 30, 1.0))
    dependent = PLAN.model_copy(update={"dependent": (PLAN.dependent[0].model_copy(update={"judge": "gfd"}),)})
    assert {one["tokenizer"] for one in reactions(table)[0]} == {"repa", "of-repa", "ruined", "kl-a", "kl-b"}
    records, warnings = reactions(table, dependent)
    assert {one["tokenizer"] for one in records} == {"ruined", "kl-a", "kl-b"} and not warnings
    assert {one["quality"] for one in records} == {"worse"}  # and their noise is not that of the others


def test_missing_and_constant_measurements():
    table = study(control("ruined", 30, 1.0))
    lacking = replace(table, rows=table.rows.assign(m_viv=table.rows.m_viv.where(table.rows.tokenizer != "kl-a")))
    records, warnings = reactions(lacking)
    assert {one["tokenizer"] for one in records} == {"ruined", "kl-b"} and not warnings
    records, warnings = reactions(replace(table, rows=table.rows.assign(m_viv=0.1)))
    assert not records and warnings == ["reactions of m_viv: not told, as no two tokenizers differ in it"]


def test_only_measurements_and_decoders_react():
    names = ("rfd", "straight", "decoder_sensitivity")
    told = [
        Column(name, role, "") for name, role in zip(names, ("reconstruction", "trajectory", "decoder"), strict=True)
    ]
    table = study(control("ruined", 30, 1.0))
    rows = table.rows.assign(**dict.fromkeys(names, table.rows.m_viv))
    plan = PLAN.model_copy(update={"predictors": ("m_viv", *names)})
    records, _ = reactions(StudyTable(rows, (*table.columns, *told)), plan)
    assert {one["predictor"] for one in records} == {"m_viv", "decoder_sensitivity"}


def with_controls():
    """Return the example with a second training of two tokenizers and two controls of the first: ruined, and far in lnc."""
    table = example_study(generators=("sit",))
    first = table.rows[table.rows.tokenizer == "tokenizer-16"]
    again = table.rows[table.rows.tokenizer.isin(["tokenizer-16", "tokenizer-20"])].assign(tokenizer_seed=1)
    again[TARGET] *= 1.01
    made = {"control": "orthogonal", "control_of": "tokenizer-16"}
    ruined = first.assign(tokenizer="ruined", **made, **{TARGET: 10 * first[TARGET]})
    far = first.assign(tokenizer="far", **made, m_lnc=first.m_lnc - 10)
    return replace(table, rows=pd.concat([table.rows, again, ruined, far]))


@pytest.fixture(scope="module")
def whole():
    return analyse(with_controls(), PLAN_OF_EXAMPLE.model_copy(update={"logarithms": (TARGET,)}))


def test_an_analysis_tells_them_on_its_scale(whole):
    ruined = only(whole["reactions"], predictor="m_viv", tokenizer="ruined")
    assert ruined["quality_change"] == pytest.approx(np.log(10)) and ruined["says"] == "blind"
    assert only(whole["reactions"], predictor="m_lnc", tokenizer="far")["says"] == "moves alone"
    by_kind = {
        kind: {one["of"] for one in whole["reactions"] if one["kind"] == kind} for kind in ("control", "training")
    }
    assert by_kind == {"control": {"tokenizer-16"}, "training": {"baseline of conv", "baseline of transformer"}}


def test_they_are_printed_by_measurement(whole):
    """Those that always agree are counted, the others say where they do not."""
    printed = io.StringIO()
    one = {"tokenizer": "t", "kind": "control", "measurement": "same"}
    says = {"m_viv": "agrees", "m_lnc": "blind"}
    made_up = [{**one, "predictor": predictor, "says": told} for predictor, told in says.items()]
    print_analysis({**whole, "reactions": made_up}, printed)
    lines = printed.getvalue().splitlines()
    assert "m_lnc: blind to t; moves alone under none; opposite in none; agrees in 0 of 1" in lines
    assert "1 of 2 measurements agree with quality in every comparison with a base or baseline: m_viv" in lines
    assert not [line for line in lines if line.startswith("m_viv: ")]


def test_a_card_tells_of_a_measurement_and_its_companions():
    one = {"tokenizer": "t", "kind": "control", "says": "agrees"}
    records = [
        {**one, "predictor": "m_gmm"},
        {**one, "predictor": "m_gmm.NLL@2", "says": "opposite"},
        {**one, "predictor": "m_gm"},
    ]
    assert of_card(records, "gmm") == (
        "agrees with quality in all comparisons (1). "
        "Its NLL@2: blind to none; moves alone under none; opposite in t; agrees in 0 of 1."
    )
    assert of_card(records, "viv") == "not compared with quality."
