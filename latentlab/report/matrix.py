"""Which columns say the same: rank and product-moment correlations of all of them over tokenizers."""

from collections.abc import Mapping, Sequence
from itertools import product
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd

from latentlab.report.points import KIND, SCALE, Points
from latentlab.report.scripts import script

if TYPE_CHECKING:
    from bokeh.models import Column as Stack
    from bokeh.models import ColumnDataSource, Select
    from bokeh.plotting import figure

Method = Literal["spearman", "pearson"]
METHODS: tuple[Method, ...] = ("spearman", "pearson")
_ROLES = ("measurement", "reconstruction", "decoder", "quality", "trajectory")
_LEAST = 4
"""Fewest tokenizers a correlation is shown for."""
_CELL = 34
"""Side of a cell in pixels."""
_INKS = ("white", *["black"] * 6, "white")
"""Colours of numbers from -1 to 1: white on the dark cells beyond 0.75."""


def matrix_columns(points: Points) -> list[str]:
    """Return the columns to correlate: headline numbers that are not the same everywhere."""
    names = [axis.name for axis in points.axes if axis.role in _ROLES and "." not in axis.name]
    return [name for name in names if points.rows[name].nunique() > 1]


def correlations_of(rows: pd.DataFrame, columns: Sequence[str], method: Method) -> tuple[list[float], list[int]]:
    """Return correlations and numbers of tokenizers of all pairs of columns, row by row [k*k].

    Args:
        rows: one per tokenizer.
        columns: k of its columns; a missing value takes its tokenizer out of the pairs of that column.
        method: ``spearman`` or ``pearson``.
    """
    values = rows[list(columns)]
    present = values.notna().to_numpy(dtype=np.int64)
    with np.errstate(invalid="ignore", divide="ignore"):
        found = values.corr(method=method, min_periods=_LEAST)
    return found.to_numpy().ravel().tolist(), (present.T @ present).ravel().tolist()


def matrix_of(points: Points, x: "Select", y: "Select") -> "Stack | None":
    """Return the matrix below its widgets; None where there are fewer than two columns.

    Args:
        points: the rows.
        x: widget of a plot, which shows a pair that is clicked.
        y: the same.
    """
    from bokeh.layouts import column, row
    from bokeh.models import ColumnDataSource, CustomJS

    columns = matrix_columns(points)
    if len(columns) < 2:
        return None
    told = all_correlations(points, columns)
    pairs = list(product(columns, columns))
    names = {"first": [first for first, _ in pairs], "second": [second for _, second in pairs]}
    source = ColumnDataSource({**names, **next(iter(told.values()))}, name="matrix-source")
    selects = _selects(points)
    switch = CustomJS(
        args={"source": source, "selects": selects, "correlations": told}, code=script("switch_matrix.js")
    )
    for select in selects:
        select.js_on_change("value", switch)
    opened = CustomJS(args={"source": source, "x": x, "y": y}, code=script("open_pair.js"))
    source.selected.js_on_change("indices", opened)
    bar = row(*selects, styles={"flex-wrap": "wrap"}, sizing_mode="stretch_width")
    return column(bar, _heatmap(source, columns))


def _parts(points: Points) -> dict[str, list[str]]:
    """Return the choices by title, in the order in which keys of correlations name them."""
    kinds = ["without controls", "all"] if points.rows[KIND].nunique() > 1 else ["all"]
    return {
        "generator": list(points.generators),
        "guidance": list(points.scales),
        "method": list(METHODS),
        "tokenizers": kinds,
    }


def all_correlations(points: Points, columns: Sequence[str]) -> dict[str, Mapping[str, Any]]:
    """Return value, n and text of every cell for every choice; keys are numbers of choices: ``0-2-1-0``."""
    told: dict[str, Mapping[str, Any]] = {}
    rows, parts = points.rows, _parts(points)
    kinds = parts["tokenizers"]
    for key in product(*(range(len(values)) for values in parts.values())):
        generator, scale, method = points.generators[key[0]], points.scales[key[1]], METHODS[key[2]]
        chosen = rows[(rows["generator"] == generator) & (rows[SCALE] == scale)]
        chosen = chosen[chosen[KIND] == "trained"] if kinds[key[3]] == "without controls" else chosen
        values, counts = correlations_of(chosen, columns, method)
        text = ["" if np.isnan(value) else f"{value:.2f}".replace("0.", ".").replace("-.00", ".00") for value in values]
        rounded = [round(value, 3) for value in values]
        told["-".join(map(str, key))] = {"value": rounded, "n": counts, "text": text}
    return told


def _selects(points: Points) -> "list[Select]":
    from bokeh.models import Select

    return [
        Select(
            title=title,
            value="0",
            options=[(str(number), value) for number, value in enumerate(values)],
            width=150,
            visible=len(values) > 1,
            name=f"matrix-{title}",
        )
        for title, values in _parts(points).items()
    ]


def _heatmap(source: "ColumnDataSource", columns: Sequence[str]) -> "figure":
    from bokeh.models import HoverTool
    from bokeh.palettes import PuOr11
    from bokeh.plotting import figure
    from bokeh.transform import linear_cmap

    side = _CELL * len(columns)
    plot = figure(
        x_range=list(columns), y_range=list(reversed(columns)), x_axis_location="above", frame_width=side, frame_height=side,
        tools="tap,save", toolbar_location="right", name="matrix",
    )  # fmt: skip
    plot.toolbar.logo = None
    plot.xaxis.major_label_orientation = "vertical"
    plot.grid.visible = False
    colour = linear_cmap("value", PuOr11, -1.0, 1.0, nan_color="#eeeeee")
    cells = plot.rect(
        "second", "first", 1, 1, source=source, fill_color=colour, line_color="white", nonselection_fill_alpha=1.0
    )
    plot.text(
        "second", "first", "text", source=source, text_align="center", text_baseline="middle", text_font_size="10px",
        text_color=linear_cmap("value", list(_INKS), -1.0, 1.0), nonselection_text_alpha=1.0,
    )  # fmt: skip
    plot.add_tools(HoverTool(renderers=[cells], tooltips=[("", "@first and @second"), ("r", "@value"), ("n", "@n")]))
    return plot
