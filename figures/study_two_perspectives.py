"""Two measurements together: where tokenizers lie in their plane, and how large the distance of their samples is."""

from collections.abc import Mapping
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.markers import MarkerStyle

from figures.study_layout import axis_label, cell_words, short
from figures.study_points import face, facts, looks, measured, spread
from figures.style import SEQUENTIAL, fit, legend, themed, title
from latentlab.errors import UserError
from latentlab.study.table import StudyTable

_AREAS = (40.0, 520.0)  # of the smallest and largest bubble, in square points
_LOG_FROM = 12.0


@themed
def draw(
    table: StudyTable,
    x: str,
    y: str,
    target: str,
    generator: str,
    guidance: float,
    pair: Mapping[str, Any] | None = None,
) -> Figure:
    """Draw a bubble per tokenizer at its two measurements: area and shade grow with ``target``; marker and rim are its cluster's.

    Args:
        table: the study.
        x: measurement on the horizontal axis.
        y: measurement on the vertical axis.
        target: the quality.
        generator: whose samples.
        guidance: their guidance scale.
        pair: record of ``analysis.json`` about the two, whose R^2 is written below.

    Raises:
        UserError: no tokenizer has all three.
    """
    measured(table, [target], generator, guidance)
    names = {"x": x, "y": y, "size": target}
    columns = {key: spread(table, name, generator, guidance)["value"] for key, name in names.items()}
    points = pd.DataFrame(columns).dropna()
    if points.empty:
        raise UserError(f"no tokenizer has {x}, {y} and {target} for {cell_words(generator, guidance)}")
    figure = Figure(figsize=(9.2, 5.6), layout="constrained")
    axes = figure.subplots()
    norm = _norm(points["size"])
    _bubbles(axes, table, points, norm)
    axes.margins(0.12)
    axes.set_xlabel(axis_label(table, x), parse_math=False)
    axes.set_ylabel(axis_label(table, y), parse_math=False)
    bar = figure.colorbar(axes.collections[0], ax=axes, pad=0.02)
    bar.set_label(axis_label(table, target, "\n"), parse_math=False)
    title(figure, f"{short(x)} and {short(y)} against quality: {cell_words(generator, guidance)}", _fit_words(pair))
    legend(figure, _key(table, points), markerscale=1.2)
    return figure


def _norm(sizes: pd.Series) -> Normalize:
    low, high = float(sizes.min()), float(sizes.max())
    if low > 0 and high > _LOG_FROM * low:
        return LogNorm(low, high)
    return Normalize(low, high if high > low else low + 1)


def _bubbles(axes: Axes, table: StudyTable, points: pd.DataFrame, norm: Normalize) -> None:
    """Draw the largest first, so that none hides another; a line halves those whose marker is filled by half elsewhere."""
    who = facts(table)
    ordered = points.sort_values("size", ascending=False, kind="stable")
    for name, (at_x, at_y, size) in zip(ordered.index, ordered.to_numpy(), strict=True):
        share, look = float(norm(size)), looks(table)[who[name].cluster]
        rim = {"s": _AREAS[0] + share * (_AREAS[1] - _AREAS[0]), "edgecolors": look["color"], "linewidths": 1.6}
        axes.scatter(
            [at_x], [at_y], c=[size], cmap=SEQUENTIAL, norm=norm, marker=look["marker"], zorder=3,
            linestyle="dashed" if who[name].control else "solid", **rim,
        )  # fmt: skip
        if look["fillstyle"] != "full":
            half = MarkerStyle(look["marker"], look["fillstyle"])
            axes.scatter([at_x], [at_y], facecolors="none", marker=half, zorder=3, **rim)


def _key(table: StudyTable, points: pd.DataFrame) -> list[Line2D]:
    """Return markers of the clusters with the rims of their bubbles."""
    who = facts(table)
    shown = {who[name].cluster for name in points.index}
    return [
        Line2D([], [], **(face(look, hollow=True) | {"markeredgewidth": 1.6}), label=fit(cluster, 24) or "(no cluster)")
        for cluster, look in looks(table).items()
        if cluster in shown
    ]


def _fit_words(pair: Mapping[str, Any] | None) -> str:
    keys = {"r2": "R² of both", "r2_adjusted": "adjusted", "r2_cross_validated": "cross validated"}
    told = [(words, (pair or {}).get(key)) for key, words in keys.items()]
    parts = [f"{words} {value:.2f}".replace("-", "−") for words, value in told if value is not None]
    fitted = [f"{', '.join(parts)} (of fitted tokenizers)"] if parts else []
    return "; ".join(["larger and lighter: more", "dashed rims: controls", *fitted])
