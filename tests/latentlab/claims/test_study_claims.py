"""C2 to C8 and C16 from made-up studies: confirmed, refuted, too noisy, too few, missing."""

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from latentlab.errors import UserError
from latentlab.study.table import Column

from ..study.example_study import example_study
from .made_up_results import judged
from .made_up_study import TARGET, Change, drawn_study, odd, per_tokenizer, setting, study


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


def test_two_that_add_to_each_other_may_do_so_either_way(tmp_path: Path) -> None:
    """C4, SRSS lower where latents are easier."""
    turned_srss = setting(gfd_fashion_classifier=two_parts, m_srss=lambda rows: -rows["m_srss"])
    found = judged("C4", study(tmp_path, turned_srss))
    assert found.verdict == "confirmed", found.why
    assert "r of SRSS with gFD, given LNC was expected below 0" in found.why
    assert "r of LNC with gFD, given SRSS was expected" not in found.why


def test_a_second_predictor_that_is_known_to_say_nothing_refutes(tmp_path: Path) -> None:
    """C4: 200 tokenizers, so that the interval lies within -0.3..0.3."""
    noise = setting(m_srss=lambda rows: per_tokenizer(rows, seed=21))
    found = judged("C4", study(tmp_path, noise, tokenizers=200, noise=3))
    assert found.verdict == "refuted", found.why
    assert "against below 0, refuted above -0.3 (adds anything) or against above 0, refuted below 0.3" in found.why


def test_a_second_predictor_that_says_nothing_adds_nothing(tmp_path: Path) -> None:
    """C4: in sample it would raise R^2; left out, it lowers it a little, which does not refute."""
    found = judged("C4", study(tmp_path, setting(m_srss=lambda rows: per_tokenizer(rows, seed=21)), noise=3))
    assert found.verdict == "undecided" and found.effect == "r of SRSS with gFD, given LNC"
    told = re.search(r"prediction of left-out .*: together (\S+), LNC (\S+), SRSS (\S+);", found.why)
    assert told is not None and float(told[3]) < float(told[1]) < float(told[2])


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
    assert found.verdict == "undecided" and found.low is not None


def test_reconstruction_beside_mask_modelling_is_of_its_family_and_of_trainings(tmp_path: Path) -> None:
    """Masked ones of another family reconstruct otherwise; the second seed of one has half of its rows."""

    def change(rows: pd.DataFrame) -> pd.DataFrame:
        masked(0.5)(rows)
        number = rows["tokenizer"].str[-2:].astype(int)
        rows["cluster"] = rows["cluster"].where(number < 16, "mae")  # of family conv, without plain ones
        rows["rfd_fashion_classifier"] = np.where(number < 4, 3.0, np.where(number < 8, 2.0, 100.0))
        second = rows[(number == 0) & (rows["generator_seed"] == 0)]
        return pd.concat([rows, second.assign(tokenizer_seed=1, rfd_fashion_classifier=8.0)], ignore_index=True)

    found = judged("C16", study(tmp_path, change))
    assert "mean rfd_fashion_classifier (transformer): mae 4, baseline 2; judged by" in found.why  # (4 x 3 + 8) / 5
    assert "(conv)" not in found.why and found.n == 4
    assert (
        "; transformer: tokenizer-00 x 2, tokenizer-01, tokenizer-02, tokenizer-03 against tokenizer-04, " in found.why
    )
    assert "; conv: tokenizer-16, " in found.why and "tokenizer-23 have no plain counterpart; " in found.why


def test_what_mask_modelling_gains_beyond_reconstruction(tmp_path: Path) -> None:
    """gFD is half, of which the distance to reconstructions is three quarters."""

    def change(rows: pd.DataFrame) -> None:
        masked(0.5, spread=0.0)(rows)
        rows[TARGET] = rows[TARGET].where(rows["generator"] == "sit", 40.0)
        masked_ones = rows["tokenizer"] < "tokenizer-04"
        rows["gfd_reconstructions_fashion_classifier"] = np.where(masked_ones, 6.0, 8.0)

    more = Column("gfd_reconstructions_fashion_classifier", "quality", "Distance to reconstructions.")
    found = judged("C16", study(tmp_path, change, more=(more,)))
    told = "the same ratio of gfd_reconstructions_fashion_classifier (transformer), beyond reconstruction: 0.75 [0.75, 0.75]; "
    assert told in found.why
    assert "gfd_reconstructions" not in judged("C16", study(tmp_path / "without", masked(0.5))).why


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
        told = "missing: no correlation in diffusability/results.csv: m_viv is the same for all 24 tokenizers"
        assert judged(identity, tmp_path).why == told
    if identity == "C16":
        study(tmp_path, setting(cluster=lambda rows: "repa"))
        assert "both clusters, mae and baseline" in judged(identity, tmp_path).why
    if identity == "C8":
        study(tmp_path, setting(m_gmm=lambda rows: 5.0))
        assert judged("C8", tmp_path).why.endswith("m_gmm is the same for all 24 tokenizers")


def test_example_study_as_it_is(tmp_path: Path) -> None:
    """Quality follows VIV best, and so do straightness and efficiency; SRSS adds nothing to LNC; the rest is not measured."""
    example_study().write(tmp_path / "diffusability")
    words = {name: judged(name, tmp_path) for name in ("C2", "C3", "C4", "C5", "C7", "C8")}
    assert words["C5"].verdict == "confirmed" and words["C5"].value is not None and words["C5"].value < -0.9
    assert words["C2"].verdict != "refuted" and "0.25 [0.25, " in words["C2"].why  # the first of four
    assert words["C4"].verdict == "undecided" and words["C4"].effect == "r of SRSS with gFD, given LNC"
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


def test_who_learned_from_a_judge_is_what_the_study_says(tmp_path: Path) -> None:
    """And what is said of its size counts what has been judged."""
    folder = study(tmp_path) / "diffusability"
    assert judged("C5", tmp_path).scale.startswith("24 tokenizers")
    (folder / "plan.yaml").write_text("analysis: {dependent: [{judge: fashion, clusters: [kl, eq]}]}\n")
    found = judged("C5", tmp_path)
    assert "not counted, as they learned from the features that judge them: tokenizer-01, tokenizer-03" in found.why
    assert found.n == 18 and found.scale.startswith("18 tokenizers")


def test_tokenizers_that_are_not_judged_yet_are_not_counted(tmp_path: Path) -> None:
    """Of 18 tokenizers all is known, of one nothing, of the others one generator seed each has no number."""

    def half(rows: pd.DataFrame) -> None:
        numbers = [name for name in rows if name.startswith(("m_", "gfd_", "fd_", "straightness", "efficiency"))]
        rows.loc[rows["tokenizer"] >= "tokenizer-18", numbers] = np.nan
        rows.loc[rows["generator_seed"] == 1, [TARGET, "gfd_efficientnet_lite0"]] = np.nan

    found = judged("C5", study(tmp_path, half))
    assert "18 tokenizers, 2 generators x 3 guidance scales, at least 1 seed each" in found.scale
    assert "is a copy of" not in found.why


def test_a_folder_that_is_a_study_itself(tmp_path: Path) -> None:
    assert judged("C5", study(tmp_path) / "diffusability").verdict == "confirmed"


def test_a_study_file_is_run_elsewhere_than_in_the_folder_of_kept_results(tmp_path: Path) -> None:
    """A run goes on in its own folder; results that were copied lie without the cells that a run there would look for."""
    folder = study(tmp_path) / "diffusability"
    commands = {}
    for name in ("plan.yaml", "fashion.yaml", "graph.json"):
        (folder / name).touch()
        commands[name] = judged("C5", tmp_path).command
    assert commands == {
        "plan.yaml": f"latentlab study run {folder}/plan.yaml --out runs/study-fashion",
        "fashion.yaml": f"latentlab study run {folder}/fashion.yaml --out runs/study-fashion",
        "graph.json": f"latentlab study run {folder}/plan.yaml --out {folder}",
    }


def test_damaged(tmp_path: Path) -> None:
    study(tmp_path)
    (tmp_path / "diffusability" / "columns.json").write_text("[")
    with pytest.raises(UserError, match=r"columns.json is not a readable JSON"):
        judged("C2", tmp_path)


# --- true claims are not refuted by the least of many ------------------------------------------------------------------


def test_two_that_add_to_each_other_are_not_refuted(tmp_path: Path) -> None:
    """C4, true: both follow the quality, each with errors of its own; a gain in left-out R^2 was refuted in 2 of 12 draws."""
    strengths = {"lnc": -0.7, "srss": -0.4}
    found = [judged("C4", drawn_study(tmp_path, seed, strengths)) for seed in range(12)]
    assert "refuted" not in [one.verdict for one in found]


# --- columns that hardly vary -----------------------------------------------------------------------------------------


def test_one_odd_tokenizer_decides_nothing(tmp_path: Path) -> None:
    found = judged("C8", study(tmp_path, odd("m_gmm", 1)))
    assert found.verdict == "undecided" and found.value is None
    assert found.why.endswith(
        "no correlation in diffusability/results.csv: m_gmm is the same for all but 1 of 24 tokenizers"
    )
    assert "m_gmm is the same for all but 4 of 24 tokenizers" in judged("C8", study(tmp_path, odd("m_gmm", 4))).why
    assert judged("C8", study(tmp_path, odd("m_gmm", 5))).value is not None


def test_rounding_is_no_difference(tmp_path: Path) -> None:
    found = judged("C8", study(tmp_path, setting(m_gmm=lambda rows: 5 + 1e-14 * per_tokenizer(rows))))
    assert found.why.endswith("m_gmm is the same for all 24 tokenizers")


def test_what_gives_the_same_order_adds_nothing(tmp_path: Path) -> None:
    found = judged("C4", study(tmp_path, setting(m_srss=lambda rows: 2 * rows["m_lnc"])))
    assert found.verdict == "undecided" and found.value is None
    assert found.why.endswith(
        "of m_lnc, gfd_fashion_classifier and m_srss one decides the order of tokenizers by another"
    )


# --- what is said beside a correlation --------------------------------------------------------------------------------


GIVEN = {
    "C2": ["viv"], "C5": ["straightness", "efficiency"], "C7": ["equivariance", "uniformity", "ifid"],
    "C8": ["gmm", "linear_probe"],
}  # fmt: skip


@pytest.mark.parametrize("identity", GIVEN)
def test_what_is_left_among_decoders_that_are_equally_sensitive(identity: str, tmp_path: Path) -> None:
    found = judged(identity, study(tmp_path))
    note = next(part for part in found.why.split("; ") if part.startswith("given decoder_sensitivity: r with gFD of "))
    one = r"{} -?[\d.e-]+ \[-?[\d.e-]+, -?[\d.e-]+\]{}"
    parts = (one.format(name, r" \(and rfd_fashion_classifier\)" if name == "ifid" else "") for name in GIVEN[identity])
    assert re.fullmatch("given decoder_sensitivity: r with gFD of " + ", ".join(parts), note)
    unknown = study(tmp_path / "unknown", setting(decoder_sensitivity=lambda rows: np.nan))
    assert "given decoder" not in judged(identity, unknown).why


def test_given_the_decoder_is_the_partial_correlation(tmp_path: Path) -> None:
    """gFD is VIV's doing and the decoder's: among equal decoders VIV decides more than it seems to."""

    def change(rows: pd.DataFrame) -> None:
        rows["decoder_sensitivity"] = per_tokenizer(rows, seed=6)
        rows[TARGET] = rows[TARGET] + 8 * rows["decoder_sensitivity"]

    why = judged("C2", study(tmp_path, change)).why
    raw = re.search(r"mean r with gFD: .*\bviv (\S+?)[,;]", why)
    given = re.search(r"given decoder_sensitivity: r with gFD of viv (\S+) ", why)
    assert raw is not None and given is not None and float(given[1]) > 0.8 > float(raw[1])


@pytest.mark.parametrize(
    ("identity", "column", "told"),
    [
        ("C3", "m_linear_probe", "no r of LNC with probe accuracy in lightningdit at guidance 1.5"),
        ("C5", "efficiency", "no r of efficiency with gFD in lightningdit at guidance 1.5"),
        (
            "C8",
            "held_out_loss",
            "no r of GMM modes with held-out loss, probe accuracy with held-out loss in lightningdit at",
        ),
    ],
)
def test_cells_without_a_value_are_named(identity: str, column: str, told: str, tmp_path: Path) -> None:
    def change(rows: pd.DataFrame) -> None:
        lost = (rows["generator"] == "lightningdit") & (rows["guidance"] == 1.5) & (rows["tokenizer"] > "tokenizer-04")
        rows[column] = rows[column].where(~lost)

    assert f"; {told}" in judged(identity, study(tmp_path, change)).why
    assert "no r of" not in judged(identity, study(tmp_path / "all")).why


# --- modes by their likelihood ----------------------------------------------------------------------------------------

LIKELIHOODS = tuple(Column(f"m_gmm.held-out NLL@{k}", "measurement", "Nats.", "", "lower") for k in (8, 20))


def test_likelihood_of_mixtures_is_an_alternative_to_their_modes(tmp_path: Path) -> None:
    """The number of modes says nothing, or is the same for all; of likelihoods that of the most components counts."""

    def change(rows: pd.DataFrame) -> None:
        rows["m_gmm"] = per_tokenizer(rows, seed=8)
        rows["m_gmm.held-out NLL@8"] = per_tokenizer(rows, seed=9)
        rows["m_gmm.held-out NLL@20"] = rows["m_viv"]

    found = judged("C8", study(tmp_path / "a", change, more=LIKELIHOODS))
    assert found.verdict == "confirmed", found.why
    assert " or r of held-out NLL@20 with gFD: 0.9" in found.why and "NLL@8" not in found.why
    assert judged("C8", study(tmp_path / "b", change)).verdict != "confirmed"  # columns that nothing explains

    def constant(rows: pd.DataFrame) -> None:
        change(rows)
        rows["m_gmm"] = 20.0

    found = judged("C8", study(tmp_path / "c", constant, more=LIKELIHOODS))
    assert (
        found.verdict == "confirmed"
        and "; no r of GMM modes with held-out loss, GMM modes with gFD in sit" in found.why
    )


# --- C6 of a study ----------------------------------------------------------------------------------------------------


def test_steps_and_variance_say_what_a_confirmation_is_worth(tmp_path: Path) -> None:
    codes = ["tokenizer-03", "tokenizer-07"]

    def change(rows: pd.DataFrame) -> None:
        rows.loc[rows["tokenizer"].isin(codes), "step_variance_correlation"] = np.nan

    found = judged("C6", study(tmp_path, change))
    assert "the irreducible variance add up to a constant, so that a confirmation says that the generators" in found.why
    assert "; no value (entries of a codebook have none): tokenizer-03, tokenizer-07; " in found.why and found.n == 22
    assert "no value" not in judged("C6", study(tmp_path / "all")).why


@pytest.mark.parametrize("identity", CONFIRMED)
def test_mixed_sizes_are_refused(identity: str, tmp_path: Path) -> None:
    mixed = setting(n_samples=lambda rows: np.where(np.arange(len(rows)) % 2, 500, 5000))
    found = judged(identity, study(tmp_path, mixed))
    assert found.verdict == "undecided" and found.value is None and "n_samples is 500, 5000" in found.why
