"""At which flow times the velocity is ambiguous: irreducible velocity variance over t."""

from collections.abc import Mapping

from matplotlib.figure import Figure

from figures.columns import Details, columns
from figures.style import heading, legend, look, panel, require, themed


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
    several = len(tokenizers) > 1
    for index, (name, details) in enumerate(tokenizers.items()):
        t, curve = columns(details, "t", "curve")
        axes.plot(t, curve, label=name if several else None, **look(index))
        if details.get("curve_low") is not None and details.get("curve_high") is not None:
            _, low, high = columns(details, "t", "curve_low", "curve_high")
            axes.fill_between(t, low, high, color=look(index)["color"], alpha=0.2, linewidth=0)
    axes.set(
        xlim=(0, 1), xlabel="flow time t   (0 = noise, 1 = data)", ylabel="irreducible velocity variance\nper dimension"
    )
    axes.set_ylim(bottom=0)
    heading(
        axes,
        "Velocity a model cannot predict, over flow time",
        tokenizers,
        "lower is easier to learn; band: 95 % interval",
    )
    legend(figure, axes.get_lines())
    return figure
