"""How well quality is predicted for a tokenizer, or a cluster, that was left out of the fit: predicted over observed."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from figures.study_layout import cluster_legend, grid, short
from figures.study_points import BARS, facts, scatter, spread
from figures.style import GREY, fit, heading, require, themed, title
from latentlab.study.table import StudyTable

_SCHEMES = {
    "leave_one_out": "One tokenizer left out",
    "leave_cluster_out": "One cluster left out",
    "leave_family_out": "One family of architectures left out",
    "held_out": "Held-out tokenizers",
}
_RING: dict[str, Any] = {
    "marker": "o",
    "markersize": 13,
    "fillstyle": "none",
    "linestyle": "none",
    "color": "black",
    "markeredgewidth": 1.1,
}


@themed
def draw(table: StudyTable, predictions: Sequence[Mapping[str, Any]]) -> Figure:
    """Draw one panel per prediction; bars across show the observed spread, and bars up the interval of a prediction that has one.

    Args:
        table: the study; tokenizers that it holds out are ringed.
        predictions: records of ``analysis.json`` with one target, generator and guidance scale; ``low`` and ``high`` of their
            rows, where there are such, are the ends of 95 % prediction intervals.

    Raises:
        UserError: there is no prediction.
    """
    require(predictions, "prediction")
    figure, panels = grid(len(predictions), across=3, width=3.6, height=3.5, least=2)
    first = predictions[0]
    observed = spread(table, first["target"], first["generator"], float(first["guidance"]))
    held_out = [name for name, one in facts(table).items() if one.held_out]
    for axes, one in zip(panels, predictions, strict=True):
        _panel(axes, table, one, observed, held_out)
    figure.supylabel(f"predicted {short(first['target'])}", size=11).set_parse_math(False)
    cell = f"{fit(first['generator'], 40)}, guidance {first['guidance']:g}"
    note = f"observed: mean over seeds, {BARS}; line: predicted = observed"
    title(figure, f"Quality predicted from measurements: {cell}", note)
    ring = [Line2D([], [], label="held out from the start", **_RING)] if held_out else []
    cluster_legend(figure, table, ring)
    return figure


def _panel(
    axes: Axes, table: StudyTable, one: Mapping[str, Any], observed: pd.DataFrame, held_out: Sequence[str]
) -> None:
    rows = pd.DataFrame(one["rows"]).set_index("tokenizer")
    predicted = pd.DataFrame({
        "value": rows["predicted"],
        **{end: rows.get(end, rows["predicted"]).fillna(rows["predicted"]) for end in ("low", "high")},
    })  # fmt: skip
    x = pd.DataFrame(dict.fromkeys(("value", "low", "high"), rows["observed"]))
    known = [name for name in x.index if name in observed.index]
    x.loc[known, ["low", "high"]] = observed.loc[known, ["low", "high"]]
    shown = scatter(axes, table, x, predicted, joined=False)
    ringed = [name for name in shown if name in held_out]
    axes.plot(x.loc[ringed, "value"], predicted.loc[ringed, "value"], **_RING, zorder=4)
    limits = np.array([axes.get_xlim(), axes.get_ylim()])
    axes.axline((0, 0), slope=1, color=GREY, linewidth=1, zorder=1)
    axes.set(xlim=limits[0], ylim=limits[1])
    axes.set_xlabel(f"observed, by {', '.join(short(name) for name in one['predictors'])}", parse_math=False)
    heading(axes, _SCHEMES.get(one["scheme"], one["scheme"]), hint=_scores(one))


def _scores(one: Mapping[str, Any]) -> str:
    names = {"r2": "R²", "rmse": "RMSE", "spearman": "ρ"}
    parts = [f"{words} {one[key]:.3g}" for key, words in names.items() if one.get(key) is not None]
    return ", ".join([*parts, f"n = {one['n']}"]).replace("-", "−")
