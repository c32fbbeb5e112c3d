"""How evenly single cells of the latents are spread: their t-SNE points, coloured by density."""

from collections.abc import Mapping
from textwrap import wrap

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from figures.columns import Details, column
from figures.style import GREY, SEQUENTIAL, fit, require, themed
from latentlab.errors import UserError

_ACROSS = 4


@themed
def draw(tokenizers: Mapping[str, Details]) -> Figure:
    """Draw one map per tokenizer on one shared colour scale, from the lowest density to the highest.

    Args:
        tokenizers: name -> details of ``uniformity``: ``points`` [m,2] and their ``density`` [m], of mean 1.

    Raises:
        UserError: no tokenizer, a table is missing, or lengths differ.
    """
    require(tokenizers, "tokenizer")
    maps = {name: _table(details) for name, details in tokenizers.items()}
    ends = [(float(density.min()), float(density.max())) for _, density in maps.values()]
    scale = Normalize(min(low for low, _ in ends), max(high for _, high in ends))
    rows, across = -(-len(maps) // _ACROSS), min(len(maps), _ACROSS)
    figure = Figure(figsize=(3.9 * across + 1.3, 4.0 * rows + 0.8), layout="constrained")
    grid = figure.subplots(rows, across, squeeze=False)
    for axes in grid.flat[len(maps) :]:
        axes.remove()
    for axes, (name, (points, density)) in zip(grid.flat, maps.items(), strict=False):
        marks = axes.scatter(*points.T, c=density, norm=scale, cmap=SEQUENTIAL, s=_size(len(points)), linewidths=0)
        marks.set_rasterized(True)  # ten thousand paths make an SVG of megabytes
        _dress(axes, name, float(density.std() / density.mean()))
    bar = figure.colorbar(marks, ax=figure.axes, shrink=0.8)
    bar.set_label("density over its mean")
    figure.suptitle("Density of single cells in the t-SNE plane", weight="bold", size=12)
    note = "the less the density varies (CV), the more uniform; well separated clusters lower the CV too"
    figure.supxlabel(note if across > 1 else "\n".join(wrap(note, 60)), size=9.5, color=GREY)
    return figure


def _table(details: Details) -> tuple[np.ndarray, np.ndarray]:
    points, density = column(details, "points", ndim=2), column(details, "density")
    if points.shape != (len(density), 2):
        raise UserError(f"points must be [{len(density)},2], one per density, got shape {list(points.shape)}")
    return points, density


def _size(n: int) -> float:
    """Return the area of a mark: smaller the more there are, so that they cover about the same part of the map."""
    return float(np.clip(30_000 / n, 2, 30))


def _dress(axes: Axes, name: str, cv: float) -> None:
    axes.grid(False)
    axes.set_aspect("equal", adjustable="datalim")
    axes.set(xticks=[], yticks=[], xlabel="t-SNE 1", ylabel="t-SNE 2")
    lines = [*wrap(fit(name), 44), f"density CV {cv:.3f} (this draw)"]  # the measurement is the mean over several
    axes.set_title("\n".join(lines), size=10, parse_math=False)
