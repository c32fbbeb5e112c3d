"""Where on its way a sampler moves: step length over flow time, above the irreducible variance of the velocity."""

from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from figures.columns import Details, columns
from figures.style import GREY, colour, heading, legend, look, require, themed


@themed
def draw(tokenizers: Mapping[str, Details], variances: Mapping[str, Details] | None = None) -> Figure:
    """Draw one curve per tokenizer, with its 95 % band, and a line at 1: a straight path at constant speed.

    Args:
        tokenizers: name -> details of ``straightness``: ``t``, ``length_ratio`` and, optionally, ``length_ratio_low`` and
            ``length_ratio_high``, all [M].
        variances: name -> details of ``viv``: ``t``, ``curve``, [T]; drawn in a panel below, on the same flow time and in the
            same colours, to see whether steps are short where the velocity is ambiguous.

    Raises:
        UserError: no tokenizer, or a column is missing or has another length.
    """
    require(tokenizers, "tokenizer")
    below = {name: (variances or {})[name] for name in tokenizers if name in (variances or {})}
    figure = Figure(figsize=(7.0, 6.6 if below else 4.4), layout="constrained")
    panels = figure.subplots(2 if below else 1, 1, squeeze=False, sharex=True)[:, 0]
    for index, (name, details) in enumerate(tokenizers.items()):
        label = name if len(tokenizers) > 1 else None
        _curve(panels[0], details, "length_ratio", index, label)
        if name in below:
            _curve(panels[1], below[name], "curve", index)
    panels[0].axhline(1, color=GREY, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
    panels[0].autoscale_view(scalex=False)  # else a line just outside the curves lies on the edge
    panels[0].set(xlim=(0, 1), ylabel="step length / even step")
    band = "; band: 95 % interval" if panels[0].collections else ""
    heading(panels[0], "Length of the steps of the sampler", tokenizers, f"1: straight at constant speed{band}")
    if below:
        panels[1].set_ylabel("variance per dimension")
        panels[1].set_ylim(bottom=0)
        heading(panels[1], "Irreducible variance of the velocity")
    panels[-1].set_xlabel("flow time t   (0 = noise, 1 = data)")
    legend(figure, panels[0].get_lines())
    return figure


def _curve(axes: Axes, details: Details, key: str, index: int, label: str | None = None) -> None:
    """Draw a column over ``t``, with its band where there is one."""
    t, values = columns(details, "t", key)
    axes.plot(t, values, label=label, **look(index))
    if details.get(f"{key}_low") is not None and details.get(f"{key}_high") is not None:
        _, low, high = columns(details, "t", f"{key}_low", f"{key}_high")
        if np.isfinite(low).any():  # a single path has no interval
            axes.fill_between(t, low, high, color=colour(index), alpha=0.2, linewidth=0)
