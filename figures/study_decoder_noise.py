"""How much every decoder of a study amplifies noise on its latents: change of the image and of features over the noise level."""

from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from figures.decoder_sensitivity import level_axis
from figures.study_layout import cluster_legend, stretch
from figures.study_points import curve
from figures.style import heading, themed, title
from latentlab.errors import UserError
from latentlab.study.table import StudyTable

_NOTE = "lower: errors of a generator show less; flat: a linear decoder; dashed: controls"


@themed
def draw(table: StudyTable, measures: Mapping[str, Mapping[float, str]]) -> Figure:
    """Draw one panel per measure of change, one curve per tokenizer in the look of its cluster, controls dashed; axes are log.

    Args:
        table: the study.
        measures: measure (``image``, ``feature``) -> noise in standard deviations of a channel -> column.

    Raises:
        UserError: no measure, or no value in one.
    """
    if not measures:
        raise UserError("the table has no column of the decoder's change under noise")
    figure = Figure(figsize=(2.8 + 4.2 * max(len(measures), 1.5), 4.8), layout="constrained")
    panels = figure.subplots(1, len(measures), squeeze=False)[0]
    for axes, (measure, columns) in zip(panels, measures.items(), strict=True):
        _panel(axes, table, columns)
        unit = table.column(next(iter(columns.values()))).unit
        axes.set_ylabel("change per unit of noise" + (f" ({unit})" if unit else ""), parse_math=False)
        heading(axes, measure.capitalize())
    title(figure, "Change of decoded images with noise on their latents", _NOTE)
    cluster_legend(figure, table, points=False)
    return figure


def _panel(axes: Axes, table: StudyTable, columns: Mapping[float, str]) -> None:
    levels = sorted(level for level in columns if level > 0)
    means = table.rows.groupby("tokenizer", sort=False)[[columns[level] for level in levels]].mean()
    if not np.isfinite(means.to_numpy()).any():
        raise UserError(f"no tokenizer has a value of {', '.join(columns.values())}")
    for name, values in zip(means.index, means.to_numpy(), strict=True):
        axes.plot(levels, values, **curve(table, str(name)))
    axes.set_xscale("log")
    level_axis(axes, levels)
    stretch(axes, "y", means.to_numpy().ravel().tolist())
    axes.set_xlabel("noise (standard deviations of a channel)")
