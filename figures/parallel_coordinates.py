"""Tokenizers across all measurements at once: one axis per measurement, up is easier, every axis on its own scale.

Unlike a radar chart nothing depends on the angle or the order of the axes, no area is formed, and each axis keeps its values
in their own unit.
"""

from collections.abc import Mapping
from math import nan

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from figures.style import GREY, MARKERS, colour, heading, legend, look, require, themed
from latentlab.measurement import Measurement

_SPREAD = 0.16
"""Width in which the marks of all tokenizers stand beside each other on one axis."""

_ROOM = 0.04
"""Empty share of an axis beyond its extreme values."""


@themed
def draw(results: Mapping[str, Mapping[str, Measurement]]) -> Figure:
    """Draw a line per tokenizer through its values, with their 95 % intervals.

    Each axis runs over the values and intervals of these tokenizers, whatever the range of the measurement: a large step may
    be a small difference, which the intervals show.

    Args:
        results: tokenizer -> measurement name -> measurement. Measurements without a direction, and those that fewer than
            two tokenizers have, are left out.

    Raises:
        UserError: fewer than two tokenizers have any measurement with a direction.
    """
    names = _axes_to_draw(results)
    require(names, "measurement with a direction that two tokenizers have")
    figure = Figure(figsize=(max(5.5, 2.2 + 1.15 * len(names)), 5.2), layout="constrained")
    axes = figure.subplots()
    offsets = [(i + 0.5) / len(results) * _SPREAD - _SPREAD / 2 for i in range(len(results))]
    scales = [_Scale([measured[name] for measured in results.values() if name in measured]) for name in names]
    for index, (offset, (tokenizer, measured)) in enumerate(zip(offsets, results.items(), strict=True)):
        _tokenizer(axes, index, offset, tokenizer, [measured.get(name) for name in names], scales)
    for x, (name, scale) in enumerate(zip(names, scales, strict=True)):
        _axis(axes, x, name, scale)
    axes.set(xlim=(-0.5, len(names) - 0.5), ylim=(-_ROOM, 1 + _ROOM), yticks=[])
    axes.set_xticks(range(len(names)), names, rotation=35, ha="right", rotation_mode="anchor")
    axes.grid(False)
    axes.spines[["left", "bottom"]].set_visible(False)
    axes.tick_params(axis="x", length=0, pad=16)
    heading(
        axes,
        "Tokenizers across measurements",
        hint="up is easier to learn; every axis has its own scale; bars: 95 % intervals",
    )
    axes.title.set_position((0, 1.06))
    legend(figure, axes.get_lines())
    return figure


def _axes_to_draw(results: Mapping[str, Mapping[str, Measurement]]) -> list[str]:
    counts: dict[str, int] = {}
    for measured in results.values():
        for name, m in measured.items():
            if m.direction != "none":
                counts[name] = counts.get(name, 0) + 1
    return [name for name, count in counts.items() if count > 1]


class _Scale:
    """Maps the values of one measurement to 0 (hardest) .. 1 (easiest)."""

    def __init__(self, column: list[Measurement]) -> None:
        ends = [v for m in column for v in (m.value, *(m.interval or ()))]
        self.low, self.high = min(ends), max(ends)
        self.lower_is_easier = column[0].direction == "lower"

    def __call__(self, value: float) -> float:
        share = 0.5 if self.high == self.low else (value - self.low) / (self.high - self.low)
        return 1 - share if self.lower_is_easier else share

    @property
    def hardest_and_easiest(self) -> tuple[float, float]:
        return (self.high, self.low) if self.lower_is_easier else (self.low, self.high)


def _tokenizer(
    axes: Axes, index: int, offset: float, name: str, column: list[Measurement | None], scales: list[_Scale]
) -> None:
    heights = [scale(m.value) if m else nan for m, scale in zip(column, scales, strict=True)]
    places = [x + offset for x in range(len(column))]  # of what is missing too: no line leads across it
    marker = MARKERS[index % len(MARKERS)]
    axes.plot(places, heights, label=name, marker=marker, alpha=0.9, **look(index) | {"linewidth": 1.4})
    for x, (m, scale) in enumerate(zip(column, scales, strict=True)):
        if m is not None and m.interval is not None:
            ends = [scale(end) for end in m.interval]
            axes.plot([x + offset] * 2, ends, color=colour(index), linewidth=3, alpha=0.45, solid_capstyle="butt")


def _axis(axes: Axes, x: int, name: str, scale: _Scale) -> None:
    axes.axvline(x, color=GREY, linewidth=0.6, zorder=0)
    for value, y, side, va in zip(scale.hardest_and_easiest, (0, 1), (-4, 4), ("top", "bottom"), strict=True):
        text = axes.annotate(f"{value:.3g}", (x, y), (0, side), textcoords="offset points", ha="center", va=va)
        text.set(size=9, color=GREY, bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.5})
