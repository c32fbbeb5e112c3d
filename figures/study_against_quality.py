"""Measurements against the quality of samples: one panel per measurement, one point per tokenizer."""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from figures.study_layout import (
    axis_label,
    cell_words,
    cluster_legend,
    correlation_of,
    grid,
    interval_words,
    short,
    stretch,
    unit_label,
)
from figures.study_points import BARS, R_OF, measured, scatter, spread
from figures.style import fit, heading, themed, title
from latentlab.study.table import StudyTable


@themed
def draw(
    table: StudyTable,
    predictors: Sequence[str],
    target: str,
    generator: str,
    guidance: float,
    correlations: Sequence[Mapping[str, Any]] = (),
    of: str = "Measurements of latents",
) -> Figure:
    """Draw ``target`` over each of ``predictors``, with Pearson's r and its interval above each panel.

    Args:
        table: the study.
        predictors: columns on the horizontal axes; those without a value are left out.
        target: column on the vertical axis; logarithmic where values differ by more than a factor of 12.
        generator: whose samples.
        guidance: their guidance scale.
        correlations: records of ``analysis.json``; without one a panel has no r.
        of: what the predictors are, for the title.

    Raises:
        UserError: no predictor or no target has a value.
    """
    measured(table, [target], generator, guidance)
    shown = measured(table, predictors, generator, guidance)
    quality = spread(table, target, generator, guidance)
    figure, panels = grid(len(shown), least=2, sharey=True)
    for axes, name in zip(panels, shown, strict=True):
        values = spread(table, name, generator, guidance)
        scatter(axes, table, values, quality)
        where = {"target": target, "generator": generator, "guidance": guidance}
        record = correlation_of(correlations, predictor=name, method="spearman", **where)
        heading(axes, fit(short(name), 30), hint=interval_words("ρ", record))
        axes.set_xlabel(unit_label(table, name), parse_math=False)
        axes.margins(0.08)
        axes.xaxis.set_major_locator(MaxNLocator(4))
    stretch(panels[0], "y", quality["value"])
    figure.supylabel(axis_label(table, target, "\n"), size=11).set_parse_math(False)
    title(
        figure, f"{of} against quality: {cell_words(generator, guidance)}", f"{BARS}; {R_OF}" if correlations else BARS
    )
    cluster_legend(figure, table)
    return figure
