"""How every figure looks, and how it is written: theme, colours, titles, and `save`.

Figures are plain `matplotlib.figure.Figure` objects, never pyplot's: nothing stays open, no window appears, and the
settings of a notebook are as they were afterwards.
"""

import re
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
from matplotlib.text import Text
from matplotlib.textpath import text_to_path

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

FORMS = (
    *((marker, "full") for marker in (*MARKERS, "*", "<", ">")),
    *((marker, "left") for marker in "so^vD"),
    *((marker, "bottom") for marker in "Dso^v"),
    *((marker, "full") for marker in "dph"),
)
"""Markers and how they are filled: 23 that differ without colour. Hollow ones are left for controls."""

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
            for _ in range(2):  # labels of more lines make the axes smaller
                if not (_wrap_labels(figure) | _shorten_titles(figure)):
                    break
                figure.draw_without_rendering()
            return figure

    return drawn


def _wrap_labels(figure: Figure) -> bool:
    """Break the labels that are longer than their axis into lines; return whether any was."""
    above, below, beside = figure._suptitle, figure._supxlabel, figure._supylabel  # type: ignore[attr-defined]
    rooms = [(axes.xaxis.label, axes.get_window_extent().width) for axes in figure.axes]
    rooms += [(axes.yaxis.label, axes.get_window_extent().height) for axes in figure.axes]
    if beside is not None:  # it stands in the middle of the figure's height
        words = [text.get_window_extent().height for text in (above, below) if text is not None]
        rooms.append((beside, figure.bbox.height - 2 * max(words, default=0) - 0.15 * figure.dpi))
    broken = [_wrap(label, pixels * 72 / figure.dpi) for label, pixels in rooms]  # all of them, not up to the first
    return True in broken


def _wrap(label: Text, points: float) -> bool:
    whole = label.get_text()
    label.set_text("\n".join(piece for line in whole.split("\n") for piece in _broken(label, line, points)))
    label.set_multialignment("center")
    return label.get_text() != whole


_BREAKS = ((r"(?<=,) | (?=\()", " "), (" ", " "), (r"(?<=_)(?=[^_])", ""))
"""Where lines are broken, and what stands there otherwise: around units; else between words; else within names."""


def _broken(label: Text, line: str, points: float, breaks: Sequence[tuple[str, str]] = _BREAKS) -> list[str]:
    """Return a line in pieces that are no wider than ``points`` where that can be."""

    if not breaks or _fits(label, line, points):
        return [line]
    (pattern, gap), *finer = breaks
    pieces: list[str] = []
    for part in re.split(pattern, line):
        if pieces and _fits(label, pieces[-1] + gap + part, points):
            pieces[-1] += gap + part
        else:
            pieces += _broken(label, part, points, finer)
    return pieces


_GAP = 0.3
"""Inches between a title and the panel of the next one."""


def _shorten_titles(figure: Figure) -> bool:
    """Shorten titles of panels that would reach the title of a panel beside them; return whether any was."""
    before = [axes.get_title(loc="left") for axes in figure.axes]
    titled = [(axes, axes.get_window_extent(), name) for axes, name in zip(figure.axes, before, strict=True) if name]
    for axes, box, name in titled:
        beside = [o.x0 for _, o, _ in titled if o.x0 > box.x1 - 1 and o.y0 < box.y1 and box.y0 < o.y1]
        if beside:
            label: Text = axes._left_title  # type: ignore[attr-defined]
            room = (max(box.x1, min(beside) - _GAP * figure.dpi) - box.x0) * 72 / figure.dpi
            lengths = (n for n in range(len(name), 1, -1) if _fits(label, fit(name, n), room))
            label.set_text(fit(name, next(lengths, 1)))
    return before != [axes.get_title(loc="left") for axes in figure.axes]


def _fits(label: Text, words: str, points: float) -> bool:
    """Return whether words are no wider than ``points`` in the font of a label."""
    return text_to_path.get_text_width_height_descent(words, label.get_fontproperties(), False)[0] <= points


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


def title(figure: Figure, text: str, note: str = "") -> None:
    """Write the title of a figure above its panels, and a note in grey below."""
    figure.suptitle(text, x=0.01, ha="left", weight="bold", size=12).set_parse_math(False)
    if note:
        figure.supxlabel(note, x=0.01, ha="left", size=9, color=GREY).set_parse_math(False)


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
