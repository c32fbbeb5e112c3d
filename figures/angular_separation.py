"""How far the codes of a token table are apart: angles to the nearest other code, against codes placed at random."""

from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from figures.columns import Details, column
from figures.style import colour, fit, legend, require, themed

_PANELS = {"whole": "whole embeddings", "subvector": "single sub-vectors"}


@themed
def draw(tables: Mapping[str, Mapping[str, Details]]) -> Figure:
    """Draw the cumulative distribution of nearest angles: solid as learned, dashed for uniform random codes.

    Args:
        tables: name -> ``whole`` and ``subvector`` -> ``angles`` [v] and ``uniform`` [m], in degrees.

    Raises:
        UserError: no table, or a column is missing.
    """
    require(tables, "token table")
    figure = Figure(figsize=(9.6, 4.4), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for axes, (key, title) in zip(panels, _PANELS.items(), strict=True):
        for index, (name, parts) in enumerate(tables.items()):
            details = parts.get(key, {})
            _cumulative(axes, column(details, "angles"), index, "-", name if len(tables) > 1 else "learned")
            _cumulative(axes, column(details, "uniform"), index, (0, (3, 2)), "" if index else "uniform random")
        axes.set_xlabel(f"{title} (degrees)")
        axes.set_xlim(left=0)
    panels[0].set_ylabel("share of the codes")
    title = "Angle to the nearest other code" + (f": {fit(next(iter(tables)))}" if len(tables) == 1 else "")
    hint = "right of the dashed curve: further apart than uniform random codes"
    figure.suptitle(f"{title}\n{hint}", x=0.01, ha="left", size=12, parse_math=False)
    legend(figure, panels[0].get_lines())
    return figure


def _cumulative(axes: Axes, angles: np.ndarray, index: int, dashes: object, label: str) -> None:
    """Draw one empirical distribution function; an empty label stays out of the legend."""
    values = np.sort(angles)
    shares = np.arange(1, len(values) + 1) / len(values)
    width = 2.0 if dashes == "-" else 1.2
    axes.step(values, shares, where="post", color=colour(index), linestyle=dashes, linewidth=width, label=label or "_")
