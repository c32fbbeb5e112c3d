"""The figures of a study show what its table says: axes, number of points, and values read back from what was drawn."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb

from figures import (
    guidance_curves,
    study_against_quality,
    study_control_effects,
    study_correlation_map,
    study_decoder_noise,
    study_latent_maps,
    study_modes_against_loss,
    study_noise,
    study_predicted_against_observed,
    study_primary,
    study_ranking_stability,
    study_reconstruction_against_generation,
    study_trajectories,
    study_two_perspectives,
    study_variance_along_path,
    study_where_quality_is_lost,
)
from figures.study_points import at, spread
from latentlab.errors import UserError
from latentlab.study.table import Column

from .rich_study import TARGET, analysis_of, details_of, rich_study

STUDY = rich_study()
ANALYSIS = analysis_of(STUDY)
CELL = ("sit", 1.0)
QUALITY = spread(STUDY, TARGET, *CELL)


def _points(axes: Axes) -> np.ndarray:
    lines = [line for line in axes.get_lines() if line.get_linestyle() == "None" and len(line.get_xdata())]
    return np.concatenate([line.get_xydata() for line in lines])


def _sorted(points: np.ndarray) -> np.ndarray:
    return points[np.lexsort(points.T)]


def _pairs(x: str, y: str, cell: tuple[str, float] = CELL) -> np.ndarray:
    return _sorted(np.c_[spread(STUDY, x, *cell)["value"], spread(STUDY, y, *cell)["value"]])


def _titles(figure) -> list[str]:
    return [axes.get_title(loc="left") for axes in figure.axes]


def test_a_panel_per_measurement_against_quality() -> None:
    names = ("m_viv", "m_lnc", "psnr", "m_absent")
    figure = study_against_quality.draw(STUDY, names, TARGET, *CELL, ANALYSIS["correlations"])
    assert _titles(figure) == ["viv", "lnc", "psnr"]
    for axes, name in zip(figure.axes, names, strict=False):
        np.testing.assert_allclose(_sorted(_points(axes)), _pairs(name, TARGET))
    (record,) = [
        one for one in ANALYSIS["correlations"]
        if (one["predictor"], one["generator"], one["guidance"], one["method"]) == ("m_viv", *CELL, "spearman")
        and not one["covariates"]
    ]  # fmt: skip
    assert figure.axes[0].texts[0].get_text().startswith(f"ρ = {record['value']:.2f} [")
    assert not figure.axes[2].texts  # not correlated
    assert figure.axes[2].get_xlabel() == "dB, higher is better"
    assert figure.get_supylabel() == f"{TARGET}\n(squared distance of features)\nlower is better"
    assert "sit, guidance 1" in figure.get_suptitle()


def test_the_primary_question_has_a_row_per_predictor_the_strongest_on_top() -> None:
    records = ANALYSIS["primary"]
    (axes,) = (figure := study_primary.draw(records)).axes
    raw = sorted((one for one in records if not one["covariates"]), key=lambda one: abs(one["value"]))
    names = [label.get_text() for label in axes.get_yticklabels()]
    assert [name.strip("()!").split()[0] for name in names] == [one["predictor"][2:] for one in raw]
    for one, name in zip(raw, names, strict=True):
        assert name.startswith("(") == (one["p_adjusted"] >= 0.05) and ("!" in name) == (one["agrees"] is False)
    first, second = (line for line in axes.get_lines() if line.get_linestyle() == "None")
    given = [one for one in records if one["covariates"]]
    assert sorted(first.get_xdata()) == sorted(one["value"] for one in raw)
    assert sorted(second.get_xdata()) == sorted(one["value"] for one in given)
    lines = [line for line in axes.get_lines() if line.get_linestyle() == "-" and line.get_color() == first.get_color()]
    assert sorted(tuple(line.get_xdata()) for line in lines) == sorted((one["low"], one["high"]) for one in raw)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["as measured", "given\ndecoder_sensitivity"]
    with pytest.raises(UserError, match="at least one correlation"):
        study_primary.draw([])


def test_trajectories_have_a_row_per_generator() -> None:
    figure = study_trajectories.draw(STUDY, ("straightness", "efficiency"), TARGET, 1.0)
    assert _titles(figure) == [f"{g}: {p}" for g in ("sit", "lightningdit") for p in ("straightness", "efficiency")]
    np.testing.assert_allclose(_sorted(_points(figure.axes[3])), _pairs("efficiency", TARGET, ("lightningdit", 1.0)))
    assert figure.axes[2].get_xlabel() == "straightness, higher is easier"
    with pytest.raises(UserError, match="no generator has straightness"):
        study_trajectories.draw(STUDY, ("straightness",), TARGET, 7.0)


def test_correlation_map_prints_values_and_brackets_chance() -> None:
    figure = study_correlation_map.draw(ANALYSIS["correlations"], TARGET)
    axes = figure.axes[0]
    rows = [label.get_text() for label in axes.get_yticklabels()]
    assert [label.get_text() for label in axes.get_xticklabels()][:2] == ["sit\nw=1", "sit\nw=1.5"]
    texts = np.array([text.get_text() for text in axes.texts]).reshape(4, 6)
    drawn = np.asarray(axes.collections[0].get_array()).reshape(4, 6)
    for one in ANALYSIS["correlations"]:
        if one["method"] == "pearson" and not one["covariates"]:
            row, column = rows.index(one["predictor"][2:]), (3 if one["generator"] != "sit" else 0)
            column += [1.0, 1.5, 2.0].index(one["guidance"])
            assert drawn[row, column] == pytest.approx(one["value"])
            assert texts[row, column].startswith("(") == (one["p_adjusted"] >= 0.05)
    strength = np.abs(drawn).mean(1)
    assert list(strength) == sorted(strength, reverse=True)
    with pytest.raises(UserError, match="no pearson correlation with psnr"):
        study_correlation_map.draw(ANALYSIS["correlations"], "psnr")


def test_signed_colours_are_told_apart_in_grey() -> None:
    """Lightness falls from the middle to both ends, and further to the negative one."""
    grey = [np.dot(to_rgb(study_correlation_map.SIGNED(v)), [0.299, 0.587, 0.114]) for v in np.linspace(0, 1, 41)]
    assert (np.diff(grey[:20]) > 0).all() and (np.diff(grey[21:]) < 0).all()
    assert grey[0] + 0.2 < grey[-1] < grey[20] - 0.4


def test_bubbles_grow_with_the_distance() -> None:
    pair = ANALYSIS["pairs"][0]
    figure = study_two_perspectives.draw(STUDY, "m_viv", "m_srss", TARGET, *CELL, pair)
    bubbles = figure.axes[0].collections
    assert len(bubbles) == 27
    where = np.array([bubble.get_offsets()[0] for bubble in bubbles])
    np.testing.assert_allclose(_sorted(where), _pairs("m_viv", "m_srss"))
    values = [bubble.get_array()[0] for bubble in bubbles]
    assert sorted(values) == pytest.approx(sorted(QUALITY["value"]))
    assert values == sorted(values, reverse=True)  # the smallest lies on top
    assert list(np.argsort([bubble.get_sizes()[0] for bubble in bubbles])) == list(np.argsort(values))
    assert "R² of both 0.91" in figure.get_supxlabel() and "cross validated 0.85" in figure.get_supxlabel()
    assert figure.axes[1].get_ylabel() == f"{TARGET} (squared distance of features)\nlower is better"


def test_guidance_groups_share_a_look_and_mark_their_best() -> None:
    sweeps = {name: [{"scale": [1, 2, 3], "distance": [9, best, 5]}] for name, best in (("a", 4), ("b", 7), ("c", 3))}
    figure = guidance_curves.draw(sweeps, "gfd", groups={"a": "kl", "b": "kl", "c": "vq"}, title="Guidance of sit")
    (axes,) = figure.axes  # no precision, no recall
    lines = [line for line in axes.get_lines() if len(line.get_xdata()) == 3]
    np.testing.assert_array_equal([line.get_ydata()[1] for line in lines], [4, 7, 3])
    assert lines[0].get_color() == lines[1].get_color() != lines[2].get_color()
    best = [line.get_xydata()[0].tolist() for line in axes.get_lines() if len(line.get_xdata()) == 1]
    assert best == [[2, 4], [3, 5], [2, 3]]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["kl", "vq"]


@pytest.mark.parametrize(
    ("names", "bands", "note"), [(12, 12, "mean over seeds; bands: their range"), (13, 0, "mean over seeds")]
)
def test_ranges_of_many_curves_are_left_out(names: int, bands: int, note: str) -> None:
    seeds = [{"scale": [1, 2], "distance": [9, height]} for height in (4, 5)]
    figure = guidance_curves.draw(
        {f"{i}": seeds for i in range(names)}, "gfd", groups={f"{i}": "kl" for i in range(names)}
    )
    assert len(figure.axes[0].collections) == bands and figure.get_supxlabel() == note


@pytest.mark.parametrize(("floor", "drawn", "note"), [(0.41, True, ""), (0.39, False, "far below: real images 0.39")])
def test_a_floor_far_below_is_told_instead_of_drawn(floor: float, drawn: bool, note: str) -> None:
    figure = guidance_curves.draw({"a": [{"scale": [1, 2], "distance": [4, 9]}]}, "gfd", {"real images": floor})
    assert (figure.axes[0].get_ylim()[0] < floor) == drawn and figure.get_supxlabel() == note


def test_variance_lies_over_step_lengths_on_one_scale() -> None:
    paths = {name: details_of("straightness", 0.2 * i) for i, name in enumerate(("a", "b", "c"))}
    variances = {name: details_of("viv", 0.2 * i) for i, name in enumerate(("a", "b"))}
    figure = study_variance_along_path.draw(paths, variances, {"a": -0.81}, "sit")
    first, second, over_first, over_second = figure.axes
    np.testing.assert_allclose(second.get_lines()[0].get_ydata(), paths["b"]["length_ratio"])
    np.testing.assert_allclose(over_second.get_lines()[0].get_ydata(), variances["b"]["curve"])
    assert over_first.get_ylim() == over_second.get_ylim() and first.get_ylim() == second.get_ylim()
    assert first.texts[0].get_text() == "r = −0.81" and _titles(figure)[:2] == ["a", "b"]
    with pytest.raises(UserError, match="no tokenizer has both"):
        study_variance_along_path.draw(paths, {})


def test_modes_stand_beside_the_loss() -> None:
    mixtures = {f"tokenizer-{i:02d}": details_of("gmm", 0.1 * i) for i in range(5)}
    figure = study_modes_against_loss.draw(STUDY, {**mixtures, "unknown": details_of("gmm", 0.5)}, *CELL)
    curves, points = figure.axes
    assert len(curves.get_lines()) == 5
    np.testing.assert_allclose(curves.get_lines()[2].get_ydata(), mixtures["tokenizer-02"]["heldout_nll"])
    losses = spread(STUDY, "held_out_loss", *CELL)["value"]
    expected = [[min(one["heldout_nll"]), losses[name]] for name, one in mixtures.items()]
    np.testing.assert_allclose(_sorted(_points(points)), _sorted(np.array(expected)))
    assert "16 dimensions" in curves.get_ylabel() and points.get_ylabel() == "held_out_loss, lower is better"
    with pytest.raises(UserError, match="equal dimension"):
        study_modes_against_loss.draw(STUDY, {**mixtures, "tokenizer-01": details_of("gmm", 0.5) | {"dims": 3}}, *CELL)


def test_maps_share_their_classes() -> None:
    maps = {name: details_of("umap", 0.3 * i) for i, name in enumerate(("a", "b"))}
    maps["b"]["labels"] = [1] * 200
    figure = study_latent_maps.draw(maps, {"a": "gfd 3"}, ["ant", "bee"], "2 tokenizers")
    first, second = figure.axes
    np.testing.assert_allclose(first.get_lines()[0].get_xydata(), np.array(maps["a"]["points"])[::5])
    assert [len(line.get_xdata()) for line in second.get_lines()] == [0, 200, 0, 0, 0]
    assert first.get_lines()[1].get_color() == second.get_lines()[1].get_color()
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["ant", "bee", "2", "3", "4"]
    assert first.texts[0].get_text() == "gfd 3" and figure.get_suptitle().endswith(": 2 tokenizers")


def test_reconstruction_against_generation_has_its_floors() -> None:
    judges = {judge: (f"rfd_{judge}", f"gfd_{judge}") for judge in ("fashion_classifier", "efficientnet_lite0")}
    figure = study_reconstruction_against_generation.draw(STUDY, judges, *CELL, {"fashion_classifier": 1.0})
    axes, without = figure.axes
    np.testing.assert_allclose(_sorted(_points(axes)), _pairs("rfd_fashion_classifier", TARGET))
    assert axes.get_xscale() == axes.get_yscale() == "log" and without.get_xscale() == without.get_yscale()
    diagonals = [
        line
        for line in axes.get_lines()
        if len(line.get_xdata()) == 2 and list(line.get_xdata()) == list(line.get_ydata())
    ]
    assert len(diagonals) == 1 and list(diagonals[0].get_xdata()) == pytest.approx(axes.get_xlim())
    floors = [line for line in axes.get_lines() if list(line.get_xdata()) == [0, 1]]
    assert [list(line.get_ydata()) for line in floors] == [[1.0, 1.0]]
    assert not [line for line in without.get_lines() if list(line.get_xdata()) == [0, 1]]
    assert axes.get_ylim()[0] < 1 < axes.get_ylim()[1]
    far, _ = study_reconstruction_against_generation.draw(STUDY, judges, *CELL, {"fashion_classifier": 0.001}).axes
    assert far.texts[0].get_text() == "real images: 0.001"
    assert not [line for line in far.get_lines() if list(line.get_xdata()) == [0, 1]]


def test_rows_show_where_quality_is_lost() -> None:
    stages = ("rfd_fashion_classifier", "gfd_reconstructions_fashion_classifier", TARGET)
    figure = study_where_quality_is_lost.draw(STUDY, stages, *CELL, "fd_latents")
    images, latents = figure.axes
    names = [label.get_text() for label in images.get_yticklabels()]
    assert names == list(QUALITY.sort_values("value").index)
    for line, stage in zip(images.get_lines(), stages, strict=True):
        np.testing.assert_allclose(line.get_xdata(), spread(STUDY, stage, *CELL)["value"].loc[names])
    np.testing.assert_allclose(
        latents.get_lines()[0].get_xdata(), spread(STUDY, "fd_latents", *CELL)["value"].loc[names]
    )
    assert images.yaxis_inverted() and len(figure.legends[0].get_texts()) == 4


def test_decoder_curves_are_the_columns() -> None:
    measures = {m: {s: f"decoder_{m}_{s}" for s in (0.1, 0.3, 1.0)} for m in ("image", "feature")}
    figure = study_decoder_noise.draw(STUDY, measures)
    assert _titles(figure) == ["Image", "Feature"]
    lines = figure.axes[1].get_lines()
    assert len(lines) == 27
    own = STUDY.rows[STUDY.rows["tokenizer"] == "tokenizer-02"]
    np.testing.assert_allclose(lines[2].get_ydata(), [own[f"decoder_feature_{s}"].mean() for s in (0.1, 0.3, 1.0)])
    assert figure.axes[0].get_ylabel() == "change per unit of noise\n(pixels in [-1,1] per channel deviation)"
    assert sum(line.get_linestyle() == "--" for line in lines) == 3
    with pytest.raises(UserError, match="no column of the decoder"):
        study_decoder_noise.draw(STUDY, {})


def test_ranks_are_those_of_the_means() -> None:
    cells = [("sit", 1.0), ("sit", 2.0), ("lightningdit", 1.0)]
    figure = study_ranking_stability.draw(STUDY, TARGET, cells, ANALYSIS["stability"])
    lines = figure.axes[0].get_lines()
    assert len(lines) == 27
    ranks = np.array([line.get_ydata() for line in lines])
    for column, cell in enumerate(cells):
        assert sorted(ranks[:, column]) == list(range(1, 28))
        order = list(spread(STUDY, TARGET, *cell)["value"].sort_values().index)
        side = {0: 0, 2: 1}.get(column)
        if side is not None:
            names = [label.get_text().split("  ")[1] for label in figure.axes[side].get_yticklabels()]
            assert names == order
    assert [text.get_text() for text in figure.axes[0].texts] == ["ρ 0.97", "ρ 0.97"]
    with pytest.raises(UserError, match="two generators or guidance scales"):
        study_ranking_stability.draw(STUDY, TARGET, cells[:1])


def test_predictions_are_drawn_over_observations() -> None:
    chosen = [one for one in ANALYSIS["prediction"] if (one["generator"], one["guidance"]) == CELL]
    chosen[0]["rows"][0] |= {"low": 0.0, "high": 99.0}
    figure = study_predicted_against_observed.draw(STUDY, chosen)
    assert _titles(figure) == ["One tokenizer left out", "One cluster left out"]
    axes = figure.axes[0]
    told = np.array([[row["observed"], row["predicted"]] for row in chosen[0]["rows"]])
    rings = [line for line in axes.get_lines() if line.get_markersize() == 13]
    points = [line for line in axes.get_lines() if line.get_linestyle() == "None" and line not in rings]
    drawn = np.concatenate([line.get_xydata() for line in points])
    np.testing.assert_allclose(_sorted(drawn), _sorted(told))
    assert len(rings[0].get_xdata()) == 6  # every fourth of 24
    assert max(bar[:, 1].max() for bar in axes.collections[1].get_segments()) == 99
    assert axes.texts[0].get_text() == "R² 0.8, RMSE 1.2\nρ 0.9, n = 27"
    logarithmic = study_predicted_against_observed.draw(STUDY, [chosen[0] | {"scale": "log"}]).axes[0]
    assert "RMSE of logarithms 1.2" in logarithmic.texts[0].get_text()
    assert axes.get_ylabel() == "predicted by viv, srss" and axes.get_xlabel() == f"observed {TARGET}"
    named = [text.get_text() for text in figure.legends[0].get_texts()]
    assert "held out from the start" in named and not any(
        "control" in name for name in named
    )  # no control is predicted


def test_predictions_have_a_row_per_predictors_and_a_column_per_scheme() -> None:
    one, other = (dict(one) for one in ANALYSIS["prediction"] if (one["generator"], one["guidance"]) == CELL)
    alone = one | {"predictors": ["m_viv"]}
    figure = study_predicted_against_observed.draw(STUDY, [one, other, alone])
    assert [axes.get_visible() for axes in figure.axes] == [True, True, True, False]
    assert [axes.get_ylabel() for axes in figure.axes] == ["predicted by viv, srss", "", "predicted by viv", ""]
    assert [axes.get_xlabel() for axes in figure.axes[2:]] == [f"observed {TARGET}"] * 2


def test_every_repeat_is_a_point() -> None:
    figure = study_noise.draw(STUDY, TARGET, ["sit", "lightningdit"], 1.0, ANALYSIS["noise"])
    for axes, generator in zip(figure.axes, ("sit", "lightningdit"), strict=True):
        repeats = [line for line in axes.get_lines() if line.get_marker() != "|"]
        own = STUDY.rows[(STUDY.rows["generator"] == generator) & (STUDY.rows["guidance"] == 1.0)]
        values = np.concatenate([line.get_xdata() for line in repeats])
        np.testing.assert_allclose(sorted(values), sorted(own[TARGET]))
        assert [len(line.get_xdata()) for line in repeats] == [54, 2]  # by seed of the tokenizer
        assert axes.texts[0].get_text() == "SD between 6, within 0.3, noise allows |r| up to 0.99"
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["tokenizer seed 0", "tokenizer seed 1"]


def test_another_training_of_the_original_is_no_effect_of_a_control() -> None:
    first = STUDY.rows[STUDY.rows.tokenizer == "tokenizer-00"]
    other = first.assign(tokenizer_seed=9, m_viv=2 * first.m_viv)
    table = replace(STUDY, rows=pd.concat([STUDY.rows, other]))
    effects, inside = study_control_effects.control_effects(table, ["m_viv"], *CELL)
    assert effects.loc["tokenizer-00-mixed", "m_viv"] == 0 and inside.loc["tokenizer-00-mixed", "m_viv"]


def test_what_no_original_of_a_control_has_takes_no_column() -> None:
    codes = STUDY.rows.m_viv.where(STUDY.rows.tokenizer == "tokenizer-01")
    columns = (*STUDY.columns, Column("perplexity", "reconstruction", "Of codes."))
    table = replace(STUDY, rows=STUDY.rows.assign(perplexity=codes), columns=columns)
    figure = study_control_effects.draw(table, [TARGET, "perplexity"], ["m_viv"], *CELL)
    axes = figure.axes[0]
    assert [label.get_text() for label in axes.get_xticklabels()] == [TARGET, "viv"]
    assert axes.get_lines()[0].get_xdata()[0] == 1


def test_control_effects_are_signed_and_in_spreads() -> None:
    columns = [TARGET, "m_viv", "precision_fashion_classifier"]
    effects, inside = study_control_effects.control_effects(STUDY, columns, *CELL)
    plain = QUALITY["value"][[not name.startswith("tokenizer-00-") for name in QUALITY.index]]
    rows = at(STUDY, *CELL)
    of_the_first = rows[rows.tokenizer_seed == 0].groupby("tokenizer")[TARGET].mean()
    change = of_the_first["tokenizer-00-mixed"] - of_the_first["tokenizer-00"]
    assert effects.loc["tokenizer-00-mixed", TARGET] == pytest.approx(-change / plain.std())
    assert effects.loc["tokenizer-00-mixed", "m_viv"] == 0
    assert inside.loc["tokenizer-00-mixed", "m_viv"] and not inside.loc["tokenizer-00-mixed", TARGET]
    figure = study_control_effects.draw(STUDY, [TARGET], ["m_viv", "m_lnc"], *CELL)
    axes = figure.axes[0]
    assert [label.get_text() for label in axes.get_xticklabels()] == [TARGET, "viv", "lnc"]
    assert axes.get_yticklabels()[0].get_text() == "tokenizer-00-mixed"
    assert axes.texts[0].get_text() == f"{effects.loc['tokenizer-00-mixed', TARGET]:+.1f}".replace("-", "−")
    assert axes.texts[1].get_text() == "(0.0)"
    with pytest.raises(UserError, match="no control"):
        study_control_effects.draw(rich_study(4, controls=False), [TARGET], ["m_viv"], *CELL)
