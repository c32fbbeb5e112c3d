"""What each turn, resize and flip of the image does to a tokenizer's latents: equivariance error per transform."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from figures.columns import Details, columns
from figures.style import GREY, MARKERS, colour, fit, require, themed
from latentlab.errors import UserError

_TITLES = {"rotate": "Turned clockwise", "scale": "Resized", "flip": "Mirrored"}
_SPREAD = 0.44
"""Height of the points of one tokenizer, of the 1 between two tokenizers."""
_RELATIVE = "relative squared error"


@themed
def draw(tokenizers: Mapping[str, Details]) -> Figure:
    """Draw one panel per kind of transform, in it one row per tokenizer and one point per transform, with 95 % intervals.

    All panels share one axis of errors.

    Args:
        tokenizers: name -> details of ``equivariance``: ``transforms`` (names), ``kinds`` (``rotate``, ``scale`` or ``flip``),
            ``error`` and, where there is an interval, ``error_low`` and ``error_high``, one entry per transform; ``unit``.

    Raises:
        UserError: no tokenizer, a column is missing or has another length, an unknown kind, or different units.
    """
    require(tokenizers, "tokenizer")
    unit = _shared_unit(tokenizers)
    tables = [_rows(details) for details in tokenizers.values()]
    kinds = [kind for kind in _TITLES if any(kind == row[0] for table in tables for row in table)]
    figure = Figure(figsize=(1.4 + 3.1 * len(kinds), 2.0 + 0.62 * len(tables)), layout="constrained")
    panels = figure.subplots(1, len(kinds), squeeze=False, sharex=True, sharey=True, gridspec_kw={"wspace": 0.06})[0]
    for axes, kind in zip(panels, kinds, strict=True):
        _panel(axes, kind, tables)
    _tokenizer_axis(panels[0], list(tokenizers))
    figure.supxlabel(unit, size=11)
    ends = ", 2 is what unrelated latents have" if unit == _RELATIVE else ""
    below = f"{fit(next(iter(tokenizers)))}\n" if len(tokenizers) == 1 else ""
    figure.suptitle(
        f"Equivariance error of the encoder\n{below}lower is better: 0 is equivariant{ends}; bars: 95 % intervals",
        size=11,
        parse_math=False,
    )
    return figure


def _shared_unit(tokenizers: Mapping[str, Details]) -> str:
    units = {name: str(details.get("unit")) for name, details in tokenizers.items()}
    if len(set(units.values())) > 1:
        listed = ", ".join(f"{name} {unit}" for name, unit in units.items())
        raise UserError(f"errors compare only in one unit, got {listed}: measure equivariance with the same error")
    return next(iter(units.values()))


def _rows(details: Details) -> list[tuple[str, str, float, float, float]]:
    """Return (kind, name, error, low, high) per transform; the ends are NaN where there is no interval."""
    (errors,) = columns(details, "error")
    if details.get("error_low") is None or details.get("error_high") is None:
        low = high = np.full(len(errors), np.nan)
    else:
        _, low, high = columns(details, "error", "error_low", "error_high")
    names, kinds = details.get("transforms") or (), details.get("kinds") or ()
    if not len(names) == len(kinds) == len(errors):
        raise UserError(
            f"'transforms', 'kinds' and 'error' of the measurement's details must have the same length: got {len(names)}, "
            f"{len(kinds)} and {len(errors)}"
        )
    if unknown := sorted(set(kinds) - set(_TITLES)):
        raise UserError(f"unknown kind of transform '{unknown[0]}' in the measurement's details")
    return list(zip(kinds, names, errors.tolist(), low.tolist(), high.tolist(), strict=True))


def _panel(axes: Axes, kind: str, tables: Sequence[Sequence[tuple[str, str, float, float, float]]]) -> None:
    """Draw the transforms of one kind, each with a colour and a shape of its own."""
    names = list(dict.fromkeys(row[1] for table in tables for row in table if row[0] == kind))
    offsets = np.linspace(-_SPREAD / 2, _SPREAD / 2, len(names)) if len(names) > 1 else np.zeros(1)
    for index, name in enumerate(names):
        found = [(y, row) for y, table in enumerate(tables) for row in table if row[:2] == (kind, name)]
        at = np.array([y for y, _ in found]) + offsets[index]
        values = np.array([row[2:] for _, row in found])
        axes.hlines(at, values[:, 1], values[:, 2], color=colour(index), linewidth=1.8)
        axes.plot(values[:, 0], at, label=name, linestyle="none", marker=MARKERS[index], color=colour(index))
    axes.set_title(_TITLES[kind], loc="left", weight="bold", size=11, pad=26)
    axes.legend(
        loc="lower left", bbox_to_anchor=(-0.03, 0.98), ncols=4, handletextpad=0.1, columnspacing=0.9, borderpad=0.2
    )
    axes.set_xlim(left=0)
    axes.grid(False, axis="y")


def _tokenizer_axis(axes: Axes, names: Sequence[str]) -> None:
    """Name the rows; a single one is named in the title."""
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_yticks(range(len(names)), [fit(name, 28) for name in names] if len(names) > 1 else [""])
    for label in axes.get_yticklabels():
        label.set_parse_math(False)
    for y in np.arange(len(names) - 1) + 0.5:
        for panel in axes.figure.axes:
            panel.axhline(y, color=GREY, linewidth=0.5, alpha=0.4)
