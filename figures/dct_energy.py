"""Which spatial frequencies the latents use: energy per DCT frequency as a map."""

from collections.abc import Mapping, Sequence
from textwrap import wrap

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator

from figures.columns import Details, column
from figures.style import GREY, SEQUENTIAL, fit, require, themed
from latentlab.errors import UserError

_ACROSS = 4
_DECADES = 6
"""The colour scale ends this many powers of ten below its top; smaller energies take the darkest colour."""


@themed
def draw(tokenizers: Mapping[str, Details], rho: Sequence[float] = (0.25, 0.5)) -> Figure:
    """Draw one map per tokenizer on one shared logarithmic colour scale, with the thresholds of SEC.

    SEC at rho is the share of energy strictly beyond the line u + v = rho (h + w - 2) (Zhong et al., "Diffusing in the
    Right Space", eq. 9).

    Args:
        tokenizers: name -> details of ``sec``: ``energy`` [h,w], shares that sum to 1; row u is vertical frequency.
        rho: thresholds to draw, each in [0,1].

    Raises:
        UserError: no tokenizer, a map is missing, or it holds no energy.
    """
    require(tokenizers, "tokenizer")
    maps = {name: column(details, "energy", ndim=2) for name, details in tokenizers.items()}
    scale = _colour_scale(maps)
    rows, across = -(-len(maps) // _ACROSS), min(len(maps), _ACROSS)
    figure = Figure(figsize=(3.7 * across + 1.3, 4.0 * rows + 0.8), layout="constrained")
    grid = figure.subplots(rows, across, squeeze=False)
    for axes in grid.flat[len(maps) :]:
        axes.remove()
    for axes, (name, energy) in zip(grid.flat, maps.items(), strict=False):
        image = axes.imshow(energy, norm=scale, cmap=SEQUENTIAL)
        _dress(axes, name)
        for value in rho:
            _threshold(axes, energy.shape, value)
    below = any((energy < scale.vmin).any() for energy in maps.values())
    bar = figure.colorbar(image, ax=figure.axes, extend="min" if below else "neither", shrink=0.8)
    bar.set_label("share of energy")
    figure.suptitle("Energy per spatial frequency of the latents", weight="bold", size=12)
    figure.supxlabel("the less energy beyond a line (SEC), the easier to learn", size=9.5, color=GREY)
    return figure


def _colour_scale(maps: Mapping[str, np.ndarray]) -> LogNorm:
    top = max(float(np.nanmax(energy)) for energy in maps.values())
    if not top > 0:
        raise UserError("the energy map is zero everywhere: these latents are constant")
    lowest = min(float(energy[energy > top * 10.0**-_DECADES].min(initial=top)) for energy in maps.values())
    return LogNorm(min(lowest, top / 10), top, clip=True)


def _dress(axes: Axes, name: str) -> None:
    axes.grid(False)
    axes.set(xlabel="horizontal frequency v", ylabel="vertical frequency u")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(integer=True, nbins=6))
    _above(axes, "DC", (0, -0.5))
    axes.set_title("\n".join(wrap(fit(name), 48)), size=10, pad=20, parse_math=False)


def _above(axes: Axes, text: str, end: tuple[float, float]) -> None:
    axes.annotate(text, end, (0, 4), textcoords="offset points", ha="center", va="bottom", size=9)


def _threshold(axes: Axes, shape: tuple[int, ...], rho: float) -> None:
    """Draw u + v = rho (h + w - 2) across the map, from its left or lower edge to its upper or right edge."""
    h, w = shape
    tau = rho * (h + w - 2)
    left, right = max(-0.5, tau - (h - 0.5)), min(w - 0.5, tau + 0.5)
    outline = [withStroke(linewidth=3.5, foreground="black")]
    axes.plot([left, right], [tau - left, tau - right], color="white", linewidth=1.6, path_effects=outline)
    end = (right, tau - right)
    if tau + 0.5 <= w - 0.5:
        _above(axes, f"ρ = {rho:g}", end)
    else:
        axes.annotate(f"ρ = {rho:g}", end, (4, 0), textcoords="offset points", va="center", size=9)
