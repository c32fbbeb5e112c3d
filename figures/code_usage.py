"""How evenly a discrete tokenizer uses its codes: share of the tokens by rank."""

from collections.abc import Mapping

from matplotlib.figure import Figure

from figures.columns import Details, columns
from figures.style import GREY, heading, legend, look, panel, require, themed
from latentlab.errors import UserError


@themed
def draw(tokenizers: Mapping[str, Details]) -> Figure:
    """Draw one rank-frequency curve per tokenizer; both axes count in codebooks, so that vocabularies of any size compare.

    A curve ends where the used codes end.

    Args:
        tokenizers: name -> details of ``codebook``: ``ranks`` and ``frequency`` [m], ``vocabulary``.

    Raises:
        UserError: no tokenizer, or a column is missing or has another length.
    """
    require(tokenizers, "tokenizer")
    figure, axes = panel()
    for index, (name, details) in enumerate(tokenizers.items()):
        ranks, frequency = columns(details, "ranks", "frequency")
        v = _vocabulary(details)
        label = f"{name} ({v} codes)" if len(tokenizers) > 1 else None
        axes.plot(ranks / v, frequency * v, label=label, **look(index))
        axes.plot(ranks[-1] / v, frequency[-1] * v, "o", color=look(index)["color"])
    axes.axhline(1, color=GREY, linewidth=1, zorder=1)
    axes.annotate("even use", (1.02, 1), (4, 0), textcoords="offset points", va="center", size=9, color=GREY)
    axes.set(xlim=(0, 1.02), yscale="log", xlabel="share of the codebook, most frequent codes first")
    axes.set_ylabel("frequency over even share")
    heading(
        axes, "Use of the codebook", tokenizers, "the flatter and the further right it ends, the more codes are used"
    )
    legend(figure, axes.get_lines())
    return figure


def _vocabulary(details: Details) -> int:
    v = details.get("vocabulary")
    if not isinstance(v, int) or v < 1:
        raise UserError(f"this figure needs 'vocabulary' in the measurement's details, a number of codes, got {v}")
    return v
