"""How far the structure of a latent reaches: mean cosine similarity of two tokens over their distance."""

from collections.abc import Mapping

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from figures.columns import Details, columns
from figures.style import GREY, colour, heading, legend, look, panel, require, themed


@themed
def draw(tokenizers: Mapping[str, Details]) -> Figure:
    """Draw one curve per tokenizer, with its 95 % band where there is one.

    The slope of a curve is CDS with its sign changed; its left end less its mean right of the dashed line, weighted by
    pairs, is LDS.

    Args:
        tokenizers: name -> details of ``lds`` or ``cds``: ``distance`` and ``similarity`` [D] and, optionally,
            ``similarity_low``, ``similarity_high`` [D] and ``far``, where distant tokens begin.

    Raises:
        UserError: no tokenizer, or a column is missing or has another length.
    """
    require(tokenizers, "tokenizer")
    figure, axes = panel()
    for index, (name, details) in enumerate(tokenizers.items()):
        distance, similarity = columns(details, "distance", "similarity")
        label = name if len(tokenizers) > 1 else None
        axes.plot(distance, similarity, marker="o", markersize=4, label=label, **look(index))
        if _has_band(details):
            _, low, high = columns(details, "distance", "similarity_low", "similarity_high")
            axes.fill_between(distance, low, high, color=colour(index), alpha=0.2, linewidth=0)
    axes.axhline(0, color=GREY, linewidth=0.8, zorder=1.5)
    _mark_far(axes, tokenizers)
    axes.set(xlabel="Manhattan distance of two tokens, in cells", ylabel="mean cosine similarity")
    axes.set_xlim(left=0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    band = "; band: 95 % interval" if any(map(_has_band, tokenizers.values())) else ""
    hint = f"the deeper the fall, the more spatial structure{band}"
    heading(axes, "Similarity of tokens over their distance", tokenizers, hint)
    legend(figure, axes.get_lines())
    return figure


def _mark_far(axes: Axes, tokenizers: Mapping[str, Details]) -> None:
    """Draw where distant tokens begin, where that is the same for all."""
    starts = {details.get("far") for details in tokenizers.values()}
    if len(starts) == 1 and (far := starts.pop()) is not None:
        axes.axvline(far, color=GREY, linestyle="dashed", linewidth=1.2, zorder=1.5)
        axes.annotate(
            "distant", (far, 1), (4, -4), xycoords=("data", "axes fraction"), textcoords="offset points", va="top"
        ).set(size=9, color=GREY)


def _has_band(details: Details) -> bool:
    return details.get("similarity_low") is not None and details.get("similarity_high") is not None
