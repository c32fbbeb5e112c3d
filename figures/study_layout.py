"""What the figures of a study share around their points: panels, titles, the names of clusters, labels of axes."""

from collections.abc import Mapping, Sequence
from math import ceil, sqrt
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from figures.learning_curves import log_axis
from figures.study_points import face, facts, looks
from figures.style import GREY, fit, legend
from latentlab.study.table import StudyTable

_LOG_FROM = 12.0
_MOST_NAMED = 28
_LEGEND = 2.3  # inches
_EASIER = {"measurement": "easier", "trajectory": "easier", "decoder": "easier"}


def grid(
    count: int, across: int = 4, width: float = 2.75, height: float = 2.6, least: int = 1, **options: Any
) -> tuple[Figure, list[Axes]]:
    """Return a figure with ``count`` panels, at most ``across`` in a row, and room for a legend beside them.

    Args:
        count: number of panels.
        across: most in a row.
        width: of a panel, in inches.
        height: of a panel, in inches.
        least: number of panels whose width the figure has at least, for its title.
        **options: of ``subplots``.
    """
    wide = min(across, ceil(sqrt(count)) if count > across else count)
    wide = across if count > 2 * across else wide
    rows = ceil(count / wide)
    figure = Figure(figsize=(2.6 + width * max(wide, least), 0.9 + height * rows), layout="constrained")
    panels = list(np.ravel(figure.subplots(rows, wide, squeeze=False, **options)))
    for empty in panels[count:]:
        empty.remove()
    return figure, panels[:count]


def key(table: StudyTable, points: bool = True, controls: bool = True) -> list[Artist]:
    """Return the legend's entries: clusters and, for ``points``, what hollow markers mean where ``controls`` are shown."""
    who = facts(table).values()
    plain = {one.cluster for one in who if not one.control}
    entries: list[Artist] = [
        Line2D(
            [], [], **face(look, hollow=points and name not in plain), label=fit(name, _MOST_NAMED) or "(no cluster)"
        )
        for name, look in looks(table).items()
        if controls or name in plain
    ]
    if points and controls and any(one.control for one in who):
        grey = face({"color": GREY, "marker": "o"}, hollow=True) | {"linestyle": "solid", "linewidth": 0.8}
        entries.append(Line2D([], [], **grey, label="control, with its original"))
    return entries


def cluster_legend(
    figure: Figure, table: StudyTable, more: Sequence[Artist] = (), points: bool = True, controls: bool = True
) -> None:
    """Name the clusters right of the panels, in as many columns as the height of the figure asks for; see `key`.

    The figure grows by what the names need beyond the width that figures keep for them.
    """
    entries = [*key(table, points, controls), *more]
    room = max(int(figure.get_figheight() * 72 / 15.5), 1)
    legend(figure, entries, ncols=ceil(len(entries) / room))
    width = figure.legends[-1].get_window_extent().width / figure.dpi
    figure.set_figwidth(figure.get_figwidth() + max(width - _LEGEND, 0))


def name_rows(axes: Axes, table: StudyTable, order: Sequence[str]) -> None:
    """Name the tokenizers, the first on top, controls in grey."""
    axes.set_yticks(range(len(order)), [fit(str(name), 36) for name in order])
    axes.set_ylim(len(order) - 0.4, -0.6)
    who = facts(table)
    for label, name in zip(axes.get_yticklabels(), order, strict=True):
        label.set_parse_math(False)
        if who[name].control:
            label.set(color=GREY, style="italic")


def stretch(axes: Axes, name: str, values: Sequence[float] | pd.Series) -> None:
    """Make an axis, "x" or "y", logarithmic where positive ``values`` differ by more than a factor of 12."""
    finite = np.asarray(values, dtype=float)
    finite = finite[np.isfinite(finite)]
    if len(finite) and finite.min() > 0 and finite.max() > _LOG_FROM * finite.min():
        log_axis(axes, "x" if name == "x" else "y")


def short(name: str) -> str:
    """Return the name of a column as it is written in figures: measurements without their prefix."""
    return name.removeprefix("m_")


def axis_label(table: StudyTable, name: str, apart: str = ", ") -> str:
    """Return ``name (unit), lower is easier``."""
    unit = table.column(name).unit
    return apart.join(filter(None, [f"{short(name)} ({unit})" if unit else short(name), way(table, name)]))


def unit_label(table: StudyTable, name: str) -> str:
    """Return ``unit, lower is easier``, for panels that have the name as their title."""
    return ", ".join(filter(None, [table.column(name).unit, way(table, name)]))


def way(table: StudyTable, name: str) -> str:
    """Return ``lower is easier`` (or better), or nothing where a column has no better side."""
    column = table.column(name)
    return "" if column.better == "none" else f"{column.better} is {_EASIER.get(column.role, 'better')}"


def cell_words(generator: str, guidance: float) -> str:
    """Return ``sit, guidance 1.5``."""
    return f"{fit(generator, 40)}, guidance {guidance:g}"


def correlation_of(records: Sequence[Mapping[str, Any]], **facts: Any) -> Mapping[str, Any] | None:
    """Return the first record whose entries equal ``facts`` and that is neither partial nor within groups."""
    wanted = {"covariates": [], "within": "", **facts}
    return next((one for one in records if all(one.get(name) == value for name, value in wanted.items())), None)


def interval_words(symbol: str, record: Mapping[str, Any] | None) -> str:
    """Return ``r = -0.92 [-0.97, -0.80], n = 24``; nothing without a record."""
    if record is None or record.get("value") is None:
        return ""
    ends = record.get("low"), record.get("high")
    interval = "" if None in ends else f" [{ends[0]:.2f}, {ends[1]:.2f}]"
    return f"{symbol} = {record['value']:.2f}{interval}, n = {record['n']}".replace("-", "−")
