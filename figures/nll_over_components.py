"""How many Gaussians a latent distribution needs: negative log-likelihood over the number of mixture components."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, NullLocator

from figures.columns import Details, columns
from figures.style import GREY, colour, heading, legend, panel, require, themed
from latentlab.errors import UserError


@themed
def draw(tokenizers: Mapping[str, Details]) -> Figure:
    """Draw held-out (solid) and training (dashed) NLL per image over K; BIC's choice starred, non-converged fits hollow.

    Args:
        tokenizers: name -> details of ``gmm``: ``components``, ``train_nll``, ``heldout_nll``, ``bic``, ``converged``, each
            one entry per K, and ``dims``, the number of principal components the mixtures were fitted to.

    Raises:
        UserError: no tokenizer, a column is missing, or ``dims`` differ (NLL compares only at equal dimension).
    """
    require(tokenizers, "tokenizer")
    dims = shared_dims(tokenizers)
    figure, axes = panel(width=7.6)
    for index, details in enumerate(tokenizers.values()):
        _curves(axes, details, colour(index))
    component_axis(axes, np.concatenate([columns(details, "components")[0] for details in tokenizers.values()]))
    axes.set_ylabel(f"negative log-likelihood per image\n(nats, {dims} dimensions)")
    heading(
        axes,
        "Gaussian mixtures fitted to the latents",
        tokenizers,
        "lower, and reached with fewer components, is easier",
    )
    legend(figure, _key(tokenizers), handlelength=2.6)
    return figure


def shared_dims(tokenizers: Mapping[str, Details]) -> int:
    """Return the dimension that all mixtures were fitted in; raise `UserError` where they differ."""
    dims = {name: details.get("dims") for name, details in tokenizers.items()}
    if len(set(dims.values())) > 1 or None in dims.values():
        listed = ", ".join(f"{name} {value}" for name, value in dims.items())
        raise UserError(
            f"likelihoods compare only at equal dimension, got {listed}: measure gmm again with the same dims"
        )
    return int(next(iter(tokenizers.values()))["dims"])


def _curves(axes: Axes, details: Details, shade: str) -> None:
    k, train, heldout, bic, converged = columns(details, "components", "train_nll", "heldout_nll", "bic", "converged")
    for nll, line, marker in ((train, "dashed", "s"), (heldout, "solid", "o")):
        axes.plot(k, nll, color=shade, linestyle=line, linewidth=1.6)
        for done, face in ((True, shade), (False, "white")):
            of = converged.astype(bool) == done
            axes.plot(k[of], nll[of], linestyle="none", marker=marker, color=shade, markerfacecolor=face, zorder=3)
    if np.isfinite(bic).any():
        best = int(np.nanargmin(bic))
        axes.plot(k[best], heldout[best], **_star(shade, filled=bool(converged[best])), zorder=4)


def _star(shade: str, filled: bool = True) -> dict[str, Any]:
    face, edge = (shade, "white") if filled else ("white", shade)
    shape = {"linestyle": "none", "marker": "*", "markersize": 17}
    return {**shape, "color": shade, "markerfacecolor": face, "markeredgecolor": edge}


def component_axis(axes: Axes, components: np.ndarray) -> None:
    """Put ticks where mixtures were fitted, on a log scale, leaving out those too close to the one before."""
    ticks: list[float] = []
    values = np.unique(components)
    gap = max((values[-1] / values[0]) ** 0.06, 1.0)
    for value in values:
        if not ticks or value >= ticks[-1] * gap:
            ticks.append(float(value))
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.set_xlabel("number of mixture components K")


def _key(tokenizers: Mapping[str, Details]) -> list[Line2D]:
    """Return the legend: tokenizers by colour (when several), then what lines and points mean."""
    names = list(tokenizers) if len(tokenizers) > 1 else []
    shade = GREY if names else colour(0)
    entries = [Line2D([], [], color=colour(i), linewidth=4, label=name) for i, name in enumerate(names)]
    entries += [
        Line2D([], [], color=shade, marker="o", label="held-out images"),
        Line2D([], [], color=shade, marker="s", linestyle="dashed", label="training images"),
        Line2D([], [], label="lowest BIC", **_star(shade)),
    ]
    if not all(columns(details, "converged")[0].all() for details in tokenizers.values()):
        entries.append(
            Line2D([], [], color=shade, marker="o", markerfacecolor="white", linestyle="none", label="not converged")
        )
    return entries
