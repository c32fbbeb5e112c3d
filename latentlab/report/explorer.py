"""The explorer: filters, table and two scatter plots over the same rows."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from latentlab.report.data_table import data_table
from latentlab.report.filters import Choice, Filters, filters_of
from latentlab.report.pictures import Picture
from latentlab.report.points import KIND, RUNS, SCALE, Points
from latentlab.report.scatter import ScatterPlot, scatter_plot

if TYPE_CHECKING:
    from bokeh.models import ColumnDataSource, DataTable

_WORDS = ("tokenizer", "cluster", "family", "control", "control_of", "generator")
_NUMBERS = ("guidance", RUNS)
_SEARCHED = ("tokenizer", "cluster", "family", "control")


@dataclass(frozen=True)
class Explorer:
    """Its parts, each with a place of its own in the page."""

    filters: Filters
    table: "DataTable"
    plots: tuple[ScatterPlot, ScatterPlot]


def explorer_of(points: Points, pictures: Sequence[Picture]) -> Explorer:
    """Return the linked parts; at first they show the first generator at the lowest guidance scale."""
    source = _source(points, pictures)
    clusters = tuple(sorted(set(points.rows["cluster"])))
    choices = (
        Choice("cluster", "cluster", clusters),
        Choice("generator", "generator", points.generators, points.generators[0]),
        Choice(SCALE, "guidance", points.scales, points.scales[0]),
        Choice(KIND, "trained or control", tuple(sorted(set(points.rows[KIND]), reverse=True))),
    )
    filters = filters_of(source, choices, _SEARCHED, "explorer")
    words = [name for name in _WORDS if any(source.data[name])]
    table = data_table(source, filters.view, words, (*_NUMBERS, *_names(points)), "table")
    plots = [
        scatter_plot(source, filters.view, points, clusters, x, y, f"plot{number}")
        for number, (x, y) in enumerate(_first_axes(points), 1)
    ]
    return Explorer(filters, table, (plots[0], plots[1]))


def _first_axes(points: Points) -> list[tuple[str, str]]:
    """Return what the plots show at first: quality over a measurement, and quality over reconstruction."""
    any_axis = points.axes[0].name
    quality = points.first("quality", "trajectory", "reconstruction") or any_axis
    measured = points.first("measurement", "reconstruction") or any_axis
    return [(measured, quality), (points.first("reconstruction", "decoder", "measurement") or any_axis, quality)]


def _source(points: Points, pictures: Sequence[Picture]) -> "ColumnDataSource":
    from bokeh.models import ColumnDataSource

    rows = points.rows
    numbers = (*_NUMBERS, *_names(points), *points.intervals())
    data: dict[str, Any] = {name: list(rows[name]) for name in (*_WORDS, KIND, SCALE)}
    data |= {name: rows[name].to_numpy(dtype="float64") for name in numbers}
    keys = {(picture.tokenizer, picture.generator): picture.key for picture in pictures}
    data["row"] = list(range(len(rows)))
    data["reconstructions"] = [keys.get((tokenizer, ""), "") for tokenizer in data["tokenizer"]]
    pairs = zip(data["tokenizer"], data["generator"], strict=True)
    data["samples"] = [keys.get(pair, "") for pair in pairs]
    return ColumnDataSource(data, name="rows")


def _names(points: Points) -> list[str]:
    return [axis.name for axis in points.axes]
