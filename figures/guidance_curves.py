"""What classifier-free guidance does to each generator: distance, precision and recall over the scale."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from figures.columns import Details, columns
from figures.learning_curves import bands_of, draw_floors, log_axis
from figures.style import MARKERS, colour, legend, look, require, themed
from figures.style import title as write_title

_MOST_BANDS = 12
"""Curves whose ranges over seeds are drawn; more cover each other."""
_PANELS = {"distance": "lower is better", "precision": "higher is better", "recall": "higher is better"}


@themed
def draw(
    sweeps: Mapping[str, Sequence[Details]],
    quality: str,
    floors: Mapping[str, float] | None = None,
    groups: Mapping[str, str] | None = None,
    title: str = "Guidance at the end of training",
) -> Figure:
    """Draw a panel per quality over the guidance scale, one curve per name: the mean over seeds.

    The range over seeds is a band where there are few curves.

    Args:
        sweeps: name (of a generator, or of a tokenizer) -> per seed ``scale``, ``distance`` and, optionally, ``precision`` and
            ``recall`` [m], the same scales for all seeds of a name. A panel is drawn where every name has its column.
        quality: what the distance is.
        floors: name -> distance of real images or reconstructions, as grey lines.
        groups: name -> group. Then curves look alike within a group, the legend names the groups, and a hollow marker shows
            the best scale of each curve.
        title: of the figure.

    Raises:
        UserError: no sweep, or a column is missing or has another length.
    """
    require(sweeps, "generator")
    figure, panels = _panels(sweeps)
    of = {name: name for name in sweeps} if groups is None else dict(groups)
    names = list(dict.fromkeys(of.values()))
    crowded = len(sweeps) > _MOST_BANDS
    for key, axes in panels.items():
        for name, runs in sweeps.items():
            _curve(axes, runs, key, names.index(of[name]), groups is not None, banded=not crowded)
        axes.set_ylabel(f"{quality if key == 'distance' else key}\n{_PANELS[key]}", parse_math=False)
        axes.set_xlabel("guidance scale (1: none)")
    first = panels["distance"]
    for index, name in enumerate(names):
        first.plot([], [], label=name, marker=MARKERS[index % len(MARKERS)], **look(index))
    below = draw_floors([first], floors or {})
    log_axis(first, "y")
    means = "mean over seeds" if crowded else bands_of(sweeps)
    write_title(figure, title, "; ".join(filter(None, [means, below])))
    legend(figure, first.get_lines(), handlelength=2.6)
    return figure


def _panels(sweeps: Mapping[str, Sequence[Details]]) -> tuple[Figure, dict[str, Axes]]:
    runs = [run for seeds in sweeps.values() for run in seeds]
    shown = [key for key in _PANELS if key == "distance" or all(run.get(key) is not None for run in runs)]
    figure = Figure(figsize=(2.0 + 3.87 * max(len(shown), 1.5), 4.6), layout="constrained")
    return figure, dict(zip(shown, figure.subplots(1, len(shown), squeeze=False)[0], strict=True))


def _curve(axes: Axes, runs: Sequence[Details], key: str, index: int, grouped: bool, banded: bool) -> None:
    pairs = [columns(run, "scale", key) for run in runs]
    scales, values = pairs[0][0], np.stack([value for _, value in pairs])
    means = values.mean(0)
    (line,) = axes.plot(scales, means, marker=MARKERS[index % len(MARKERS)], **look(index))
    if grouped:
        line.set(linewidth=1.2, markersize=4.5)
        if key == "distance" and np.isfinite(means).any():
            least = int(np.nanargmin(means))
            axes.plot(scales[least], means[least], marker="o", markersize=9, color=colour(index), fillstyle="none")
    if banded and len(values) > 1:
        alpha = 0.06 if grouped else 0.15  # many bands lie on each other
        axes.fill_between(scales, values.min(0), values.max(0), color=colour(index), alpha=alpha, linewidth=0)
