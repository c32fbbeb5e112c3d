"""How much quality moves when a cell is repeated with another seed, beside how much it differs between tokenizers."""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from figures.study_layout import axis_label, name_rows, stretch
from figures.study_points import at, measured, spread
from figures.style import GREY, MARKERS, colour, fit, heading, legend, themed, title
from latentlab.study.table import StudyTable


@themed
def draw(
    table: StudyTable, target: str, generators: Sequence[str], guidance: float, noise: Sequence[Mapping[str, Any]] = ()
) -> Figure:
    """Draw a panel per generator, in it a row per tokenizer, the best on top: every repeat as a point, their range as a line.

    Args:
        table: the study.
        target: the quality.
        generators: those with values.
        guidance: guidance scale of the samples.
        noise: records of ``analysis.json``: spread between tokenizers and within, and the correlation that noise allows.

    Raises:
        UserError: a generator has no value.
    """
    for generator in generators:
        measured(table, [target], generator, guidance)
    order = list(spread(table, target, generators[0], guidance).sort_values("value", kind="stable").index)
    size = (4.6 + 3.6 * len(generators), 2.1 + 0.24 * len(order))
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(1, len(generators), squeeze=False, sharey=True)[0]
    seeds = sorted(table.rows["tokenizer_seed"].dropna().unique())
    for axes, generator in zip(panels, generators, strict=True):
        _panel(axes, table, target, generator, guidance, order)
        heading(axes, fit(generator, 30), hint=_words(noise, target, generator, guidance))
        axes.set_xlabel(axis_label(table, target, "\n"), parse_math=False)
    name_rows(panels[0], table, order)
    title(
        figure,
        f"Repeats with other seeds, guidance {guidance:g}",
        "points: repeats; line: their range; tick: their mean",
    )
    legend(figure, [Line2D([], [], **_look(i), label=f"tokenizer seed {seed:g}") for i, seed in enumerate(seeds)])
    return figure


def _look(index: int) -> dict[str, Any]:
    shape = {"marker": MARKERS[index % len(MARKERS)], "linestyle": "none", "fillstyle": "none", "markersize": 6}
    return {**shape, "color": colour(index), "markeredgewidth": 1.4}


def _panel(axes: Axes, table: StudyTable, target: str, generator: str, guidance: float, order: list[str]) -> None:
    rows = at(table, generator, guidance).dropna(subset=[target])
    rows = rows[rows["tokenizer"].isin(order)]
    ends = rows.groupby("tokenizer")[target].agg(["min", "max", "mean"]).reindex(order)
    axes.hlines(range(len(order)), ends["min"], ends["max"], colors="#BBBBBB", linewidth=3, zorder=1)
    axes.plot(ends["mean"], range(len(order)), marker="|", markersize=11, color=GREY, linestyle="none", zorder=2)
    places = {name: place for place, name in enumerate(order)}
    for index, seed in enumerate(sorted(table.rows["tokenizer_seed"].dropna().unique())):
        own = rows[rows["tokenizer_seed"] == seed]
        axes.plot(own[target], own["tokenizer"].map(places), **_look(index), zorder=3)
    stretch(axes, "x", rows[target])


def _words(noise: Sequence[Mapping[str, Any]], target: str, generator: str, guidance: float) -> str:
    """Return what the analysis says about the noise of a panel, or nothing."""
    wanted = {"target": target, "generator": generator, "guidance": guidance}
    found = next((one for one in noise if all(one.get(key) == value for key, value in wanted.items())), {})
    of = " of logarithms" if found.get("scale") == "log" else ""
    names = {"between_sd": f"SD{of} between", "within_sd": "within", "ceiling": "noise allows |r| up to"}
    return ", ".join(f"{words} {found[key]:.2g}" for key, words in names.items() if found.get(key) is not None)
