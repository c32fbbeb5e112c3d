"""Where the sampler moves and where the velocity is ambiguous: step length with the irreducible variance laid over it."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from figures.columns import Details, columns
from figures.study_layout import grid
from figures.style import GREY, colour, fit, heading, legend, require, themed, title
from latentlab.errors import UserError

_STEP: dict[str, Any] = {"color": colour(0)}
_VARIANCE: dict[str, Any] = {"color": colour(1), "linestyle": (0, (4, 1.6))}


@themed
def draw(
    paths: Mapping[str, Details],
    variances: Mapping[str, Details],
    correlations: Mapping[str, float] | None = None,
    about: str = "",
) -> Figure:
    """Draw one panel per tokenizer that is in both tables; the scales are the same in all panels.

    Args:
        paths: tokenizer -> details of ``straightness``: ``t``, ``length_ratio`` and, optionally, ``length_ratio_low`` and
            ``length_ratio_high`` (a band), [M].
        variances: tokenizer -> details of ``viv``: ``t``, ``curve``, [T].
        correlations: tokenizer -> correlation of the two over time, written above its panel.
        about: which generator and tokenizers, for the title.

    Raises:
        UserError: no tokenizer is in both, or a column is missing or has another length.
    """
    require(paths, "generator's paths")
    shown = [name for name in paths if name in variances]
    if not shown:
        raise UserError("no tokenizer has both its sampler's paths and the irreducible variance of its latents")
    figure, panels = grid(len(shown), least=3, sharex=True, sharey=True)
    overlays = [axes.twinx() for axes in panels]
    for axes, overlay, name in zip(panels, overlays, shown, strict=True):
        _steps(axes, paths[name])
        overlay.plot(*columns(variances[name], "t", "curve"), **_VARIANCE)
        r = (correlations or {}).get(name, float("nan"))
        heading(axes, fit(name, 28), hint=f"r = {r:.2f}".replace("-", "−") if np.isfinite(r) else " ")
    banded = any(paths[name].get("length_ratio_low") is not None for name in shown)
    _finish(figure, panels, overlays, about, banded)
    return figure


def _steps(axes: Axes, details: Details) -> None:
    t, ratio = columns(details, "t", "length_ratio")
    axes.plot(t, ratio, **_STEP)
    if details.get("length_ratio_low") is not None and details.get("length_ratio_high") is not None:
        _, low, high = columns(details, "t", "length_ratio_low", "length_ratio_high")
        axes.fill_between(t, low, high, color=_STEP["color"], alpha=0.2, linewidth=0)
    axes.axhline(1, color=GREY, linewidth=0.9, linestyle=(0, (1.2, 1.6)), zorder=1)


def _finish(figure: Figure, panels: list[Axes], overlays: list[Axes], about: str, banded: bool) -> None:
    """Give all overlays one scale, numbers only at the right end of a row, and name the axes."""
    top = max(overlay.get_ylim()[1] for overlay in overlays)
    for axes, overlay in zip(panels, overlays, strict=True):
        overlay.set_ylim(0, top)
        overlay.grid(False)
        overlay.spines["right"].set_visible(True)
        axes.set(xlim=(0, 1), xticks=(0, 0.5, 1))
        axes.set_xticklabels(["0", "0.5", "1"])
        place = axes.get_subplotspec()
        last = axes is panels[-1] or (place is not None and place.is_last_col())
        overlay.tick_params(labelright=last)
    figure.supylabel("step length / even step", size=11)
    title(figure, ": ".join(filter(None, ["Step length and irreducible variance", about])))
    figure.supxlabel("flow time t   (0 = noise, 1 = data)", size=11)
    legend(
        figure,
        [
            Line2D([], [], label="step length (left)\n1: straight, even" + "\nband: 95 % interval" * banded, **_STEP),
            Line2D([], [], label="variance per\ndimension (right)", **_VARIANCE),
        ],
        handlelength=2.4,
    )
