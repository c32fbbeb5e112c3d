"""Where quality is lost: distances of reconstructions, of samples to reconstructions and to images, and of latents."""

from collections.abc import Sequence
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from figures.study_layout import axis_label, cell_words, name_rows, stretch
from figures.study_points import BARS, measured, spread
from figures.style import MARKERS, colour, fit, heading, legend, themed, title
from latentlab.study.table import StudyTable

_SHADES = (colour(3), colour(1), colour(0))
_OTHERS = 7


@themed
def draw(
    table: StudyTable, stages: Sequence[str], generator: str, guidance: float, latents: str | None = None
) -> Figure:
    """Draw one row per tokenizer, the best on top: its distances on one axis and, beside them, that of its latents.

    Args:
        table: the study.
        stages: up to three columns of one judge and one unit, the last being that of samples to images, which sorts the rows.
        generator: whose samples.
        guidance: their guidance scale.
        latents: column of the distance between drawn and encoded latents, in a panel of its own.

    Raises:
        UserError: there is no value of the last stage.
    """
    measured(table, stages[-1:], generator, guidance)
    shown = measured(table, stages, generator, guidance)
    order = list(spread(table, stages[-1], generator, guidance).sort_values("value", kind="stable").index)
    panels = [shown, *([[latents]] if latents else [])]
    figure = Figure(figsize=(7.8 + 3.2 * (len(panels) - 1), 1.9 + 0.25 * len(order)), layout="constrained")
    axes = figure.subplots(1, len(panels), squeeze=False, sharey=True, width_ratios=[2, 1][: len(panels)])[0]
    handles: list[Line2D] = []
    for panel, names in zip(axes, panels, strict=True):
        first = _OTHERS if names == [latents] else 0
        columns = {name: spread(table, name, generator, guidance).reindex(order) for name in names}
        handles += _rows(panel, columns, first)
        stretch(panel, "x", pd.concat([one["value"] for one in columns.values()]))
        panel.set_xlabel("Frechet distance, lower is better" if len(names) > 1 else axis_label(table, names[0], "\n"))
    name_rows(axes[0], table, order)
    heading(axes[0], "Of images")
    if latents:
        heading(axes[1], "Of latents")
    title(figure, f"Where quality is lost: {cell_words(generator, guidance)}", BARS)
    legend(figure, handles)
    return figure


def _rows(axes: Axes, columns: dict[str, pd.DataFrame], first: int) -> list[Line2D]:
    """Draw values in rows with their bars, joined by a grey line; return the legend's entries."""
    handles = []
    values = pd.DataFrame({name: one["value"] for name, one in columns.items()})
    axes.hlines(range(len(values)), values.min(axis=1), values.max(axis=1), colors="#CCCCCC", linewidth=3, zorder=1)
    for index, (name, one) in enumerate(columns.items()):
        shade = _SHADES[index] if first == 0 else colour(first)
        look: dict[str, Any] = {
            "color": shade,
            "marker": MARKERS[(first + index) % len(MARKERS)],
            "linestyle": "none",
            "markeredgecolor": "white",
        }
        axes.hlines(range(len(one)), one["low"], one["high"], colors=shade, linewidth=1.2)
        axes.plot(one["value"], range(len(one)), zorder=3, **look)
        handles.append(Line2D([], [], label=fit(name, 40), **look))
    return handles
