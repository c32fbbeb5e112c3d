"""What a tokenizer loses: originals over reconstructions over their difference."""

import re
from collections.abc import Sequence
from textwrap import shorten, wrap

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from figures.style import SEQUENTIAL, themed
from latentlab.errors import UserError

_ROWS = ("original", "reconstruction", "|difference|")


@themed
def draw(
    originals: np.ndarray | torch.Tensor,
    reconstructions: np.ndarray | torch.Tensor,
    class_names: Sequence[str] | None = None,
    *,
    name: str = "",
) -> Figure:
    """Draw one column per image; the last row is |difference| averaged over the colours, on one scale for all columns.

    The scale ends where one pixel in a thousand lies above it: a few that are far off would hide all others.

    Args:
        originals: [n,3,H,W] or [n,1,H,W], uint8 or float in [-1,1]; 4 to 12 images read well.
        reconstructions: of the same shape, uint8 or float in [-1,1]; what lies outside is clipped, as a viewer would.
        class_names: the class of each image, as column titles.
        name: tokenizer, for the title.

    Raises:
        UserError: shapes do not fit.
    """
    first, second = (
        _pixels(which, images) for which, images in (("originals", originals), ("reconstructions", reconstructions))
    )
    if first.shape != second.shape:
        raise UserError(
            f"originals {list(first.shape)} and reconstructions {list(second.shape)} must have the same shape"
        )
    if class_names is not None and len(class_names) != len(first):
        raise UserError(f"class_names must have one entry per image: got {len(class_names)} for {len(first)} images")
    difference = np.abs(first - second).mean(axis=-1)
    width = max(1.1 * len(first) + 1.6, 5.0)
    figure = Figure(figsize=(width, 4.3), layout="constrained")
    grid = figure.subplots(len(_ROWS), len(first), squeeze=False)
    top = max(float(np.quantile(difference, 0.999)), 1 / 255)
    for column, (x, y, gap) in enumerate(zip(first, second, difference, strict=True)):
        grid[0, column].imshow(x, interpolation="nearest")
        grid[1, column].imshow(y, interpolation="nearest")
        scale = grid[2, column].imshow(gap, cmap=SEQUENTIAL, vmin=0, vmax=top, interpolation="nearest")
    for axes in grid.flat:
        _bare(axes)
    for axes, text in zip(grid[:, 0], _ROWS, strict=True):
        axes.set_ylabel(text, size=10)
    for axes, text in zip(grid[0], class_names or (), strict=False):
        axes.set_title("\n".join(wrap(shorten(_words(text), 26, placeholder="…"), 13)), size=9, parse_math=False)
    bar = figure.colorbar(scale, ax=grid, shrink=0.3, aspect=8, anchor=(0, 0), pad=0.01, extend="max")
    bar.set_label("share of\npixel range", size=9)
    title = f"Reconstructions: {name}" if name else "Reconstructions"
    figure.suptitle("\n".join(wrap(title, int(8 * width))), weight="bold", size=12, parse_math=False)
    return figure


def _words(class_name: str) -> str:
    """Return ``miniature schnauzer`` of ``n02097047_miniature_schnauzer``, as ImageNet's folders are often called."""
    return re.sub(r"^n\d{8}_", "", class_name).replace("_", " ")


def _pixels(which: str, images: np.ndarray | torch.Tensor) -> np.ndarray:
    """Return images as float [n,H,W,3] in [0,1]."""
    array = images.detach().cpu().numpy() if isinstance(images, torch.Tensor) else np.asarray(images)
    if array.ndim != 4 or array.shape[1] not in (1, 3) or len(array) == 0:
        raise UserError(f"{which} must be [n,3,H,W] or [n,1,H,W], got shape {list(array.shape)}")
    values = array / 255.0 if array.dtype == np.uint8 else (array.astype(np.float64) + 1) / 2
    return np.broadcast_to(np.moveaxis(values, 1, -1), (*array.shape[:1], *array.shape[2:], 3)).clip(0, 1)


def _bare(axes: Axes) -> None:
    axes.grid(False)
    axes.set(xticks=[], yticks=[])
    for spine in axes.spines.values():
        spine.set_visible(False)
