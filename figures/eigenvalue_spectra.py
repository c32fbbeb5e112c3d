"""How variance is spread over the directions of a latent space: covariance eigenvalues over their rank."""

from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure

from figures.columns import Details, columns
from figures.style import heading, legend, look, panel, require, themed
from latentlab.errors import UserError

_FLOOR = 1e-8
"""Eigenvalues below this share of the largest are rounding errors of float32 latents; the axis ends there."""


@themed
def draw(tokenizers: Mapping[str, Details]) -> Figure:
    """Draw one falling curve per tokenizer: eigenvalue (log) over rank divided by the number of dimensions d.

    Relative rank lets latents of different d share the axis, and every dimension gets the same width, as it has the
    same weight in the velocity variance.

    Args:
        tokenizers: name -> details of ``viv``: ``eigenvalues`` [m], descending, and their ``ranks`` [m] out of 1..d;
            the last rank is d.

    Raises:
        UserError: no tokenizer, a column is missing, or no eigenvalue is positive.
    """
    require(tokenizers, "tokenizer")
    figure, axes = panel()
    ends: list[float] = []
    for index, (name, details) in enumerate(tokenizers.items()):
        ranks, eigenvalues = columns(details, "ranks", "eigenvalues")
        ends += _ends(name, eigenvalues)
        label = name if len(tokenizers) > 1 else None
        axes.plot(ranks / ranks[-1], np.where(eigenvalues > 0, eigenvalues, np.nan), label=label, **look(index))
    axes.set(xlim=(0, 1), xlabel="rank / number of dimensions", ylabel="eigenvalue (mean over classes)")
    axes.set(yscale="log", ylim=(min(ends) / 1.5, max(ends) * 1.5))
    heading(axes, "Covariance eigenvalues", tokenizers, "a steep fall means that few directions carry the variance")
    legend(figure, axes.get_lines())
    return figure


def _ends(name: str, eigenvalues: np.ndarray) -> tuple[float, float]:
    """Return the smallest eigenvalue that is not a rounding error, and the largest."""
    top = float(np.nan_to_num(eigenvalues).max())
    if top <= 0:
        raise UserError(f"no covariance eigenvalue of '{name}' is positive: its latents are constant")
    return float(eigenvalues[eigenvalues > _FLOOR * top].min()), top
