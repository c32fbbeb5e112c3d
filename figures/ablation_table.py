"""An ablation as points: our value of every row, and beside it the published one of the same row, each on an axis of its own."""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from figures.style import GREY, colour, fit, require, themed
from figures.style import title as write_title

_LABEL = 44
"""Characters of a row's label."""


@themed
def draw(rows: Sequence[Mapping[str, Any]], ours: str, published: str = "", *, title: str = "") -> Figure:
    """Draw one line per row in the given order, top to bottom; the published panel is left out when no row has a number.

    Args:
        rows: ``label``; ``values``, ours, one per seed, none for a row that failed; ``interval`` of a single value, or None;
            ``published`` value or None.
        ours: what our values are, for the axis.
        published: what the published ones are.
        title: of the ablation.

    Raises:
        UserError: no row.
    """
    require(rows, "row")
    both = any(row["published"] is not None for row in rows)
    width = 8.8 if both else 6.4
    figure = Figure(figsize=(width, 1.6 + 0.34 * len(rows)), layout="constrained")
    panels = figure.subplots(1, 2 if both else 1, sharey=True, squeeze=False)[0]
    for place, row in enumerate(rows):
        _ours(panels[0], place, row)
    if both:
        for place, row in enumerate(rows):
            if row["published"] is not None:
                panels[1].plot(row["published"], place, marker="D", color=GREY)
    for axes, name in zip(panels, (ours, published), strict=False):
        axes.set_xlabel(name, parse_math=False)
        axes.margins(x=0.08)
        axes.xaxis.set_major_locator(MaxNLocator(5))
    panels[0].set_yticks(range(len(rows)), [fit(row["label"], _LABEL) for row in rows], parse_math=False)
    panels[0].set_ylim(len(rows) - 0.5, -0.5)
    several = any(len(row["values"]) > 1 for row in rows)
    note = "bars: range over seeds" if several else "bars: 95 % intervals over images"
    write_title(figure, title or "Ablation", note)
    return figure


def _ours(axes: Axes, place: int, row: Mapping[str, Any]) -> None:
    """Draw the values of all seeds, joined by their range; a single one with its interval."""
    values = row["values"]
    if not values:
        axes.annotate("failed", (0.01, place), xycoords=("axes fraction", "data"), size=9, color=colour(1), va="center")
        return
    span = row["interval"] if len(values) == 1 else (min(values), max(values))
    if span is not None:
        axes.plot(span, (place, place), color=colour(0), linewidth=2)
    axes.plot(values, [place] * len(values), marker="o", linestyle="none", color=colour(0))
