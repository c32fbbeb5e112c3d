"""Points of a study: values and bars from the table, looks by cluster, controls hollow and joined."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from figures.study_layout import axis_label, cluster_legend, interval_words, stretch, unit_label
from figures.study_points import curve, face, facts, looks, measured, scatter, spread
from latentlab.errors import UserError
from latentlab.study.plan_file import load_study
from latentlab.study.table import StudyTable

from .rich_study import TARGET, rich_study

STUDY = rich_study()


def _rows(tokenizer: str):
    rows = STUDY.rows
    return rows[(rows["tokenizer"] == tokenizer) & (rows["generator"] == "sit") & (rows["guidance"] == 1.0)]


def test_value_is_the_mean_and_bars_span_repeats_and_intervals() -> None:
    own = _rows("tokenizer-00")
    assert len(own) == 4  # two seeds of the tokenizer, two of the generator
    quality = spread(STUDY, TARGET, "sit", 1.0).loc["tokenizer-00"]
    np.testing.assert_allclose(list(quality), [own[TARGET].mean(), own[TARGET].min(), own[TARGET].max()])
    viv = spread(STUDY, "m_viv", "sit", 1.0).loc["tokenizer-00"]
    np.testing.assert_allclose(list(viv), [own["m_viv"].mean(), own["m_viv_low"].min(), own["m_viv_high"].max()])


def test_tokenizers_without_a_value_are_left_out() -> None:
    rows = STUDY.rows.copy()
    rows.loc[rows["tokenizer"] == "tokenizer-05", TARGET] = np.nan
    assert "tokenizer-05" not in spread(type(STUDY)(rows, STUDY.columns), TARGET, "sit", 1.0).index


def test_scatter_draws_every_tokenizer_once_and_joins_controls() -> None:
    axes = Figure().subplots()
    x, y = spread(STUDY, "m_viv", "sit", 1.0), spread(STUDY, TARGET, "sit", 1.0)
    assert len(scatter(axes, STUDY, x, y)) == 27
    points = [line for line in axes.get_lines() if line.get_linestyle() == "None" and len(line.get_xdata())]
    drawn = np.concatenate([line.get_xydata() for line in points])
    np.testing.assert_allclose(sorted(drawn[:, 1]), sorted(y["value"]))
    hollow = [line for line in points if line.get_markerfacecolor() == "white"]
    assert sum(len(line.get_xdata()) for line in hollow) == 3
    joints = [line for line in axes.get_lines() if line.get_linestyle() == "-"]
    assert len(joints) == 3 and all(line.get_ydata()[0] == y.loc["tokenizer-00", "value"] for line in joints)
    across, up = (bars.get_segments() for bars in axes.collections)
    np.testing.assert_allclose([bar[:, 0] for bar in across], x[["low", "high"]])
    np.testing.assert_allclose([bar[:, 1] for bar in up], y[["low", "high"]])


def test_clusters_look_different() -> None:
    pairs = [(look["color"], look["marker"]) for look in looks(STUDY).values()]
    assert len(set(pairs)) == len(pairs) == 9
    assert curve(STUDY, "tokenizer-00-mixed")["linestyle"] == "dashed" != curve(STUDY, "tokenizer-00")["linestyle"]
    assert facts(STUDY)["tokenizer-03"].held_out and not facts(STUDY)["tokenizer-00"].held_out


@pytest.mark.parametrize("name", ["fashion", "cifar10", "smoke", "imagenet_study"])
def test_clusters_of_shipped_studies_differ_without_colour(name: str) -> None:
    study = load_study(Path(__file__).parents[2] / "studies" / "diffusability" / f"{name}.yaml")
    clusters = list(dict.fromkeys(one.cluster or (one.control and "control") for one in study.tokenizers))
    rows = pd.DataFrame(
        {"tokenizer": clusters, "cluster": clusters, "control": "", "control_of": "", "held_out": False}
    )
    forms = [(look["marker"], look["fillstyle"]) for look in looks(StudyTable(rows, STUDY.columns)).values()]
    assert len(set(forms)) == len(clusters) and len(clusters) >= (15 if name == "fashion" else 2)


def test_markers_are_drawn_as_their_form_says() -> None:
    look = {"color": "#332288", "marker": "o", "fillstyle": "full"}
    filled, hollow = (Line2D([], [], **face(look, hollow)) for hollow in (False, True))
    assert filled.get_markerfacecolor() == "#332288" and hollow.get_markerfacecolor() == "white"
    half = Line2D([], [], **face({**look, "fillstyle": "left"}, hollow=False))
    assert half.get_fillstyle() == "left" and half.get_markeredgecolor() == half.get_markerfacecolor() == "#332288"
    assert half.get_markerfacecoloralt() == "white"


def test_legend_names_clusters_and_controls() -> None:
    figure = Figure(figsize=(8, 4))
    cluster_legend(figure, STUDY)
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert names == ["baseline", "kl", "repa", "eq", "lcr", "lmr", "mae", "vq", "control", "control, with its original"]


def test_many_clusters_stand_in_columns() -> None:
    rows = STUDY.rows.assign(cluster=STUDY.rows["tokenizer"])
    figure = Figure(figsize=(8, 3), layout="constrained")
    figure.subplots()
    cluster_legend(figure, type(STUDY)(rows, STUDY.columns))
    figure.draw_without_rendering()
    box = figure.legends[0].get_window_extent()
    assert len(figure.legends[0].get_texts()) == 28 and box.y0 >= 0 and box.y1 <= figure.bbox.y1
    assert figure.axes[0].get_window_extent().width > 4 * figure.dpi  # the figure grew, the panel kept its width


def test_labels_say_unit_and_better_side() -> None:
    assert axis_label(STUDY, "psnr") == "psnr (dB), higher is better"
    assert axis_label(STUDY, "m_viv", "\n") == "viv (variance per dimension)\nlower is easier"
    assert unit_label(STUDY, "psnr") == "dB, higher is better"
    assert unit_label(STUDY, "held_out_loss") == "lower is better"
    assert axis_label(STUDY, "step_variance_correlation") == "step_variance_correlation"


def test_interval_in_words() -> None:
    record = {"value": -0.916, "low": -0.97, "high": -0.8, "n": 24}
    assert interval_words("r", record) == "r = −0.92 [−0.97, −0.80], n = 24"
    assert interval_words("r", {**record, "low": None}) == "r = −0.92, n = 24"
    assert interval_words("r", None) == interval_words("r", {**record, "value": None}) == ""


@pytest.mark.parametrize(
    ("values", "scale"), [([1, 11], "linear"), ([1, 13], "log"), ([-1, 13], "linear"), ([], "linear")]
)
def test_axes_stretch_for_wide_ranges(values: list[float], scale: str) -> None:
    axes = Figure().subplots()
    axes.plot(values, values)
    stretch(axes, "y", values)
    assert axes.get_yscale() == scale


def test_columns_without_values_are_named() -> None:
    assert measured(STUDY, ["m_viv", "m_absent"], "sit", 1.0) == ["m_viv"]
    with pytest.raises(UserError, match=r"none of m_absent has a value for sit, guidance 1"):
        measured(STUDY, ["m_absent"], "sit", 1.0)
