"""What classifier-free guidance does to each generator: distance, precision and recall over the scale."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from figures.columns import Details, columns
from figures.learning_curves import draw_floors, log_axis
from figures.style import MARKERS, colour, legend, look, require, themed

_PANELS = {"distance": "lower is better", "precision": "higher is better", "recall": "higher is better"}


@themed
def draw(sweeps: Mapping[str, Sequence[Details]], quality: str, floors: Mapping[str, float] | None = None) -> Figure:
    """Draw three panels over the guidance scale, one curve per generator: the mean over seeds, and their range as a band.

    Args:
        sweeps: name -> per seed ``scale``, ``distance``, ``precision`` and ``recall`` [m], the same scales for all seeds.
        quality: what the distance is.
        floors: name -> distance of real images or reconstructions, as grey lines.

    Raises:
        UserError: no sweep, or a column is missing or has another length.
    """
    require(sweeps, "generator")
    figure = Figure(figsize=(13.6, 4.6), layout="constrained")
    panels = figure.subplots(1, len(_PANELS))
    for axes, (key, better) in zip(panels, _PANELS.items(), strict=True):
        for index, runs in enumerate(sweeps.values()):
            _curve(axes, runs, key, index)
        name = quality if key == "distance" else key
        axes.set_ylabel(f"{name}\n{better}", parse_math=False)
        axes.set_xlabel("guidance scale (1: none)")
    for index, label in enumerate(sweeps):
        panels[0].plot([], [], label=label, marker=MARKERS[index % len(MARKERS)], **look(index))
    draw_floors(panels[:1], floors or {})
    log_axis(panels[0], "y")
    figure.suptitle("Guidance at the end of training", x=0.01, ha="left", weight="bold", size=12)
    legend(figure, panels[0].get_lines(), handlelength=2.6)
    return figure


def _curve(axes: Axes, runs: Sequence[Details], key: str, index: int) -> None:
    pairs = [columns(run, "scale", key) for run in runs]
    scales, values = pairs[0][0], np.stack([value for _, value in pairs])
    axes.plot(scales, values.mean(0), marker=MARKERS[index % len(MARKERS)], **look(index))
    if len(values) > 1:
        axes.fill_between(scales, values.min(0), values.max(0), color=colour(index), alpha=0.15, linewidth=0)
