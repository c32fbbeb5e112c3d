"""Predictors of quality: which rows they are made of, how well they do, what they refuse, their file."""

import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import latentlab
from latentlab.errors import UserError
from latentlab.study.analysis.plan import AnalysisPlan
from latentlab.study.predictor.file import SHIPPED, DataSet, Predictor, Setting, read_predictor, write_predictor
from latentlab.study.predictor.fit import fit_predictor
from latentlab.study.predictor.interval import jackknife_plus
from latentlab.study.predictor.predict import Prediction, predict
from latentlab.study.predictor.ridge import fit_ridge
from latentlab.study.table import Column, StudyTable

from .example_study import COLUMNS, example_study

TARGET = "gfd_fashion_classifier"
NAMES = ("viv", "lnc", "srss", "cds")
MIDDLE = {"viv": 1.5, "lnc": 0.65, "srss": 0.2, "cds": 0.5}
DATA = DataSet(name="fashion:test", n=500, fingerprint="0123456789abcdef")
SETTINGS = {name: Setting({"k": 5, "normalize": True}, biased=name == "viv") for name in NAMES}


def fitted(study: StudyTable, target: str = TARGET, guidance: float = 1.5, **options: object) -> Predictor:
    options = {"data": DATA, "settings": SETTINGS, "generator": "sit", **options}
    return fit_predictor(study, target, guidance=guidance, **options)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def study() -> StudyTable:
    return example_study(32)


@pytest.fixture(scope="module")
def predictor(study: StudyTable) -> Predictor:
    return fitted(study, title="example", table_sha256="ab", command="latentlab study predictor")


def changed(study: StudyTable, **columns: object) -> StudyTable:
    return StudyTable(study.rows.assign(**columns), study.columns)


# ---- the fit


def test_it_is_the_ridge_of_the_tokenizers_that_are_not_held_out(study, predictor):
    rows = study.by_tokenizer("sit", 1.5)
    rows = rows[~rows["held_out"]]
    x, y = rows[[f"m_{name}" for name in NAMES]].to_numpy(), np.log(rows[TARGET].to_numpy())
    clusters = rows["cluster"].to_numpy(str)
    whole = fit_ridge(x, y, clusters)
    new = np.array([MIDDLE[name] for name in NAMES])
    said = predict(predictor, MIDDLE)
    assert said.value == pytest.approx(math.exp(whole.at(new)))
    fits = {
        name: fit_ridge(x[clusters != name], y[clusters != name], clusters[clusters != name]) for name in set(clusters)
    }
    errors = [abs(y[i] - fits[name].at(x[i])) for i, name in enumerate(clusters)]
    ends = jackknife_plus([fits[name].at(new) for name in clusters], errors, 0.9)
    assert (said.low, said.high) == pytest.approx(tuple(map(math.exp, ends)))
    assert [one.label for one in predictor.tokenizers] == list(rows["tokenizer"])
    assert predictor.measurements[0].low == rows["m_viv"].min()


def test_the_made_up_answer_is_found(predictor):
    """Quality is 30 - 20 (2 - viv): 20 in the middle; the logarithm bends it a little."""
    assert predict(predictor, MIDDLE).value == pytest.approx(20, rel=0.06)
    assert predict(predictor, MIDDLE).low < 20 < predict(predictor, MIDDLE).high
    inside = [check.low <= check.observed <= check.high for check in predictor.held_out]
    assert len(inside) == 8 and sum(inside) >= 6


def test_scores_beside_the_mean_and_the_single_best(predictor):
    mean, single, ridge = predictor.scores
    assert (mean.model, single.model, ridge.model) == ("mean", "single best", "ridge")
    assert single.note == "viv" and mean.spearman is None and mean.r2 <= 0
    assert ridge.rmse < mean.rmse / 4 and ridge.r2 > 0.9 and ridge.spearman > 0.9
    assert ridge.rmse < 1.1 * single.rmse
    observed = np.array([one.observed for one in predictor.tokenizers])
    left_out = np.array([one.left_out for one in predictor.tokenizers])
    assert ridge.rmse == pytest.approx(np.sqrt(np.mean((observed - left_out) ** 2)))


def test_controls_are_not_fitted_and_are_judged(study, predictor):
    label = study.rows["tokenizer"] == "tokenizer-00"
    copy = study.rows[label].assign(tokenizer="mixed", control="orthogonal", control_of="tokenizer-00", m_viv=9.0)
    both = fitted(StudyTable(pd.concat([study.rows, copy], ignore_index=True), study.columns))
    assert both.fit == predictor.fit and both.tokenizers == predictor.tokenizers
    (check,) = both.controls
    assert check.control == "orthogonal" and check.factor > 2


def test_tokenizers_that_learned_from_the_judge_are_not_fitted(study):
    """The same fit as without their rows; a study that says that nobody learned fits them."""
    other = "gfd_efficientnet_lite0"
    repa = study.rows["cluster"] == "repa"
    flattered = changed(study, **{other: study.rows[other].where(~repa, 0.01)})
    found = fitted(flattered, other)
    without = fitted(StudyTable(study.rows[~repa], study.columns), other)
    assert found.fit == without.fit and found.held_out == without.held_out
    left_out = dict.fromkeys(
        study.rows["tokenizer"][repa], "learned from the features that give gfd_efficientnet_lite0"
    )
    assert found.origin.left_out == left_out
    assert len(found.tokenizers) == 20  # of 24 that are not held out
    assert len(fitted(study, other, plan=AnalysisPlan(dependent=())).tokenizers) == 24
    assert len(fitted(study).tokenizers) == 24  # by the other judge


def test_predictors_that_come_along_lie_in_the_package():
    assert Path(latentlab.__file__).parent / "predictors" == SHIPPED


def test_other_targets_keep_their_scale(study):
    loss = fitted(study, "held_out_loss")
    assert loss.target.scale == "linear" and predict(loss, MIDDLE).value == pytest.approx(0.9, abs=0.02)
    assert fitted(study).target.scale == "log"


def test_seeds_and_order_of_rows_change_nothing(study, predictor):
    shuffled = StudyTable(study.rows.sample(frac=1, random_state=0), study.columns)
    assert predict(fitted(shuffled), MIDDLE).value == pytest.approx(predict(predictor, MIDDLE).value, rel=1e-12)


def test_what_is_missing_is_left_out_and_said(study):
    rows = study.rows
    lacking = changed(
        study,
        m_srss=rows["m_srss"].where(rows["tokenizer"] > "tokenizer-15"),
        m_lnc=rows["m_lnc"].where(rows["tokenizer"] != "tokenizer-04"),
        m_cds=1.0,
        **{TARGET: rows[TARGET].where(rows["tokenizer"] != "tokenizer-01")},
    )
    made = fitted(lacking)
    assert [m.name for m in made.measurements] == ["viv", "lnc"]
    assert made.origin.left_out == {
        "tokenizer-01": f"no {TARGET}",
        "tokenizer-04": "lacks lnc",
        "srss": "11 of 23 tokenizers lack it",
        "cds": "the same for all tokenizers",
    }
    assert not {"tokenizer-01", "tokenizer-04"} & {one.label for one in made.tokenizers}


def test_measurements_can_be_chosen(study):
    made = fitted(study, measurements=["cds", "viv", "viv"])
    assert [m.name for m in made.measurements] == ["cds", "viv"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target": "gfd_fashion"}, "unknown quality of this study 'gfd_fashion'. Did you mean gfd_fashion_classifier"),
        ({"target": "psnr"}, "unknown quality of this study 'psnr'"),
        ({"generator": "sid"}, "unknown generator of this study 'sid'. Did you mean sit"),
        ({"guidance": 3.0}, "sit has no guidance scale 3 in this study: 1, 1.5, 2"),
        ({"measurements": ["vib"]}, "unknown measurement of this study 'vib'. Did you mean viv"),
        ({"measurements": []}, "no measurement is named; the study has viv, lnc, srss, cds"),
    ],
)
def test_what_the_study_has_not_is_refused(study, options, message):
    with pytest.raises(UserError) as caught:
        fitted(study, **options)
    assert str(caught.value).startswith(message)


def test_small_studies_are_refused(study):
    with pytest.raises(UserError, match=r"at least 12 tokenizers in 3 clusters .* 9 in 6 have gfd"):
        fitted(example_study(12))
    with pytest.raises(UserError, match="24 in 1 have gfd"):
        fitted(changed(study, cluster="baseline"))
    with pytest.raises(UserError, match="m_cds is the same for all"):
        fitted(changed(study, m_cds=1.0), measurements=["viv", "cds"])


# ---- what it says


def test_the_line_of_a_prediction(predictor):
    said = predict(predictor, MIDDLE)
    assert said.refusal is None and said.factor < 1 and said.outside == {}
    ends, unit = f"[{said.low:.3g}, {said.high:.3g}]", "squared distance of features"
    expected = f"{said.value:.3g} {ends} {unit} from 24 tokenizers (90 % interval)"
    assert said.sentence() == f"predicted {TARGET} (sit, guidance 1.5): {expected}"
    told = said.to_dict()
    assert told["value"] == said.value and told["interval"] == [said.low, said.high] and told["outside"] == {}


def test_far_out_nothing_is_predicted(predictor):
    viv = predictor.measurements[0]
    far = predict(predictor, MIDDLE | {"viv": viv.high + 0.5 * (viv.high - viv.low)})
    assert far.factor > 1 and far.percentile == 100 and far.outside == {"viv": pytest.approx(0.5)}
    assert far.sentence().startswith(
        f"no prediction of {TARGET} (sit, guidance 1.5): the tokenizer lies outside the study"
    )
    assert f"viv {far.x[0]:.4g} is above {viv.low:.4g} .. {viv.high:.4g} by 50 % of that range" in far.refusal
    assert f"{far.factor:.1f} times as far as predictions were tested" in far.refusal
    assert far.to_dict()["value"] is None and far.to_dict()["interval"] is None
    below = predict(predictor, MIDDLE | {"cds": -3.0})
    assert "cds -3 is below" in below.refusal and "viv" not in below.refusal
    assert "combination" not in below.refusal  # drawn into its range, it would be predicted


def test_a_combination_the_study_never_had_is_refused(predictor):
    """viv and lnc are two faces of one quantity there: low viv with low lnc lies in both ranges, yet nowhere near a tokenizer."""
    viv, lnc = predictor.measurements[:2]
    strange = predict(predictor, MIDDLE | {"viv": viv.low, "lnc": lnc.low})
    assert strange.outside == {} and strange.factor > 1
    assert strange.refusal.endswith(
        "the combination of lnc with viv is unlike the study's"
    ) or strange.refusal.endswith("the combination of viv with lnc is unlike the study's")


def test_a_little_outside_is_predicted_and_said(predictor):
    srss = predictor.measurements[2]
    said = predict(predictor, MIDDLE | {"srss": srss.low - 0.02 * (srss.high - srss.low)})
    assert said.refusal is None
    assert said.sentence().endswith(f"is below {srss.low:.4g} .. {srss.high:.4g} by 2 % of that range")


def test_many_measurements_outside_are_counted(predictor):
    away = {m.name: m.high + 2 * (m.high - m.low) for m in predictor.measurements}
    assert "; 1 more are outside" in predict(predictor, away).refusal


def test_the_refusal_grows_with_the_distance(predictor):
    factors = [predict(predictor, MIDDLE | {"viv": value}).factor for value in (1.5, 2.0, 2.5, 3.0)]
    assert factors == sorted(factors)


@pytest.mark.parametrize(
    ("values", "message"), [({"viv": 1.0}, "lnc was not measured"), ({**MIDDLE, "cds": math.nan}, "cds is nan")]
)
def test_missing_values_are_refused(predictor, values, message):
    with pytest.raises(UserError, match=message):
        predict(predictor, values)


def test_a_predictor_no_better_than_the_mean_says_so(study):
    rng = np.random.default_rng(0)
    quality = dict(zip(study.rows["tokenizer"].unique(), rng.uniform(10, 30, 32), strict=True))
    noise = fitted(changed(study, **{TARGET: study.rows["tokenizer"].map(quality)}))
    assert noise.score("ridge").rmse >= noise.score("mean").rmse
    said = predict(noise, MIDDLE)
    assert "on clusters it has not seen the predictor errs by" in said.sentence() and said.to_dict()["value"] is None


def test_units_of_measurements_do_not_matter(study, predictor):
    other = fitted(changed(study, m_lnc=1000 * study.rows["m_lnc"] + 7))
    said, same = (
        predict(predictor, MIDDLE | {"lnc": 0.7}),
        predict(other, MIDDLE | {"lnc": 707.0}),
    )
    assert same.value == pytest.approx(said.value) and same.factor == pytest.approx(said.factor)


# ---- the file


def test_written_and_read_again(predictor, tmp_path):
    write_predictor(predictor, tmp_path / "p.json")
    again = read_predictor(tmp_path / "p.json")
    assert again == predictor
    said, before = predict(again, MIDDLE), predict(predictor, MIDDLE)
    assert (said.value, said.low, said.high, said.factor) == (before.value, before.low, before.high, before.factor)
    written = json.loads((tmp_path / "p.json").read_text())
    assert written["data"] == {"name": "fashion:test", "n": 500, "fingerprint": "0123456789abcdef"}
    assert written["measurements"][0]["parameters"] == {"k": 5, "normalize": True}


def test_read_without_torch_or_pandas(predictor, tmp_path):
    write_predictor(predictor, tmp_path / "p.json")
    code = (
        "import sys; from pathlib import Path; from latentlab.study.predictor.predict import predict;"
        "from latentlab.study.predictor.file import read_predictor;"
        f"print(predict(read_predictor(Path({str(tmp_path / 'p.json')!r})), {MIDDLE}).value);"
        "assert not {'torch', 'pandas', 'sklearn', 'scipy'} & set(sys.modules)"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert float(shown) == predict(predictor, MIDDLE).value


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        ((), [], "is not a predictor"),
        (("schema_version",), None, "is not a predictor"),
        (("schema_version",), 2, "is a predictor of version 2, this latentlab reads version 1"),
        (("fit", "intercept"), None, "fit.intercept: "),
        (("fit", "intercept"), math.nan, "fit.intercept: Input should be a finite number"),
        (("fit", "slopes"), [1.0], "every fit needs 4 slopes, one per measurement"),
        (("reach", "precision"), [[1.0]], "reach.precision must be 4 x 4"),
        (("reach", "distances"), [], "reach.distances: "),
        (("reach", "distances", 0), 0.0, "reach.distances.0: "),
        (("fits",), [], "fits must leave out each cluster"),
        (("scores",), [], "scores must hold those of mean and ridge"),
        (("measurements", 0, "high"), 0.0, "measurements.0: low must be below high"),
        (("unheard",), 1, "unheard: Extra inputs are not permitted"),
    ],
)
def test_damaged_files_are_refused(predictor, tmp_path, place, value, message):
    file = tmp_path / "p.json"
    content = json.loads(json.dumps(predictor.model_dump(mode="json")))
    if place:
        *parents, last = place
        table = content
        for parent in parents:
            table = table[parent]
        table[last] = value
    file.write_text(json.dumps(content if place else value))
    with pytest.raises(UserError) as caught:
        read_predictor(file)
    assert str(file) in str(caught.value) and message in str(caught.value) and "\n" not in str(caught.value)


def test_half_a_file_and_none_are_refused(tmp_path):
    (tmp_path / "p.json").write_text('{"schema_version": 1, "tar')
    with pytest.raises(UserError, match="not a readable JSON file"):
        read_predictor(tmp_path / "p.json")
    with pytest.raises(UserError, match="does not exist"):
        read_predictor(tmp_path / "absent.json")


def test_infinite_intervals_are_written_as_none(predictor):
    assert Prediction(predictor, np.array([*MIDDLE.values()]), 1.0, -math.inf, math.inf).to_dict()["interval"] == [
        None,
        None,
    ]


def test_companions_are_no_predictors(study):
    more = StudyTable(
        study.rows.assign(**{"m_lnc.LNC@10": study.rows["m_lnc"]}),
        (*COLUMNS, Column("m_lnc.LNC@10", "measurement", ".")),
    )
    assert [m.name for m in fitted(more).measurements] == list(NAMES)
