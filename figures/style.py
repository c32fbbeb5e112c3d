"""How every figure looks, and how it is written: theme, colours, titles, and `save`.

Figures are plain `matplotlib.figure.Figure` objects, never pyplot's: nothing stays open, no window appears, and the
settings of a notebook are as they were afterwards.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from threading import RLock
from typing import Any, ParamSpec

import matplotlib
import matplotlib.style
import seaborn
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from latentlab.errors import UserError
from latentlab.files import atomic_path

P = ParamSpec("P")

PALETTE = (
    "#332288",
    "#CC6677",
    "#117733",
    "#88CCEE",
    "#882255",
    "#999933",
    "#44AA99",
    "#AA4499",
    "#DDCC77",
    "#000000",
)
"""Paul Tol's "muted" colours and black: told apart by colour-blind readers, and of lightness 0 to 82 for print in grey."""

DASHES: tuple[Any, ...] = ("solid", (0, (5, 1.6)), (0, (1.2, 1.2)))
"""Line patterns: 3 and 10 have no common factor, so that 30 curves differ, and neighbours differ without colour."""

MARKERS = ("o", "^", "s", "D", "v", "P", "X")
"""Point shapes: 7 and 10 have no common factor, so that 70 classes differ."""

SEQUENTIAL = "cividis"
"""Colour map of amounts: lightness grows evenly, the same to colour-blind readers."""

GREY = "#555555"
_DPI = 160

_THEME: dict[str, Any] = {
    **seaborn.axes_style("whitegrid"),
    "figure.dpi": _DPI,
    "font.size": 11,
    "axes.labelsize": 11,
    "axes.titlesize": 12,
    "xtick.labelsize": 10,
    "ytick.labelsize": 10,
    "legend.fontsize": 10,
    "legend.frameon": False,
    "lines.linewidth": 2.0,
    "lines.markersize": 6.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": GREY,
    "grid.color": "#E4E4E4",
    "svg.hashsalt": "latentlab",
}

_SETTINGS = RLock()  # matplotlib's settings belong to the whole process


@contextmanager
def _theme() -> Iterator[None]:
    with _SETTINGS, matplotlib.style.context(_THEME, after_reset=True):
        yield


def themed(draw: Callable[P, Figure]) -> Callable[P, Figure]:
    """Let ``draw`` run under the theme, one thread at a time, whatever the caller's own settings are."""

    @wraps(draw)
    def drawn(*args: P.args, **kwargs: P.kwargs) -> Figure:
        with _theme():
            figure = draw(*args, **kwargs)
            # Ticks are made when first drawn and take their style from the settings of that moment.
            figure.draw_without_rendering()
            return figure

    return drawn


def colour(index: int) -> str:
    """Return the ``index``-th colour; they repeat after 10."""
    return PALETTE[index % len(PALETTE)]


def look(index: int) -> dict[str, Any]:
    """Return colour and line pattern of the ``index``-th curve, as keywords of ``plot``; they repeat after 30."""
    return {"color": colour(index), "linestyle": DASHES[index % len(DASHES)]}


def panel(width: float = 7.0, height: float = 4.4) -> tuple[Figure, Axes]:
    """Return an empty figure of one panel, in inches."""
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots()


def heading(axes: Axes, title: str, names: Collection[str] = (), hint: str = "") -> None:
    """Write the title and under it, smaller, the only one of ``names`` (several go into `legend`) and the hint."""
    below = [*(map(fit, names) if len(names) == 1 else ()), *([hint] if hint else [])]
    axes.set_title(title, loc="left", weight="bold", pad=8 + 14 * len(below), parse_math=False)
    if below:
        text = axes.annotate(
            "\n".join(below), (0, 1), (0, 7), xycoords="axes fraction", textcoords="offset points", va="bottom"
        )
        text.set(size=9.5, color=GREY, linespacing=1.25, parse_math=False)


def fit(name: str, characters: int = 90) -> str:
    """Return ``name``, or its end where it is too long to be written."""
    return name if len(name) <= characters else f"…{name[1 - characters :]}"


def legend(figure: Figure, handles: Sequence[Artist], **options: Any) -> None:
    """Name the labelled ``handles`` right of the panel, where they cover nothing; none when nothing is labelled."""
    named = [handle for handle in handles if not str(handle.get_label()).startswith("_")]
    if named:
        for text in figure.legend(handles=named, loc="outside right upper", **options).get_texts():
            text.set_parse_math(False)  # a dollar sign in a name is a dollar sign


def require(tables: Collection[Any], what: str) -> None:
    """Raise `UserError` when there is nothing to draw."""
    if not tables:
        raise UserError(f"there is nothing to draw: give at least one {what}")


def save(figure: Figure, path_stem: Path) -> tuple[Path, Path]:
    """Write ``path_stem``.png and ``path_stem``.svg, each whole or not at all, and return their paths.

    The same figure gives the same bytes: no date, no program version, and a fixed salt for the identifiers in the SVG.

    Raises:
        UserError: the folder is not writable or the disk is full.
    """
    png, svg = (path_stem.with_name(f"{path_stem.name}.{kind}") for kind in ("png", "svg"))
    with _theme():
        with atomic_path(png) as temporary:
            figure.savefig(temporary, format="png", dpi=_DPI, metadata={"Software": None})
        with atomic_path(svg) as temporary:
            figure.savefig(temporary, format="svg", metadata={"Date": None, "Creator": None})
    return png, svg
