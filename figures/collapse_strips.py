"""What a bottleneck lets through: the same views under each other, the tokenizer's own reconstruction and each bottleneck."""

from collections.abc import Mapping
from textwrap import fill

import numpy as np
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from figures.style import require, themed
from latentlab.errors import UserError

_SIDE, _GAP = 1.1, 0.15  # inches, and a share of it


@themed
def draw(blocks: Mapping[str, Mapping[str, np.ndarray]], *, name: str = "") -> Figure:
    """Draw one block of columns per tokenizer, with labelled rows.

    Args:
        blocks: tokenizer -> row label -> images uint8 [k,3,H,W]; all of one shape, with the same labels in the same order.
        name: what is shown, for the title.

    Raises:
        UserError: nothing to draw, or rows that differ in label or shape.
    """
    require(blocks, "tokenizer")
    first = next(iter(blocks.values()))
    require(first, "row of images")
    labels, shape = list(first), next(iter(first.values())).shape
    for block, rows in blocks.items():
        if list(rows) != labels:
            raise UserError(f"the rows of {block} are {', '.join(rows)}, not {', '.join(labels)}")
        for label, images in rows.items():
            if images.shape != shape or images.ndim != 4 or images.shape[1] != 3:
                raise UserError(f"'{label}' of {block} must be [k,3,H,W] like the others, got {list(images.shape)}")
    k = shape[0]
    width = k * len(blocks) + _GAP * (len(blocks) - 1)
    size = (_SIDE * width + 1.9, _SIDE * len(labels) + 0.8)
    figure = Figure(figsize=size, layout=ConstrainedLayoutEngine(w_pad=0.02, h_pad=0.02, wspace=0, hspace=0))
    ratios = ([1.0] * k + [_GAP]) * (len(blocks) - 1) + [1.0] * k
    grid = figure.subplots(len(labels), len(ratios), squeeze=False, width_ratios=ratios)
    for axes in grid.flat:
        axes.set_axis_off()
    for number, (block, rows) in enumerate(blocks.items()):
        columns = grid[:, number * (k + 1) : number * (k + 1) + k]
        columns[0, 0].set_title(block, loc="left", size=11, parse_math=False)
        for line, images in zip(columns, rows.values(), strict=True):
            for axes, image in zip(line, images, strict=True):
                axes.imshow(np.moveaxis(image, 0, -1), interpolation="nearest")
    for axes, label in zip(grid[:, 0], labels, strict=True):
        place = {"transform": axes.transAxes, "ha": "right", "va": "center"}
        axes.text(-0.06, 0.5, fill(label, 18), size=10, parse_math=False, **place)
    title = f"Through a bottleneck: {name}" if name else "Through a bottleneck"
    figure.suptitle(fill(title, int(8 * size[0])), weight="bold", size=12, parse_math=False)
    return figure
