"""The report of a study without a browser: what the page holds, what it leaves out and says so."""

import json
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import typer
from PIL import Image
from typer.testing import CliRunner

from latentlab.cli.report import report as command
from latentlab.errors import UserError
from latentlab.report import build_report, write_report
from latentlab.report.contents import read_contents
from latentlab.report.data_table import number_format
from latentlab.report.document import document_json
from latentlab.report.matrix import all_correlations, correlations_of, matrix_columns
from latentlab.report.pictures import embedded
from latentlab.report.points import RUNS, points_of
from latentlab.report.records import shown
from latentlab.study.table import StudyTable

from .example_study import example_study
from .report_folder import HOSTILE, full_folder, hostile_folder, study_folder, write_picture


class _Elements(HTMLParser):
    """Every element of a page with its attributes, and all text outside scripts and styles."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._hidden = False
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))
        self._hidden = tag in ("script", "style")

    def handle_endtag(self, tag):
        self._hidden = False

    def handle_data(self, data):
        self.text += "" if self._hidden else f"{data} "


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return full_folder(tmp_path_factory.mktemp("study"))


@pytest.fixture(scope="module")
def page(folder):
    return build_report(folder).html


def test_shows_every_part(page):
    text = " ".join(_Elements(page).text.split())
    for part in (
        "A study of ease", "8 in 8 clusters", "1 confirmed, 1 undecided", "✓ confirmed", "A < B",
        "Spearman · 0.9 [0.8, 0.95] · n = 8", "one seed only", "0.9877", "samples of lightningdit",
        "viv: velocity irreducible variance", "images: fashion",
    ):  # fmt: skip
        assert part.lower() in text.lower()


def test_headings_are_in_the_table_of_contents(page):
    elements = _Elements(page).found
    headings = {attributes["id"] for tag, attributes in elements if tag == "h2"}
    links = {(attributes["href"] or "").removeprefix("#") for tag, attributes in elements if tag == "a"}
    assert headings == links and len(headings) == 7


def test_names_nothing_outside_itself(page):
    """No element loads a file or an address, and the policy forbids what a script might try."""
    loaded = [
        value for _, attributes in _Elements(page).found for key, value in attributes.items() if key in ("src", "href")
    ]
    assert all(value.startswith(("data:", "#")) for value in loaded)
    policy = next(a["content"] for _, a in _Elements(page).found if a.get("http-equiv") == "Content-Security-Policy")
    assert (
        policy.startswith("default-src 'none'") and "http" not in policy and "script-src 'unsafe-inline'" not in policy
    )


def test_pictures_are_there_once(page):
    uris = [str(attributes["src"]) for tag, attributes in _Elements(page).found if tag == "img"]
    assert len(uris) == len(set(uris)) == 24
    assert all(page.count(uri) == 1 for uri in uris)


def test_same_input_same_bytes(folder, page, tmp_path):
    elsewhere = shutil.copytree(folder, tmp_path / folder.name)
    assert build_report(elsewhere).html == page


def test_markup_in_files_is_text(tmp_path):
    page = build_report(hostile_folder(tmp_path)).html
    elements = _Elements(page)
    assert HOSTILE in elements.text
    assert not any(attributes.get("src") == "x" or "onerror" in attributes for _, attributes in elements.found)
    assert "<img src=x" not in page


def test_what_is_missing_is_named(tmp_path):
    report = build_report(study_folder(tmp_path))
    assert report.missing == ("analysis.json", "claims.json", "plan.yaml", "pictures") and report.problems == ()
    text = _Elements(report.html).text
    for hint in ("latentlab correlate", "latentlab claims", "plan.yaml", "pictures/TOKENIZER/"):
        assert hint in text


DAMAGED = [
    ("analysis.json", b"{"),
    ("analysis.json", b'{"correlations": 5}'),
    ("analysis.json", b"[" * 100_000),
    ("claims.json", b'{"id": "C1"}'),
    ("claims.json", b"\xff\xfe"),
    ("plan.yaml", b"title: [\n"),
    ("plan.yaml", b"\xff"),
]


@pytest.mark.parametrize(("name", "content"), DAMAGED)
def test_damaged_optional_files_are_told(folder, tmp_path, name, content):
    part = shutil.copytree(folder, tmp_path / "part")
    (part / name).write_bytes(content)
    contents = read_contents(part)
    assert len(contents.problems) == 1 and contents.problems[0].startswith(name)
    assert str(tmp_path) not in contents.problems[0]


def test_damaged_files_are_named_in_the_page(folder, tmp_path):
    part = shutil.copytree(folder, tmp_path / "part")
    for name, content in (*DAMAGED, ("pictures/tokenizer-00/sit.png", b"no picture")):
        (part / name).write_bytes(content)
    report = build_report(part)
    text = _Elements(report.html).text
    assert len(report.problems) == 4 and str(tmp_path) not in text
    assert all(f"{problem.split()[0]} is" in text for problem in report.problems)


def test_strange_records_are_shown_as_they_are(folder, tmp_path):
    part = shutil.copytree(folder, tmp_path / "part")
    strange = {"correlations": [{"value": "high", "n": [1]}, 5], "pairs": [{}], "warnings": [{"a": 1}]}
    (part / "analysis.json").write_text(json.dumps(strange))
    (part / "claims.json").write_text(json.dumps([{}, {"verdict": ["x"], "value": None, "low": float("nan")}]))
    assert build_report(part).problems == ()


def test_cards_tell_how_measurements_reacted(folder, page, tmp_path):
    """Where the analysis knows; labels stay text."""
    assert "In this study" not in _Elements(page).text
    part = shutil.copytree(folder, tmp_path / "part")
    seen = {"predictor": "m_viv", "tokenizer": HOSTILE, "says": "blind"}
    (part / "analysis.json").write_text(json.dumps({"reactions": [seen, {}, {"predictor": [1], "says": 2}]}))
    elements = _Elements(build_report(part).html)
    text = " ".join(elements.text.split())
    told = f"In this study : blind to {HOSTILE}; moves alone under none; opposite in none; agrees in 0 of 1."
    assert told in text and text.count("In this study : not compared with quality.") == 3
    assert not any("onerror" in attributes for _, attributes in elements.found)


def test_the_primary_question_is_shown(folder, tmp_path):
    part = shutil.copytree(folder, tmp_path / "part")
    record = {"target": "gfd", "predictor": "m_viv", "settings": 6, "n": 24, "value": 0.8765}
    (part / "analysis.json").write_text(json.dumps({"primary": [record]}))
    text = _Elements(build_report(part).html).text
    assert "The primary question" in text and "0.8765" in text


def test_table_alone_is_enough(tmp_path):
    file = write_report(study_folder(tmp_path), tmp_path / "elsewhere" / "page.html")
    assert file.stat().st_size > 1_000_000 and file.parent.name == "elsewhere"
    assert not (tmp_path / "report.html").exists()
    assert [path.name for path in file.parent.iterdir()] == ["page.html"]


def test_large_studies_stay_small(tmp_path):
    """30 tokenizers and 2 generators with photographs of noise, the worst to compress: below 15 MB."""
    folder = full_folder(tmp_path, tokenizers=30)
    for file in sorted((folder / "pictures").rglob("*.png"))[:9]:
        write_picture(file, seed=0, height=600, width=900)
    assert 2e6 < write_report(folder).stat().st_size < 15e6


def test_pictures_are_exact_where_they_fit(tmp_path):
    file = tmp_path / "small.png"
    write_picture(file, seed=1)
    uri, width, height = embedded(file, limit=60_000)
    assert uri.startswith("data:image/png") and (width, height) == (128, 32)
    write_picture(file, seed=1, height=600, width=900)
    uri, width, height = embedded(file, limit=60_000)
    assert uri.startswith("data:image/webp") and len(uri) < 80_100 and width <= 480


def test_labels_do_not_lead_out_of_the_folder(tmp_path):
    study = example_study(4)
    rows = study.rows.assign(tokenizer="../" + study.rows["tokenizer"])
    StudyTable(rows, study.columns).write(tmp_path / "study")
    Image.new("RGB", (8, 8)).save(tmp_path / "study" / "secret.png")
    (tmp_path / "study" / "pictures").mkdir()
    for number in range(4):
        write_picture(tmp_path / "study" / f"tokenizer-{number:02d}" / "reconstructions.png", seed=0)
    assert "pictures" in build_report(tmp_path / "study").missing


def test_seeds_are_averaged_and_failures_counted():
    study = example_study(4)
    broken = (study.rows.tokenizer == "tokenizer-01") & (study.rows.generator_seed == 1)
    study.rows.loc[broken, "error"] = "out of memory"
    study.rows.loc[broken, "gfd_fashion_classifier"] = np.nan
    points = points_of(study)
    assert points.scales == ("1", "1.5", "2") and len(points.rows) == 4 * 2 * 3
    row = points.rows.query("tokenizer == 'tokenizer-01' and generator == 'sit' and guidance == 1.5").iloc[0]
    kept = study.rows[~broken].query("tokenizer == 'tokenizer-01' and generator == 'sit' and guidance == 1.5")
    assert row[RUNS] == 1 and row["gfd_fashion_classifier"] == kept["gfd_fashion_classifier"].item()


def test_matrix_agrees_with_scipy():
    from scipy.stats import pearsonr, spearmanr

    rng = np.random.default_rng(0)
    rows = pd.DataFrame(rng.normal(size=(12, 3)), columns=["a", "b", "c"])
    rows.loc[[2, 5], "b"] = np.nan
    both = rows.dropna()
    for method, reference in (("spearman", spearmanr), ("pearson", pearsonr)):
        values, counts = correlations_of(rows, ["a", "b", "c"], method)
        assert values[1] == pytest.approx(reference(both["a"], both["b"])[0])
        assert values[2] == pytest.approx(reference(rows["a"], rows["c"])[0])
        assert counts == [12, 10, 12, 10, 10, 10, 12, 10, 12]


def test_ids_do_not_depend_on_the_process():
    from bokeh.models import Div

    assert document_json({"place": Div(text="p1001 </script>")}) == document_json(
        {"place": Div(text="p1001 </script>")}
    )
    assert "</script" not in document_json({"place": Div(text="p1001 </script>")})


def test_matrix_leaves_controls_out_at_first():
    """A control far away from all others turns the correlation of trained tokenizers around."""
    study = example_study(8)
    control = study.rows.tokenizer == "tokenizer-07"
    study.rows.loc[control, "control"] = "permutation"
    study.rows.loc[control, "m_viv"], study.rows.loc[control, "gfd_fashion_classifier"] = -1e3, 1e3
    points = points_of(study)
    columns = matrix_columns(points)
    cell = columns.index("m_viv") * len(columns) + columns.index("gfd_fashion_classifier")
    told = all_correlations(points, columns)
    assert told["0-0-1-0"]["n"][cell] == 7 and told["0-0-1-0"]["value"][cell] > 0.9
    assert told["0-0-1-1"]["n"][cell] == 8 and told["0-0-1-1"]["value"][cell] < -0.9


def test_numbers_for_readers():
    assert [shown(value) for value in (None, "", True, 3, 0.123456, float("inf"), [1, None])] == [
        "–", "–", "yes", "3", "0.1235", "–", "1, –",
    ]  # fmt: skip
    assert number_format([1.25, 0.00123, np.nan]) == "0.000"
    assert number_format([0.00123456]) == "0.000000"
    assert number_format([1.0, 1.5]) == "0.0"
    assert number_format([1234.5678]) == "0.0"
    assert number_format([np.nan]) == number_format([0.0]) == "0"
    assert number_format([12.0, 5000.0]) == "0"


@pytest.mark.parametrize("breakage", ["no folder", "no table", "no columns", "empty"])
def test_without_a_table_there_is_no_report(tmp_path, breakage):
    folder = tmp_path / "study"
    if breakage != "no folder":
        study_folder(folder, tokenizers=2)
    if breakage == "no table":
        (folder / "results.csv").unlink()
    if breakage == "no columns":
        (folder / "columns.json").unlink()
    if breakage == "empty":
        (folder / "results.csv").write_text("a\n")
    with pytest.raises(UserError) as refused:
        read_contents(folder)
    assert "\n" not in str(refused.value) and "study" in str(refused.value)


def test_a_folder_is_no_file_to_write(tmp_path):
    with pytest.raises(UserError, match="name the HTML file"):
        write_report(study_folder(tmp_path, tokenizers=2), tmp_path)


def test_command(tmp_path):
    app = typer.Typer()
    app.command()(command)
    told = CliRunner().invoke(app, [str(study_folder(tmp_path / "study", tokenizers=2)), "--json"])
    answer = json.loads(told.stdout)
    assert told.exit_code == 0 and Path(answer["report"]).stat().st_size == answer["bytes"]
    assert answer["missing"] == ["analysis.json", "claims.json", "plan.yaml", "pictures"]
    assert "missing  analysis.json" in told.stderr
