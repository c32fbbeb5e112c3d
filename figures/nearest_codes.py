"""Which codes a generator has learned to be alike: a code's picture, and those of its nearest codes on the spheres."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from figures.style import colour, themed
from latentlab.errors import UserError

_SIDE = 0.95
"""Inches per picture."""


@themed
def draw(
    pictures: np.ndarray, ids: np.ndarray, angles: np.ndarray, shared: np.ndarray | None = None, *, name: str = ""
) -> Figure:
    """Draw one row per code: the code, then its neighbours, nearest first, with their ids and angles.

    Args:
        pictures: uint8 [r,1+k,3,H,W], what each code decodes to.
        ids: [r,1+k].
        angles: degrees between a code and its neighbours, [r,k].
        shared: whether the neighbour is one of the k nearest in the tokenizer's own codebook too, bool [r,k]; framed.
        name: token table, for the title.

    Raises:
        UserError: nothing to draw, or shapes that do not fit.
    """
    _check(pictures, ids, angles, shared)
    rows, columns = ids.shape
    size = (_SIDE * columns + 0.6, (_SIDE + 0.22) * rows + 0.7)
    figure = Figure(figsize=size, layout=ConstrainedLayoutEngine(w_pad=0.03, h_pad=0.02))
    grid = figure.subplots(rows, columns, squeeze=False)
    for row in range(rows):
        for place, axes in enumerate(grid[row]):
            words = f"code {ids[row, 0]}" if place == 0 else f"{ids[row, place]}: {angles[row, place - 1]:.1f}°"
            framed = place > 0 and shared is not None and bool(shared[row, place - 1])
            _picture(axes, pictures[row, place], words, framed)
    title = f"Nearest codes: {name}" if name else "Nearest codes"
    hint = "" if shared is None else "\nframed: also near in the tokenizer's own codebook"
    figure.suptitle(title + hint, weight="bold", size=12, parse_math=False)
    return figure


def _check(pictures: np.ndarray, ids: np.ndarray, angles: np.ndarray, shared: np.ndarray | None) -> None:
    if ids.ndim != 2 or ids.shape[0] < 1 or ids.shape[1] < 2:
        raise UserError(f"ids must be [r,1+k] with at least one code and one neighbour, got shape {list(ids.shape)}")
    if pictures.ndim != 5 or pictures.shape[:3] != (*ids.shape, 3) or pictures.dtype != np.uint8:
        want = [*ids.shape, 3, "H", "W"]
        raise UserError(f"pictures must be uint8 {want}, got {pictures.dtype} {list(pictures.shape)}".replace("'", ""))
    neighbours = (ids.shape[0], ids.shape[1] - 1)
    for which, values in (("angles", angles), ("shared", shared)):
        if values is not None and values.shape != neighbours:
            raise UserError(f"{which} must be {list(neighbours)}, got {list(values.shape)}")


def _picture(axes: Axes, pixels: np.ndarray, words: str, framed: bool) -> None:
    axes.imshow(np.moveaxis(pixels, 0, -1), interpolation="nearest")
    axes.grid(False)
    axes.set(xticks=[], yticks=[])
    axes.set_xlabel(words, size=9, labelpad=3)
    for spine in axes.spines.values():
        spine.set(visible=framed, color=colour(1), linewidth=2.5)
