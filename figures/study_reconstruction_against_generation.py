"""Distance of samples over distance of reconstructions: what of the one is already lost by the other."""

from collections.abc import Mapping
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from figures.learning_curves import is_far_below
from figures.study_layout import axis_label, cell_words, cluster_legend, stretch
from figures.study_points import BARS, measured, scatter, spread
from figures.style import GREY, heading, themed, title
from latentlab.study.table import StudyTable

_DIAGONAL: dict[str, Any] = {"color": GREY, "linewidth": 1.2, "linestyle": "solid"}
_FLOOR: dict[str, Any] = {"color": GREY, "linewidth": 1.2, "linestyle": (0, (1.2, 1.6))}


@themed
def draw(
    table: StudyTable, judges: Mapping[str, tuple[str, str]], generator: str, guidance: float,
    floors: Mapping[str, float] | None = None,
) -> Figure:  # fmt: skip
    """Draw one panel per judge: gFD over rFD, the line where they are equal, and the floor of real images.

    Args:
        table: the study.
        judges: judge -> its columns of reconstructions and of samples.
        generator: whose samples.
        guidance: their guidance scale.
        floors: judge -> distance of as many real images, as lines across both axes, or in words where it is far below.

    Raises:
        UserError: a judge's columns have no value.
    """
    figure = Figure(figsize=(2.8 + 4.3 * len(judges), 4.9), layout="constrained")
    panels = figure.subplots(1, len(judges), squeeze=False)[0]
    floor_shown = False
    for axes, (judge, (reconstruction, generation)) in zip(panels, judges.items(), strict=True):
        for name in (reconstruction, generation):
            measured(table, [name], generator, guidance)
        x, y = (spread(table, name, generator, guidance) for name in (reconstruction, generation))
        scatter(axes, table, x, y)
        axes.margins(0.1)
        known = [floors[judge]] if floors and judge in floors else []
        near = [floor for floor in known if not is_far_below(floor, min(x["value"].min(), y["value"].min()))]
        heading(axes, judge, hint="" if near else "".join(f"real images: {floor:.3g}" for floor in known))
        for floor in near:
            axes.axhline(floor, **_FLOOR, zorder=1)
            axes.axvline(floor, **_FLOOR, zorder=1)
        floor_shown |= bool(near)
        _equal_line(axes, float(x["value"].max()))
        for axis in ("x", "y"):  # both or none, so that the diagonal is straight
            stretch(axes, axis, [*x["value"], *y["value"], *near])
        axes.set_xlabel(axis_label(table, reconstruction, "\n"), parse_math=False)
        axes.set_ylabel(axis_label(table, generation, "\n"), parse_math=False)
    title(figure, f"Reconstruction against generation: {cell_words(generator, guidance)}", BARS)
    lines = [Line2D([], [], label="samples as good as\nreconstructions", **_DIAGONAL)]
    if floor_shown:
        lines.append(Line2D([], [], label="real images", **_FLOOR))
    cluster_legend(figure, table, lines)
    return figure


def _equal_line(axes: Axes, end: float) -> None:
    """Draw the diagonal up to reconstructions of distance ``end``, and make room for it at the bottom only."""
    (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    left = left if left > 0 else end / 100
    axes.plot([left, right], [left, right], **_DIAGONAL, zorder=1)
    axes.set(xlim=(left, right), ylim=(min(bottom if bottom > 0 else end, 0.8 * left), top))
