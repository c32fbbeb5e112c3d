"""Everything that moves: the Bokeh models of the page and the elements that show them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from latentlab.report.contents import Contents
from latentlab.report.correlations import correlations_table
from latentlab.report.document import document_json
from latentlab.report.explorer import explorer_of
from latentlab.report.matrix import matrix_of
from latentlab.report.pictures import Picture
from latentlab.report.points import Points

if TYPE_CHECKING:
    from bokeh.models import UIElement


@dataclass(frozen=True)
class Interactive:
    """The document as JSON, the ids of the elements that it fills, and how many correlations found no place in it."""

    json: str
    elements: frozenset[str]
    left_out: int


def interactive_parts(contents: Contents, points: Points, pictures: Sequence[Picture]) -> Interactive:
    """Return explorer, matrix and correlations; the last two are absent where there is nothing to show."""
    explorer = explorer_of(points, pictures)
    parts: dict[str, UIElement] = {
        "filters": explorer.filters.row,
        "plot-1": explorer.plots[0].layout,
        "plot-2": explorer.plots[1].layout,
        "table": explorer.table,
    }
    if matrix := matrix_of(points, explorer.plots[0].x, explorer.plots[0].y):
        parts["matrix"] = matrix
    correlations = correlations_table(contents.records("correlations"))
    if correlations:
        parts |= {"correlation-filters": correlations.filters.row, "correlation-table": correlations.table}
    return Interactive(document_json(parts), frozenset(parts), correlations.left_out if correlations else 0)
