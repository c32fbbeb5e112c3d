"""What lies between neighbouring latents: reconstructions, decoded interpolants and the neighbours, side by side."""

from collections.abc import Mapping
from textwrap import wrap

import numpy as np
from matplotlib.figure import Figure

from figures.columns import Details, column
from figures.style import GREY, fit, require, themed
from latentlab.errors import UserError

_ROWS = ("reconstruction", "interpolant", "neighbour")


@themed
def draw(tokenizers: Mapping[str, Details]) -> Figure:
    """Draw a block of three rows per tokenizer: images, what is decoded between them and a neighbour, and the neighbour.

    Args:
        tokenizers: name -> details of ``ifid``: ``pictures`` [3,m,3,h,w], levels 0 to 255.

    Raises:
        UserError: no tokenizer, or pictures of another shape.
    """
    require(tokenizers, "tokenizer")
    strips = {name: _strip(details) for name, details in tokenizers.items()}
    most = max(strip.shape[1] for strip in strips.values())
    figure = Figure(figsize=(1.15 * most + 1.4, 3.9 * len(strips) + 0.7), layout="constrained")
    blocks = np.atleast_1d(np.asarray(figure.subfigures(len(strips), 1), dtype=object))
    for block, (name, strip) in zip(blocks, strips.items(), strict=True):
        block.suptitle(fit(name, 60), size=10.5, color=GREY, parse_math=False)
        grid = block.subplots(len(_ROWS), most, squeeze=False)
        for axes, picture in zip(grid[:, : strip.shape[1]].flat, strip.reshape(-1, *strip.shape[2:]), strict=True):
            axes.imshow(picture, interpolation="nearest")
        for axes in grid[:, strip.shape[1] :].flat:
            axes.set_visible(False)
        for axes in grid.flat:
            axes.grid(False)
            axes.set(xticks=[], yticks=[])
            for spine in axes.spines.values():
                spine.set_visible(False)
        for axes, text in zip(grid[:, 0], _ROWS, strict=True):
            axes.set_ylabel(text, size=9.5)
    title = "Between neighbouring latents (iFID judges the middle rows)"
    figure.suptitle("\n".join(wrap(title, int(9 * figure.get_figwidth()))), weight="bold", size=12)
    return figure


def _strip(details: Details) -> np.ndarray:
    """Return the pictures as [3,m,h,w,3] in [0,1]."""
    pictures = column(details, "pictures", ndim=5)
    if pictures.shape[0] != len(_ROWS) or pictures.shape[2] != 3:
        raise UserError(
            f"'pictures' in the measurement's details must be [3,m,3,h,w], got shape {list(pictures.shape)}"
        )
    return np.moveaxis(pictures, 2, -1).clip(0, 255) / 255
