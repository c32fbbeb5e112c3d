"""How quality grows with training: over the same compute for all, and over the time that it took."""

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from figures.columns import Details, columns
from figures.style import GREY, MARKERS, colour, legend, look, require, themed, title

_FAR = 10.0
"""Times that a floor may lie below the lowest point and still be drawn."""
_AXES = {
    "operations": "training operations (floating point, 10^12)",
    "step": "optimiser steps",
    "minutes": "training time on this machine (minutes)",
}
_UNITS = {"operations": 1e12}


@themed
def draw(curves: Mapping[str, Sequence[Details]], quality: str, floors: Mapping[str, float] | None = None) -> Figure:
    """Draw one panel per axis, one curve per generator: the mean over seeds, and their range as a band.

    Args:
        curves: name -> per seed ``operations``, ``step``, ``minutes`` and ``distance`` [m], the same points for all seeds.
        quality: what the distance is; lower is better.
        floors: name -> distance of real images or reconstructions, as grey lines.

    Raises:
        UserError: no curve, or a column is missing or has another length.
    """
    require(curves, "generator")
    figure = Figure(figsize=(13.6, 4.6), layout="constrained")
    panels = figure.subplots(1, len(_AXES), sharey=True)
    for axes, (key, name) in zip(panels, _AXES.items(), strict=True):
        for index, runs in enumerate(curves.values()):
            _curve(axes, runs, key, index)
        axes.set_xlabel(name)
    for index, label in enumerate(curves):
        panels[0].plot([], [], label=label, marker=MARKERS[index % len(MARKERS)], **look(index))
    below = draw_floors(panels, floors or {})
    for axes in panels:
        log_axis(axes, "x")
    log_axis(panels[0], "y")
    panels[0].set_ylabel(f"{quality}\nlower is better", parse_math=False)
    title(figure, "Quality over training, without guidance", "; ".join(filter(None, [bands_of(curves), below])))
    legend(figure, panels[0].get_lines(), handlelength=2.6)
    return figure


def _curve(axes: Axes, runs: Sequence[Details], key: str, index: int) -> None:
    pairs = [columns(run, key, "distance") for run in runs]
    at, values = pairs[0][0] / _UNITS.get(key, 1.0), np.stack([distance for _, distance in pairs])
    axes.plot(at, values.mean(0), marker=MARKERS[index % len(MARKERS)], **look(index))
    if len(values) > 1:
        axes.fill_between(at, values.min(0), values.max(0), color=colour(index), alpha=0.15, linewidth=0)


def bands_of(runs: Mapping[str, Sequence[Details]]) -> str:
    """Return what bands and lines are where there are several runs of one name."""
    return "mean over seeds; bands: their range" if any(len(of_name) > 1 for of_name in runs.values()) else ""


def log_axis(axes: Axes, name: Literal["x", "y"]) -> None:
    """Make an axis, with everything drawn on it already, logarithmic and its ticks few and plain: 30, 50, 100."""
    axis = axes.xaxis if name == "x" else axes.yaxis
    axes.set(**{f"{name}scale": "log"})
    low, high = axis.get_view_interval()
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)) if high > 10 * low else MaxNLocator(5))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def draw_floors(panels: Sequence[Axes], floors: Mapping[str, float]) -> str:
    """Draw what real images and reconstructions score as grey lines, named in the last panel.

    Those far below everything drawn would squeeze it; they are returned in words, for the note.
    """
    lowest = min((axes.dataLim.y0 for axes in panels), default=np.nan)
    near = {name: value for name, value in floors.items() if not is_far_below(value, lowest)}
    for axes in panels:
        for value in near.values():
            axes.axhline(value, color=GREY, linewidth=0.9, linestyle=(0, (4, 3)), zorder=1)
    for name, value in _named_together(near).items():
        panels[-1].annotate(
            name, (0.99, value), xycoords=("axes fraction", "data"), ha="right", va="bottom", size=8.5, color=GREY,
            parse_math=False,
        )  # fmt: skip
    far = ", ".join(f"{name} {value:.3g}" for name, value in floors.items() if name not in near)
    return f"far below: {far}" if far else ""


def is_far_below(floor: float, lowest: float) -> bool:
    """Return whether a line at ``floor`` would take much of the room of points that begin at ``lowest``."""
    return floor < lowest / _FAR


def _named_together(floors: Mapping[str, float]) -> dict[str, float]:
    """Return what to write where: floors within a fifth share a line of text, as their names would cover each other."""
    groups: list[list[str]] = []
    for name in sorted(floors, key=lambda name: floors[name]):
        if groups and floors[name] <= 1.2 * floors[groups[-1][0]]:
            groups[-1].append(name)
        else:
            groups.append([name])
    return {", ".join(names): floors[names[-1]] for names in groups}
