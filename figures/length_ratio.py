"""Where on its way a sampler moves: step length over flow time, above the irreducible variance of the velocity."""

from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from figures.columns import Details, columns
from figures.style import GREY, colour, heading, legend, look, require, themed

_DOTS = (0, (1.2, 1.6))


@themed
def draw(generators: Mapping[str, Details], variances: Mapping[str, Details] | None = None) -> Figure:
    """Draw one curve per generator, with its 95 % band, and a line at 1: a straight path at constant speed.

    Args:
        generators: name -> details of ``straightness``: ``t``, ``length_ratio`` and, optionally, ``length_ratio_low``,
            ``length_ratio_high`` and ``gaussian_length_ratio`` (dotted: what the exact flow to Gaussians of the same
            covariance does), all [M].
        variances: name -> details of ``viv``: ``t``, ``curve``, [T]; drawn in a panel below, on the same flow time and in the
            same colours, to see whether steps are short where the velocity is ambiguous.

    Raises:
        UserError: no generator, or a column is missing or has another length.
    """
    require(generators, "generator")
    below = {name: (variances or {})[name] for name in generators if name in (variances or {})}
    width = 7.0 if len(generators) == 1 else 10.0  # names stand beside the panels
    figure = Figure(figsize=(width, 6.6 if below else 4.4), layout="constrained")
    panels = figure.subplots(2 if below else 1, 1, squeeze=False, sharex=True)[:, 0]
    for index, (name, details) in enumerate(generators.items()):
        _curve(panels[0], details, "length_ratio", index, name if len(generators) > 1 else None)
        if details.get("gaussian_length_ratio") is not None:
            t, expected = columns(details, "t", "gaussian_length_ratio")
            panels[0].plot(t, expected, color=colour(index), linewidth=1.4, linestyle=_DOTS)
        if name in below:
            _curve(panels[1], below[name], "curve", index)
    _finish_lengths(panels[0], generators)
    if below:
        panels[1].set_ylabel("variance per dimension")
        panels[1].set_ylim(bottom=0)
        heading(panels[1], "Irreducible variance of the velocity", hint="of Gaussian classes (eq. 4)")
    panels[-1].set_xlabel("flow time t   (0 = noise, 1 = data)")
    legend(figure, panels[0].get_lines())
    return figure


def _finish_lengths(axes: Axes, generators: Mapping[str, Details]) -> None:
    """Add the line at 1 and say what is seen."""
    axes.axhline(1, color=GREY, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
    axes.autoscale_view(scalex=False)  # else a line just outside the curves lies on the edge
    axes.set(xlim=(0, 1), ylabel="step length / even step")
    hints = ["1: straight at constant speed", *(["band: 95 % interval"] if axes.collections else [])]
    if any(details.get("gaussian_length_ratio") is not None for details in generators.values()):
        hints.append("dotted: exact flow to Gaussian classes")
    heading(axes, "Length of the steps of the sampler", generators, "; ".join(hints))


def _curve(axes: Axes, details: Details, key: str, index: int, label: str | None = None) -> None:
    """Draw a column over ``t``, with its band where there is one."""
    t, values = columns(details, "t", key)
    axes.plot(t, values, label=label, **look(index))
    if details.get(f"{key}_low") is not None and details.get(f"{key}_high") is not None:
        _, low, high = columns(details, "t", f"{key}_low", f"{key}_high")
        if np.isfinite(low).any():  # a single path has no interval
            axes.fill_between(t, low, high, color=colour(index), alpha=0.2, linewidth=0)
