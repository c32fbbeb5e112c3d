"""At which flow times the velocity is ambiguous: irreducible velocity variance over t."""

from collections.abc import Mapping

from matplotlib.figure import Figure

from figures.columns import Details, columns
from figures.style import colour, heading, legend, look, panel, require, themed


@themed
def draw(tokenizers: Mapping[str, Details]) -> Figure:
    """Draw one curve per tokenizer, with its 95 % band where there is one.

    The area under a curve is the velocity irreducible variance (VIV) per dimension.

    Args:
        tokenizers: name -> details of ``viv``: ``t``, ``curve`` and, optionally, ``curve_low``, ``curve_high``, all [T].

    Raises:
        UserError: no tokenizer, or a column is missing or has another length.
    """
    require(tokenizers, "tokenizer")
    figure, axes = panel()
    for index, (name, details) in enumerate(tokenizers.items()):
        t, curve = columns(details, "t", "curve")
        axes.plot(t, curve, label=name if len(tokenizers) > 1 else None, **look(index))
        if _has_band(details):
            _, low, high = columns(details, "t", "curve_low", "curve_high")
            axes.fill_between(t, low, high, color=colour(index), alpha=0.2, linewidth=0)
    axes.set(xlim=(0, 1), xlabel="flow time t   (0 = noise, 1 = data)", ylabel="variance per dimension")
    axes.set_ylim(bottom=0)
    band = "; band: 95 % interval" if any(map(_has_band, tokenizers.values())) else ""
    heading(axes, "Irreducible variance of the velocity", tokenizers, f"lower is easier to learn{band}")
    legend(figure, axes.get_lines())
    return figure


def _has_band(details: Details) -> bool:
    return details.get("curve_low") is not None and details.get("curve_high") is not None
