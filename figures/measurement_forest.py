"""Tokenizers side by side: every measurement with its interval, each in a panel of its own with its own unit.

Measurements have different units and no common scale: putting them on one axis (normalised, or as a radar chart) would
invent one. Here positions compare within a panel only.
"""

from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from figures.style import colour, heading, require, themed
from latentlab.errors import UserError
from latentlab.measurement import Measurement

_ACROSS = 3
_EASIER = {"lower": "← easier", "higher": "easier →", "none": "describes only"}


@themed
def draw(results: Mapping[str, Mapping[str, Measurement]]) -> Figure:
    """Draw one panel per measurement, in it one row per tokenizer: value, 95 % interval where there is one.

    Args:
        results: tokenizer -> measurement name -> measurement. A tokenizer that lacks a measurement has an empty row.

    Raises:
        UserError: nothing to draw, or a measurement was made in different variants, which do not compare.
    """
    names = list(dict.fromkeys(name for measured in results.values() for name in measured))
    require(names, "measurement")
    rows, across = -(-len(names) // _ACROSS), min(len(names), _ACROSS)
    height = 1.2 + 0.34 * len(results)
    figure = Figure(figsize=(1.6 + 2.9 * across, height * rows + 0.5), layout="constrained")
    grid = figure.subplots(rows, across, squeeze=False, sharey=True, gridspec_kw={"wspace": 0.08, "hspace": 0.12})
    for axes, name in zip(grid.flat, names, strict=False):
        _panel(axes, name, [measured.get(name) for measured in results.values()])
    for axes in grid.flat[len(names) :]:
        axes.remove()
    grid[0, 0].set_yticks(range(len(results)), list(results))
    grid[0, 0].set_ylim(len(results) - 0.5, -0.5)
    figure.suptitle("Tokenizers side by side (bars: 95 % intervals)", weight="bold", size=12)
    return figure


def _panel(axes: Axes, name: str, column: Sequence[Measurement | None]) -> None:
    present = [m for m in column if m is not None]
    variants = {m.variant for m in present}
    if len(variants) > 1:
        raise UserError(
            f"'{name}' was measured in different variants, which do not compare: {'; '.join(sorted(variants))}"
        )
    for row, m in enumerate(column):
        if m is None:
            continue
        if m.interval is not None:
            axes.plot(m.interval, (row, row), color=colour(0), linewidth=2)
        axes.plot(m.value, row, marker="o", color=colour(0))
    axes.xaxis.set_major_locator(MaxNLocator(4))
    axes.margins(x=0.12)
    axes.set_xlabel(present[0].unit)
    heading(axes, name, hint=_EASIER[present[0].direction])
