"""How decoded images change with noise on their latents: pixels, perceptual distance and features over the noise level."""

from collections.abc import Mapping

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator

from figures.columns import Details, columns
from figures.style import colour, fit, heading, legend, look, require, themed
from latentlab.errors import UserError

_PANELS = {
    "pixels": ("Pixels", "RMS change, [-1,1]"),
    "perceptual": ("Perceptual", "{name}"),
    "features": ("Features", "{name},\nchange / spread over images"),
}


@themed
def draw(tokenizers: Mapping[str, Details]) -> Figure:
    """Draw one panel per measure of change, one curve per tokenizer, with its 95 % band where there is one; both axes log.

    Args:
        tokenizers: name -> details of ``sensitivity``: ``levels``, ``pixels`` and, optionally, ``perceptual``, ``features``, all
            [L] and each with ``_low`` and ``_high``; ``perceptual_name``, ``features_name``. A panel is drawn where every
            tokenizer has its column.

    Raises:
        UserError: no tokenizer, a column is missing or has another length, or different judges, which do not compare.
    """
    require(tokenizers, "tokenizer")
    shown = [key for key in _PANELS if key == "pixels" or all(d.get(key) is not None for d in tokenizers.values())]
    figure = Figure(figsize=(1.2 + 3.5 * len(shown), 4.0), layout="constrained")
    panels = figure.subplots(1, len(shown), squeeze=False)[0]
    for axes, key in zip(panels, shown, strict=True):
        _panel(axes, key, tokenizers)
    named = f"\n{fit(next(iter(tokenizers)))}" if len(tokenizers) == 1 else ""
    banded = any(details.get(f"{key}_low") is not None for details in tokenizers.values() for key in shown)
    figure.suptitle(
        f"Change of the decoded image with noise on its latent{named}\nlower: errors of a generator show less"
        f"{'; bands: 95 % intervals over images' if banded else ''}", size=11,
    ).set_parse_math(False)  # fmt: skip
    legend(figure, panels[0].get_lines() if len(tokenizers) > 1 else [])
    return figure


def _panel(axes: Axes, key: str, tokenizers: Mapping[str, Details]) -> None:
    """Draw one measure of change."""
    for index, (name, details) in enumerate(tokenizers.items()):
        levels, values = columns(details, "levels", key)
        axes.plot(levels, values, marker="o", markersize=4, label=name, **look(index))
        if details.get(f"{key}_low") is not None:
            _, low, high = columns(details, "levels", f"{key}_low", f"{key}_high")
            axes.fill_between(levels, low, high, color=colour(index), alpha=0.2, linewidth=0)
    title, unit = _PANELS[key]
    axes.set(xscale="log", yscale="log", xlabel="noise (channel standard deviations)")
    axes.set_ylabel(unit.format(name=_shared_judge(key, tokenizers)), parse_math=False)
    level_axis(axes, sorted({float(level) for details in tokenizers.values() for level in details["levels"]}))
    heading(axes, title)


def _shared_judge(key: str, tokenizers: Mapping[str, Details]) -> str:
    judges = {name: str(details.get(f"{key}_name", "")) for name, details in tokenizers.items()}
    if len(set(judges.values())) > 1:
        listed = ", ".join(f"{name} {judge}" for name, judge in judges.items())
        raise UserError(f"changes compare only under one judge, got {listed}: measure sensitivity with the same one")
    return next(iter(judges.values()))


def level_axis(axes: Axes, levels: list[float]) -> None:
    """Put ticks at the levels, leaving out those too close to the one before."""
    ticks: list[float] = []
    for level in levels:
        if not ticks or level >= 1.7 * ticks[-1]:
            ticks.append(level)
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
