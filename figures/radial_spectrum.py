"""How rough latents are: energy over spatial frequency, as a curve."""

from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter

from figures.columns import Details, columns
from figures.style import GREY, heading, legend, look, panel, require, themed
from latentlab.errors import UserError

_FLOOR = 1e-8
"""Energies below this share of the largest are rounding errors of float32 latents; the axis ends there."""


class _PlainNumbers(LogFormatter):
    """Labels the same ticks as its base class, but with 0.2 instead of 2e-01."""

    def __call__(self, x: float, pos: int | None = None) -> str:
        return f"{x:g}" if super().__call__(x, pos) else ""


@themed
def draw(tokenizers: Mapping[str, Details]) -> Figure:
    """Draw one curve per tokenizer: energy per frequency (log) over the distance of the frequency from DC.

    White noise is the line at 1. The frequency axis is relative to the highest one, as rho of SEC is, so that grids of
    different size share it.

    Args:
        tokenizers: name -> details of ``sec``: ``frequency``, ``radial_energy`` and ``radial_white``, all [D].

    Raises:
        UserError: no tokenizer, a column is missing or has another length, or there is no energy or a single frequency.
    """
    require(tokenizers, "tokenizer")
    figure, axes = panel()
    ends: list[float] = [1.0]
    for index, (name, details) in enumerate(tokenizers.items()):
        frequency, energy = _spectrum(name, details)
        ends += [np.nanmin(energy), np.nanmax(energy)]
        label = name if len(tokenizers) > 1 else None
        axes.plot(frequency, energy, marker="o", markersize=4, label=label, **look(index))
    axes.axhline(1, color=GREY, linestyle="dashed", linewidth=1.2, zorder=1.5)
    axes.annotate("white noise", (1, 1), (-4, 4), textcoords="offset points", ha="right").set(size=9, color=GREY)
    axes.set(xlim=(0, 1), xlabel="frequency / highest frequency", ylabel="energy per frequency (white noise: 1)")
    axes.set(yscale="log", ylim=(min(ends) / 1.5, max(ends) * 1.5))
    axes.yaxis.set(major_formatter=_PlainNumbers(), minor_formatter=_PlainNumbers())
    heading(
        axes, "Radial spectrum of the latents", tokenizers, "the lower on the right, the smoother and easier to learn"
    )
    legend(figure, axes.get_lines())
    return figure


def _spectrum(name: str, details: Details) -> tuple[np.ndarray, np.ndarray]:
    """Return frequencies from 0 to 1, and energy relative to white noise, NaN where there is none to show."""
    frequency, energy, white = columns(details, "frequency", "radial_energy", "radial_white")
    kept = white > 0  # narrow grids have Euclidean rings without a frequency
    frequency, energy = frequency[kept], energy[kept] / white[kept]
    if len(frequency) < 2 or not np.nanmax(energy) > 0:
        raise UserError(f"'{name}' has no spectrum to draw: its grid has one cell, or its latents are constant")
    return frequency / frequency[-1], np.where(energy > _FLOOR * np.nanmax(energy), energy, np.nan)
