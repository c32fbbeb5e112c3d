"""A scatter plot whose axes show any two columns; plots of one source share rows, filter and selection."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from latentlab.report.points import Points
from latentlab.report.scripts import script
from latentlab.study.table import Column

if TYPE_CHECKING:
    from bokeh.models import CDSView, ColumnDataSource, HoverTool, Scatter, Select
    from bokeh.models import Column as Stack
    from bokeh.plotting import figure

_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000", "#7F6000")
"""Okabe and Ito's, which people with any colour vision tell apart; yellow, too pale on white, is replaced by brown."""
_MARKERS = (
    "circle", "square", "triangle", "diamond", "inverted_triangle", "star", "plus", "hex", "x", "square_pin", "triangle_pin",
    "circle_cross", "square_x", "diamond_dot", "star_dot", "asterisk", "hex_dot", "circle_x", "square_cross", "triangle_dot",
    "diamond_cross", "circle_y", "y",
)  # fmt: skip
"""More than a study has clusters, so that they differ in grey too."""

_TOOLTIP = """<div style="max-width:330px;font-size:13px">
<style>
img {display: block; max-width: 100%; margin-top: 4px; image-rendering: pixelated} img[src=""] {display: none}
img:not([src=""]) + small {display: none} small {color: #555; display: block}
</style>
<strong>@tokenizer</strong> · @cluster @family @control<br>@generator, guidance @{guidance scale}<br>
@row{x}<br>@row{y}
<img src="@reconstructions{picture}" alt="originals above reconstructions" width="320">
<small>no picture of reconstructions</small>
<img src="@samples{picture}" alt="samples" width="320">
<small>no picture of samples</small></div>"""


@dataclass(frozen=True)
class ScatterPlot:
    """The plot below its two axis widgets."""

    layout: "Stack"
    x: "Select"
    y: "Select"


def scatter_plot(
    source: "ColumnDataSource", view: "CDSView", points: Points, clusters: Sequence[str], x: str, y: str, name: str
) -> ScatterPlot:
    """Return a plot of column ``y`` over column ``x``.

    Args:
        source: rows of `points` with the columns that the tooltip names.
        view: which rows are shown.
        points: the axes to choose from.
        clusters: every cluster; each has its own colour and marker.
        x: column at first.
        y: column at first.
        name: begins the names of the models, by which tests find them.
    """
    from bokeh.layouts import column, row

    labels = {axis.name: axis_label(axis) for axis in points.axes}
    plot, glyphs = _plot(source, view, clusters, x, y, name)
    widgets = {}
    for side, chosen, axis in (("x", x, plot.xaxis[0]), ("y", y, plot.yaxis[0])):
        axis.axis_label = labels[chosen]
        widgets[side] = _axis_select(side, chosen, points.axes, name)
        _switch(widgets[side], side, glyphs, axis, labels)
    plot.add_tools(_hover(source, widgets))
    bar = row(*widgets.values(), styles={"flex-wrap": "wrap"}, sizing_mode="stretch_width")
    return ScatterPlot(column(bar, plot, sizing_mode="stretch_width"), widgets["x"], widgets["y"])


def axis_label(column: Column) -> str:
    """Return ``m_viv (lower is better)``, with the unit where there is one."""
    facts = [column.unit, f"{column.better} is better" if column.better != "none" else ""]
    told = ", ".join(fact for fact in facts if fact)
    return f"{column.name} ({told})" if told else column.name


def _plot(
    source: "ColumnDataSource", view: "CDSView", clusters: Sequence[str], x: str, y: str, name: str
) -> "tuple[figure, list[Scatter]]":
    from bokeh.models import Legend, LegendItem, Scatter
    from bokeh.plotting import figure
    from bokeh.transform import factor_cmap, factor_mark

    plot = figure(
        height=430, sizing_mode="stretch_width", tools="pan,wheel_zoom,box_select,lasso_select,tap,reset,save",
        active_drag="box_select", active_scroll=None, toolbar_location="above", name=name,
    )  # fmt: skip
    plot.toolbar.logo = None
    colour = factor_cmap("cluster", _cycled(_COLOURS, len(clusters)), list(clusters))
    marker = factor_mark("cluster", _cycled(_MARKERS, len(clusters)), list(clusters))
    # Scatter itself, not plot.scatter: the axis switch must reach the glyph of every state
    common = {"x": x, "y": y, "marker": marker, "size": 10, "fill_color": colour}
    glyph = Scatter(**common, line_color=colour, fill_alpha=0.5, line_width=1.5)
    selected = Scatter(**common, line_color="black", fill_alpha=1.0, line_width=1.5)
    others = Scatter(**common, line_color=colour, fill_alpha=0.08, line_alpha=0.25)
    renderer = plot.add_glyph(
        source,
        glyph,
        selection_glyph=selected,
        nonselection_glyph=others,
        muted_glyph=None,
        hover_glyph=None,
        view=view,
    )
    legend = Legend(
        items=[LegendItem(label={"field": "cluster"}, renderers=[renderer])],
        location="top_left", ncols=4, border_line_color=None, label_text_font_size="9pt", padding=2, spacing=0,
    )  # fmt: skip
    plot.add_layout(legend, "below")
    return plot, [glyph, selected, others]


def _cycled(values: Sequence[str], length: int) -> list[str]:
    return [values[i % len(values)] for i in range(length)]


def _axis_select(side: str, chosen: str, axes: Sequence[Column], name: str) -> "Select":
    from bokeh.models import Select

    groups: dict[str, list[tuple[str, str]]] = {}
    for axis in axes:
        groups.setdefault(axis.role, []).append((axis.name, axis.name))
    return Select(title=f"{side} axis", value=chosen, options=groups, width=230, name=f"{name}-{side}")


def _switch(select: "Select", side: str, glyphs: "list[Scatter]", axis: object, labels: Mapping[str, str]) -> None:
    from bokeh.models import CustomJS

    arguments = {"glyphs": glyphs, "axis": axis, "side": side, "labels": dict(labels)}
    select.js_on_change("value", CustomJS(args=arguments, code=script("switch_axis.js")))


def _hover(source: "ColumnDataSource", widgets: "Mapping[str, Select]") -> "HoverTool":
    """Return the tooltip. Bokeh escapes every value that it puts in, those of these formatters too."""
    from bokeh.models import CustomJSHover, HoverTool

    value = CustomJSHover(args={"source": source, **widgets}, code=script("hover_value.js"))
    picture = CustomJSHover(code=script("hover_picture.js"))
    formatters = {"@row": value, "@reconstructions": picture, "@samples": picture}
    return HoverTool(tooltips=_TOOLTIP, formatters=formatters, attachment="horizontal", limit=2)
