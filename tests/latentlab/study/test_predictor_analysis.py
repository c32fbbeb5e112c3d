"""From the table of a study over its predictor to the line in an analysis, on a real tokenizer and a made-up study."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from latentlab import UserError, analysis_figures, open_data
from latentlab.analyze import analyze, subject_of_folder, subject_of_tokenizer
from latentlab.cli.main import app
from latentlab.encoding import open_tokenizer
from latentlab.prediction import options_of_study, settings_of, told_prediction
from latentlab.report_table import print_results, write_summary
from latentlab.results import Results
from latentlab.study.predictor import file as predictor_file
from latentlab.study.predictor.file import Predictor, read_predictor, write_predictor
from latentlab.study.table import Column, StudyTable

from .example_study import COLUMNS, example_study

N = 100
TARGET = "gfd_fashion_classifier"
OPTIONS = {"lds": {"far": 4}}


@pytest.fixture(autouse=True, scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Encode into a cache of our own, and draw quick figures."""
    place = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LATENTLAB_HOME", str(place))
        patch.setattr(analysis_figures, "UMAP_POINTS", 10)
        patch.setattr(analysis_figures, "SHOWN_IMAGES", 2)
        yield place


@pytest.fixture(scope="module")
def measured(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Results:
    """Two quick measurements of an embedded tokenizer."""
    subject = subject_of_tokenizer(open_tokenizer("ae", "fashion:test"), open_data("fashion:test", limit=N))
    out = tmp_path_factory.mktemp("run")
    return analyze(subject, out, metrics=["viv", "lds"], options=OPTIONS, draw=False)


@pytest.fixture(scope="module")
def study(measured: Results, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A made-up study around that tokenizer: quality is 20 where viv and lds are as measured; its plan says how."""
    viv, lds = (m.value for m in measured.measurements)
    made = example_study(32)
    rows = made.rows.drop(columns=["m_lnc", "m_srss", "m_cds"])
    rows = rows.assign(m_viv=viv + 0.2 * (made.rows["m_viv"] - 1.5), m_lds=lds + 0.2 * (made.rows["m_lnc"] - 0.65))
    columns = [c for c in COLUMNS if c.name not in ("m_lnc", "m_srss", "m_cds")] + [Column("m_lds", "measurement", ".")]
    folder = tmp_path_factory.mktemp("study")
    StudyTable(rows, tuple(columns)).write(folder)
    (folder / "plan.yaml").write_text(
        f"""
title: A made-up study
images: fashion:train
held_out_images: fashion:test
held_out_limit: {N}
tokenizers: [{{label: ae, cluster: baseline, family: conv, train: ae}}]
measure: {{viv: , lds: {{far: 4}}}}
generators: [{{label: sit, kind: sit, base: sit-fashion}}]
samples: 100
judges: [fashion-classifier]
"""
    )
    return folder


def fit(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["study", "predictor", *map(str, arguments)])


@pytest.fixture(scope="module")
def file(study: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("predictor") / "predictor.json"
    result = fit(study, "--target", TARGET, "--generator", "sit", "--guidance", 1.5, "--out", out)
    assert result.exit_code == 0, result.output
    assert "24 tokenizers in 6 clusters, each cluster predicted from the others:" in result.stdout
    assert (
        "single best (viv)" in result.stdout and "of 8 held-out tokenizers lie in their 90 % interval" in result.stdout
    )
    assert result.stdout.endswith(f"predictor  {out}\n")
    return out


@pytest.fixture
def predictor(file: Path) -> Predictor:
    return read_predictor(file)


def line(predictor: Predictor, results: Results, options: Mapping[str, Mapping[str, object]] = OPTIONS) -> str:
    return told_prediction(predictor, results, options)["text"]


def test_the_file_says_what_it_is_made_of(predictor: Predictor, measured: Results) -> None:
    assert predictor.data.model_dump() == measured.data
    viv, lds = predictor.measurements
    assert (viv.name, viv.biased, lds.name, lds.biased) == ("viv", True, "lds", False)
    assert lds.parameters == {"variant": "code", "far": 4, "normalize": True, "grid": None}
    assert predictor.origin.study == "A made-up study" and len(predictor.origin.table_sha256) == 64


def test_analyze_shows_the_prediction(file: Path, tmp_path: Path) -> None:
    command = ["analyze", "--tokenizer", "ae", "--limit", str(N), "--metrics", "viv,lds"]  # lds.far=4 as in the study
    result = CliRunner().invoke(app, [*command, "--predictor", str(file), "--out", str(tmp_path)])
    assert result.exit_code == 0, result.output
    shown = [one for one in result.stdout.splitlines() if one.startswith(f"predicted {TARGET} (sit, guidance 1.5): ")]
    assert len(shown) == 1 and shown[0].endswith("from 24 tokenizers (90 % interval)")
    written = json.loads((tmp_path / "results.json").read_text())["predictions"]
    assert [one["text"] for one in written] == shown
    assert written[0]["interval"][0] < 20 < written[0]["interval"][1] and written[0]["factor"] < 1
    assert f"* {shown[0]}\n" in (tmp_path / "summary.md").read_text()
    other = CliRunner().invoke(
        app, [*command, "--set", "lds.far=5", "--predictor", str(file), "--out", str(tmp_path / "b")]
    )
    assert "lds was made in another way than in the study: far is 4 there, 5 here" in other.stdout


def test_what_is_asked_comes_before_the_settings_of_the_study(predictor: Predictor) -> None:
    assert options_of_study(predictor, {}) == {"lds": {"far": 4}}
    given = {"lds": {"far": 7, "variant": "paper"}, "rmsc": {"normalize": False}}
    assert options_of_study(predictor, given) == given
    listed = predictor.measurements[0].model_copy(update={"parameters": {"times": [0.0, 1.0]}})
    several = predictor.model_copy(update={"measurements": (listed,)})
    assert options_of_study(several, {}) == {"viv": {"times": [0.0, 1.0]}}
    absent = listed.model_copy(update={"parameters": {"tims": 3}})
    with pytest.raises(UserError, match="unknown parameter of 'viv' 'tims'"):
        options_of_study(predictor.model_copy(update={"measurements": (absent,)}), {})


def test_a_broken_file_ends_the_command_before_anything_is_measured(tmp_path: Path) -> None:
    (tmp_path / "p.json").write_text("{}")
    command = ["analyze", "--tokenizer", "ae", "--predictor", str(tmp_path / "p.json"), "--out", str(tmp_path / "run")]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 2 and "p.json is not a predictor" in result.stderr
    assert not (tmp_path / "run").exists()


def test_shipped_predictors_speak_for_their_data_only(
    predictor: Predictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, home: Path
) -> None:
    images = open_data("fashion", limit=N)
    subject = subject_of_tokenizer(open_tokenizer("ae", "fashion"), images)

    def analysed(name: str) -> Results:
        return analyze(subject, tmp_path / name, metrics=["viv", "lds"], options=OPTIONS, draw=False)

    monkeypatch.setattr(predictor_file, "SHIPPED", tmp_path / "shipped")
    assert analysed("without").predictions == ()
    write_predictor(predictor, tmp_path / "shipped" / "sit.json")
    other = predictor.model_copy(update={"data": predictor.data.model_copy(update={"name": "cifar10:DIR"})})
    write_predictor(other, tmp_path / "shipped" / "other.json")
    (told,) = analysed("with").predictions
    assert told["text"].startswith("predicted") and told["value"] is not None
    folder = subject_of_folder(subject.path)
    assert analyze(folder, tmp_path / "folder", metrics=["viv"], draw=False).predictions == ()


# ---- why there is none


def test_missing_measurement(predictor: Predictor, measured: Results) -> None:
    fewer = replace(measured, measurements=measured.measurements[:1])
    assert line(predictor, fewer) == f"no prediction of {TARGET} (sit, guidance 1.5): it needs lds, not measured here"
    refused = replace(fewer, refused={"lds": "'lds' needs grid"})
    assert line(predictor, refused).endswith("it needs lds, not measured here ('lds' needs grid)")


def test_other_parameters(predictor: Predictor, measured: Results) -> None:
    assert line(predictor, measured, {}).endswith(
        "lds was made in another way than in the study: far is 4 there, 6 here; --predictor FILE without --set lds... makes it "
        "as there"
    )
    paper = {**OPTIONS, "lds": {"far": 4, "variant": "paper"}}
    assert "variant is code there, paper here; " in line(predictor, measured, paper)
    assert "reduce is mean there, sum here; " in line(predictor, measured, {**OPTIONS, "viv": {"reduce": "sum"}})


def test_other_images(predictor: Predictor, measured: Results) -> None:
    def on(**data: object) -> Results:
        return replace(measured, data={**measured.data, "fingerprint": "other", **data})

    assert line(predictor, on(name="fashion:train")).endswith(
        "measured on fashion:train, the study on 100 images of fashion:test"
    )
    assert line(predictor, on(n=2000)).endswith(
        "measured on 2,000 images, the study on 100, and viv depends on their number"
    )
    assert "measured on other images of fashion:test" in line(predictor, on())
    assert "latents in a folder do not say" in line(predictor, replace(measured, data=None))
    moved = replace(measured, data={**measured.data, "name": "imagefolder:/elsewhere"})  # the same content
    assert line(predictor, moved).startswith("predicted")


def test_the_number_of_images_is_free_where_it_does_not_matter(predictor: Predictor, measured: Results) -> None:
    unbiased = tuple(m.model_copy(update={"biased": False}) for m in predictor.measurements)
    more = replace(measured, data={**measured.data, "fingerprint": "other", "n": 2000})
    assert line(predictor.model_copy(update={"measurements": unbiased}), more).startswith("predicted")


def test_outside_the_study(predictor: Predictor, measured: Results, tmp_path: Path, capsys) -> None:
    viv, lds = measured.measurements
    far = replace(measured, measurements=(replace(viv, value=viv.value + 1), lds))
    told = told_prediction(predictor, far, OPTIONS)
    assert told["value"] is None and told["factor"] > 1 and "viv" in told["outside"]
    shown = replace(far, predictions=(told,))
    print_results(shown)
    write_summary(shown, tmp_path)
    assert told["text"].startswith("no prediction") and told["text"] in capsys.readouterr().out
    assert told["text"] in (tmp_path / "summary.md").read_text()
    shown.write(tmp_path)
    assert json.loads((tmp_path / "results.json").read_text())["predictions"] == [told]


# ---- the command that fits


def test_settings_are_those_of_a_call() -> None:
    plain, changed = settings_of("viv", {}), settings_of("viv", {"times": [0.0, 1.0], "seed": 3})
    assert "seed" not in plain.parameters and plain.parameters["reduce"] == "mean" and plain.biased
    assert changed.parameters == {**plain.parameters, "times": [0.0, 1.0]}
    with pytest.raises(UserError, match="unknown parameter of 'viv'"):
        settings_of("viv", {"tims": 3})


def test_without_a_plan_the_images_must_be_given(study: Path, tmp_path: Path) -> None:
    (tmp_path / "copy").mkdir()
    for name in ("results.csv", "columns.json"):
        (tmp_path / "copy" / name).write_text((study / name).read_text())
    table, out = tmp_path / "copy" / "results.csv", tmp_path / "p.json"
    wanted = [table, "--target", TARGET, "--generator", "sit", "--guidance", 1.5, "--out", out, "--measurements", "viv"]
    assert "has no plan.yaml" in fit(*wanted).output
    assert "--limit goes with --data" in fit(*wanted, "--limit", 50).output
    assert "is a folder" in fit(*wanted[:-3], tmp_path).output
    assert fit(*wanted, "--data", "fashion:test", "--limit", 50).exit_code == 0
    made = read_predictor(out)
    assert made.data.n == 50 and made.origin.study == "copy" and [m.name for m in made.measurements] == ["viv"]
