"""Whether the same tokenizers win everywhere: their ranks across generators and guidance scales, joined by lines."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from figures.study_layout import cluster_legend, short
from figures.study_points import curve, spread
from figures.style import GREY, fit, themed, title
from latentlab.errors import UserError
from latentlab.study.table import StudyTable

Cell = tuple[str, float]
"""Generator, guidance scale."""


@themed
def draw(table: StudyTable, target: str, cells: Sequence[Cell], stability: Sequence[Mapping[str, Any]] = ()) -> Figure:
    """Draw a line per tokenizer through its ranks, 1 (the best) on top; names at both ends, Spearman's rho between columns.

    Args:
        table: the study.
        target: the quality that ranks.
        cells: generators and guidance scales in order, at least two.
        stability: records of ``analysis.json``; without one for two neighbours nothing stands between them.

    Raises:
        UserError: fewer than two cells or tokenizers have values.
    """
    ranks = ranks_by_cell(table, target, cells)
    if len(ranks) < 2 or ranks.shape[1] < 2:
        raise UserError(f"ranks need two tokenizers with {target} under two generators or guidance scales")
    figure = Figure(figsize=(6.2 + 1.35 * ranks.shape[1], 2.1 + 0.235 * len(ranks)), layout="constrained")
    axes = figure.subplots()
    for name, row in zip(ranks.index, ranks.to_numpy(), strict=True):
        axes.plot(range(len(row)), row, **curve(table, str(name)))
    _name_ends(axes, ranks)
    axes.set_xticks(range(ranks.shape[1]), [f"{fit(cell[0], 14)}\nw={cell[1]:g}" for cell in ranks.columns])
    axes.set_xlim(-0.25, ranks.shape[1] - 0.75)
    axes.grid(False)
    axes.set_ylabel("rank (1: best)")
    told = _correlations(axes, ranks, stability)
    note = "dashed: controls" + ("; between columns: Spearman's ρ without them" if told else "")
    title(figure, f"Ranks of {len(ranks)} tokenizers by {short(target)}", note)
    cluster_legend(figure, table, points=False)
    return figure


def ranks_by_cell(table: StudyTable, target: str, cells: Sequence[Cell]) -> pd.DataFrame:
    """Return ranks [tokenizers, cells], 1 the best, of the tokenizers that have a value in all cells that have any."""
    values = {cell: spread(table, target, *cell)["value"] for cell in cells}
    full = pd.DataFrame({cell: one for cell, one in values.items() if len(one)}).dropna()
    ranks = full.rank(ascending=table.column(target).better != "higher", method="first")
    return ranks.sort_values(list(ranks.columns)) if len(ranks.columns) else ranks


def _name_ends(axes: Axes, ranks: pd.DataFrame) -> None:
    """Write the tokenizers beside the first and the last column."""
    right = axes.twinx()
    for side, column in ((axes, ranks.columns[0]), (right, ranks.columns[-1])):
        order = ranks[column].sort_values()
        names = [f"{rank:.0f}  {fit(str(name), 30)}" for name, rank in order.items()]
        side.set_yticks(list(order), names, fontsize=9)
        side.set_ylim(len(ranks) + 0.6, 0.2)
        side.tick_params(length=0)
        side.grid(False)
        for text in side.get_yticklabels():
            text.set_parse_math(False)


def _correlations(axes: Axes, ranks: pd.DataFrame, stability: Sequence[Mapping[str, Any]]) -> bool:
    told = False
    for place, (first, second) in enumerate(pairwise(ranks.columns)):
        for one in stability:
            ends = [(one[key]["generator"], one[key]["guidance"]) for key in ("first", "second")]
            if sorted(ends) == sorted([first, second]) and one.get("spearman") is not None:
                text = f"ρ {one['spearman']:.2f}".replace("-", "−")
                axes.annotate(
                    text, (place + 0.5, 1), (0, 3), xycoords=axes.get_xaxis_transform(), textcoords="offset points",
                    ha="center", size=9, color=GREY,
                )  # fmt: skip
                told = True
                break
    return told
