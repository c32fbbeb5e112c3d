"""All figures of a study from its folder: what is drawn, what is left out and why, and studies that are awkward."""

import json
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from latentlab.errors import UserError
from latentlab.study.plots.draw import _plans, draw_study, left_out
from latentlab.study.plots.inputs import StudyFolder
from latentlab.study.table import StudyTable

from ...figures.rich_study import TARGET, rich_study, write_study

SMALL = ("m_viv", TARGET)


def _small(folder: Path, drop: tuple[str, ...] = ()) -> Path:
    """Write a study with two measurements of few tokenizers: few figures."""
    study = rich_study(3, controls=False, generators=("sit",), seeds=1)
    kept = [one for one in study.columns if one.role == "identity" or (one.name in SMALL and one.name not in drop)]
    rows = study.rows[study.rows["guidance"] == 1.0][[one.name for one in kept]]
    StudyTable(rows, tuple(kept)).write(folder)
    return folder


def _draw_all(folder: Path) -> dict[str, str]:
    """Draw every figure of a folder without writing it, and return why some were not."""
    refused = {}
    for plan in _plans(StudyFolder(folder)):
        try:
            figure = plan.draw()
        except UserError as error:
            refused[plan.stem] = str(error)
            continue
        _assert_whole(figure, plan.stem)
    return refused


def _assert_whole(figure: Figure, stem: str) -> None:
    """Nothing that is written lies outside the figure, and no label, title or legend lies on another."""
    texts = [figure._suptitle, figure._supxlabel, figure._supylabel]
    for axes in figure.axes:
        texts += [axes.xaxis.label, axes.yaxis.label, axes._left_title]
    boxes = [(text.get_text(), text.get_window_extent()) for text in texts if text is not None and text.get_text()]
    boxes += [("legend", one.get_window_extent()) for one in figure.legends]
    for words, box in boxes:
        inside = box.x0 >= -2 and box.y0 >= -2 and box.x1 <= figure.bbox.x1 + 2 and box.y1 <= figure.bbox.y1 + 2
        assert inside, f"{stem}: '{words}' is cut off"
    for (first, one), (second, other) in combinations(boxes, 2):
        across = min(one.x1, other.x1) - max(one.x0, other.x0)
        up = min(one.y1, other.y1) - max(one.y0, other.y0)
        assert min(across, up) <= 2, f"{stem}: '{first}' and '{second}' lie on each other"


def test_png_and_svg_with_the_same_bytes_every_time(tmp_path: Path) -> None:
    folder = _small(tmp_path / "study")
    first = draw_study(folder)
    assert [file.name for file in first] == [
        "against_quality_sit.png", "against_quality_sit.svg", "noise.png", "noise.svg",
    ]  # fmt: skip
    contents = [file.read_bytes() for file in first]
    assert [file.read_bytes() for file in draw_study(folder)] == contents
    image = np.asarray(Image.open(first[0]).convert("L"))
    assert image.shape[1] >= 1000 and 0.002 < (image < 128).mean() < 0.5
    reasons = left_out(folder)
    assert "two measurements" in reasons["two_perspectives_sit"] and "analysis.json" in reasons["correlation_map"]
    assert "one guidance scale only" in reasons["guidance_sit"] and "no control" in reasons["control_effects_sit"]


def test_stale_figures_go_and_files_of_others_stay(tmp_path: Path) -> None:
    folder = _small(tmp_path / "study")
    draw_study(folder)
    (folder / "figures" / "mine.png").write_bytes(b"mine")
    _small(folder, drop=("m_viv",))
    draw_study(folder)
    names = {file.name for file in (folder / "figures").iterdir()}
    assert names == {"noise.png", "noise.svg", "mine.png", "drawn.json"}


@pytest.mark.parametrize("record", ["", "[]", '{"files": 3}', '{"files": ["../results.csv", "../x.png", 7]}'])
def test_a_damaged_record_of_figures_removes_nothing(tmp_path: Path, record: str) -> None:
    folder = _small(tmp_path / "study", drop=("m_viv", TARGET))
    (folder / "figures").mkdir()
    (folder / "figures" / "drawn.json").write_text(record)
    (folder / "x.png").write_bytes(b"")
    with pytest.raises(UserError, match="no column of quality"):
        _ = StudyFolder(folder).targets()
    draw_study(folder)
    assert (folder / "results.csv").exists() and (folder / "x.png").exists()


def test_everything_is_drawn_from_a_full_folder_of_many(tmp_path: Path) -> None:
    """40 tokenizers with long names that hold dollar signs, in 12 clusters."""
    study = rich_study(40, generators=("sit",), seeds=1)
    rows = study.rows[study.rows["guidance"] < 2].copy()
    for name in ("tokenizer", "control_of"):
        rows[name] = rows[name].map(lambda label: label and f"a-rather-long-label-of-${label}$-with-lcr-w0.05-th0.90")
    plain = rows["control"] == ""
    rows.loc[plain, "cluster"] = [f"cluster-{hash_ % 12}" for hash_ in rows.loc[plain, "tokenizer"].factorize()[0]]
    assert _draw_all(write_study(tmp_path / "study", replace(study, rows=rows))) == {}


def test_few_tokenizers_of_one_cluster_with_holes(tmp_path: Path) -> None:
    study = rich_study(3, controls=False, generators=("sit",), seeds=1)
    rows = study.rows[study.rows["guidance"] < 2].assign(cluster="", family="", held_out="")
    rows.loc[rows["tokenizer"] == "tokenizer-01", [TARGET, "held_out_loss", "fd_latents"]] = np.nan
    rows.loc[rows["tokenizer"] == "tokenizer-02", ["m_viv", "m_viv_low", "m_viv_high", "rfd_efficientnet_lite0"]] = (
        np.nan
    )
    rows["m_cds"] = np.nan
    study = replace(study, rows=rows)
    folder = write_study(tmp_path / "study", rich_study(3, controls=False, generators=("sit",), seeds=1))
    study.write(folder)
    assert set(_draw_all(folder)) == {"control_effects_sit"}


def test_a_study_without_finished_samples_has_no_figures_of_quality(tmp_path: Path) -> None:
    study = rich_study(3, controls=False, generators=("sit",), seeds=1)
    replace(study, rows=study.rows.assign(**{TARGET: np.nan})).write(tmp_path)
    refused = _draw_all(tmp_path)
    assert f"none of {TARGET} has a value for sit, guidance 1" in refused["against_quality_sit"]
    assert "decoder_noise" not in refused and "where_quality_is_lost_sit" in refused


@pytest.mark.parametrize(
    ("name", "content", "costs"),
    [
        ("analysis.json", "{", {"correlation_map"}),
        ("analysis.json", '{"correlations": [{"target": 1}]}', {"correlation_map"}),
        ("analysis.json", '{"correlations": {"a": 1}}', {"correlation_map"}),
        ("floors.json", '{"fashion_classifier": "far"}', {"reconstruction_against_generation_sit"}),
        ("details/tokenizer-00/gmm.json", "[]", {"modes_against_loss_sit"}),
        ("details/tokenizer-00/umap.json", '{"points": [[1, "x"]], "labels": [1]}', {"latent_maps"}),
    ],
)
def test_a_damaged_file_costs_only_its_figures(tmp_path: Path, name: str, content: str, costs: set[str]) -> None:
    study = rich_study(3, controls=False, generators=("sit",), seeds=1)
    study = replace(study, rows=study.rows[study.rows["guidance"] < 2])
    folder = write_study(tmp_path / "study", study)
    before = json.loads((folder / "analysis.json").read_text())
    (folder / name).write_text(content)
    study = StudyFolder(folder)
    refused = {}
    for plan in _plans(study):
        if plan.stem in costs or plan.stem in ("against_quality_sit", "guidance_sit"):
            try:
                plan.draw()
            except UserError as error:
                refused[plan.stem] = str(error)
    assert set(refused) == costs
    assert all(Path(name).name in reason or "table of numbers" in reason for reason in refused.values())
    assert bool(study.records("pairs")) == (name != "analysis.json") and before["pairs"]


def test_guidance_leaves_out_seeds_that_failed_and_scales_that_a_seed_lacks(tmp_path: Path) -> None:
    study = rich_study(2, controls=False, generators=("sit",), seeds=2)
    rows = study.rows.copy()
    failed = (rows["tokenizer"] == "tokenizer-00") & (rows["generator_seed"] == 1)
    partial = (rows["tokenizer"] == "tokenizer-01") & (rows["generator_seed"] == 1) & (rows["guidance"] == 2.0)
    rows.loc[failed | partial, TARGET] = np.nan
    replace(study, rows=rows).write(tmp_path)
    (plan,) = [plan for plan in _plans(StudyFolder(tmp_path)) if plan.stem == "guidance_sit"]
    curves = [line for line in plan.draw().axes[0].get_lines() if len(line.get_xdata()) > 1]
    first = rows[(rows["tokenizer"] == "tokenizer-00") & (rows["generator_seed"] == 0)]
    np.testing.assert_allclose(curves[0].get_ydata(), first[TARGET])
    assert list(curves[1].get_xdata()) == [1.0, 1.5]


def test_labels_may_look_like_numbers(tmp_path: Path) -> None:
    study = rich_study(4, controls=False, generators=("sit",), seeds=1)
    replace(study, rows=study.rows.assign(tokenizer=study.rows["tokenizer"].str[-2:], generator="7")).write(tmp_path)
    (plan,) = [plan for plan in _plans(StudyFolder(tmp_path)) if plan.stem == "against_quality_7"]
    lines = plan.draw().axes[0].get_lines()
    assert sum(len(line.get_xdata()) for line in lines) == 4


def test_what_is_no_study_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"results\.csv"):
        draw_study(tmp_path)
