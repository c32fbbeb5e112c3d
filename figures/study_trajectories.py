"""How straight and efficient the learned ODE is, against quality: a row per generator, a column per property of its paths."""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from figures.study_layout import axis_label, cluster_legend, correlation_of, interval_words, short, stretch
from figures.study_points import BARS, R_OF, at, scatter, spread
from figures.style import fit, heading, themed, title
from latentlab.errors import UserError
from latentlab.study.table import StudyTable


@themed
def draw(
    table: StudyTable,
    properties: Sequence[str],
    target: str,
    guidance: float,
    correlations: Sequence[Mapping[str, Any]] = (),
) -> Figure:
    """Draw ``target`` over each of ``properties``, one row per generator that has them.

    Args:
        table: the study.
        properties: columns of the role ``trajectory``.
        target: column on the vertical axis.
        guidance: guidance scale of the samples.
        correlations: records of ``analysis.json``; without one a panel has no r.

    Raises:
        UserError: no generator has a value.
    """
    generators = [
        name for name in table.rows["generator"].unique()
        if at(table, name, guidance)[[*properties, target]].notna().any().all()
    ]  # fmt: skip
    if not generators:
        raise UserError(f"no generator has {', '.join(properties)} and {target} at guidance {guidance:g}")
    size = (2.8 + 3.3 * max(len(properties), 2), 0.8 + 2.8 * len(generators))
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(len(generators), len(properties), squeeze=False, sharex="col", sharey="row")
    for row, generator in zip(panels, generators, strict=True):
        quality = spread(table, target, generator, guidance)
        for axes, name in zip(row, properties, strict=True):
            scatter(axes, table, spread(table, name, generator, guidance), quality)
            where = {"target": target, "generator": generator, "guidance": guidance}
            record = correlation_of(correlations, predictor=name, method="spearman", **where)
            heading(axes, f"{fit(generator, 20)}: {short(name)}", hint=interval_words("ρ", record))
            axes.margins(0.08)
        stretch(row[0], "y", quality["value"])
    for axes, name in zip(panels[-1], properties, strict=True):
        axes.set_xlabel(axis_label(table, name), parse_math=False)
    figure.supylabel(axis_label(table, target, "\n"), size=11).set_parse_math(False)
    title(
        figure,
        f"Paths of the sampler against quality, guidance {guidance:g}",
        f"{BARS}; {R_OF}" if correlations else BARS,
    )
    cluster_legend(figure, table)
    return figure
