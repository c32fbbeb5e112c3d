"""How well quality is predicted for a tokenizer, or a cluster, that was left out of the fit: predicted over observed."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from figures.study_layout import cell_words, cluster_legend, short
from figures.study_points import BARS, facts, scatter, spread
from figures.style import GREY, heading, require, themed, title
from latentlab.study.table import StudyTable

_SCHEMES = {
    "leave_one_out": "One tokenizer left out",
    "leave_cluster_out": "One cluster left out",
    "leave_family_out": "One architecture left out",
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
    """Draw a row of panels per set of predictors, a column per scheme of leaving out.

    Bars across show the observed spread, and bars up the interval of a prediction that has one.

    Args:
        table: the study; tokenizers that it holds out are ringed.
        predictions: records of ``analysis.json`` with one target, generator and guidance scale; ``low`` and ``high`` of their
            rows, where there are such, are the ends of 95 % prediction intervals.

    Raises:
        UserError: there is no prediction.
    """
    require(predictions, "prediction")
    first = predictions[0]
    observed = spread(table, first["target"], first["generator"], float(first["guidance"]))
    held_out = [name for name, one in facts(table).items() if one.held_out]
    sets = list(dict.fromkeys(tuple(one["predictors"]) for one in predictions))
    schemes = list(dict.fromkeys(one["scheme"] for one in predictions))
    figure, panels = _grid(len(sets), len(schemes))
    for one in predictions:
        place = sets.index(tuple(one["predictors"])), schemes.index(one["scheme"])
        _panel(panels[place], table, one, observed, held_out)
    for axes, names in zip(panels[:, 0], sets, strict=True):
        axes.set_ylabel(f"predicted by {', '.join(short(name) for name in names)}", parse_math=False)
    for axes in panels[-1]:
        axes.set_xlabel(f"observed {short(first['target'])}", parse_math=False)
    for axes in panels.flat:
        axes.set_visible(axes.has_data())
    note = f"observed: mean over seeds, {BARS}; line: predicted = observed"
    title(figure, f"Quality predicted from measurements: {cell_words(first['generator'], first['guidance'])}", note)
    ring = [Line2D([], [], label="held out from the start", **_RING)] if held_out else []
    cluster_legend(figure, table, ring, controls=False)
    return figure


def _grid(rows: int, across: int) -> tuple[Figure, np.ndarray]:
    figure = Figure(figsize=(2.6 + 3.2 * max(across, 2), 0.9 + 3.3 * rows), layout="constrained")
    return figure, figure.subplots(rows, across, squeeze=False)


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
    errors, ranks = _scores(one)
    heading(axes, _SCHEMES.get(one["scheme"], one["scheme"]), names=(errors,), hint=ranks)


def _scores(one: Mapping[str, Any]) -> tuple[str, str]:
    """Return two lines: errors, then ranks and number; a single one would be wider than the panel."""
    rmse = "RMSE of logarithms" if one.get("scale") == "log" else "RMSE"
    errors, ranks = ((("r2", "R²"), ("rmse", rmse)), (("spearman", "ρ"),))
    return _told(one, errors), ", ".join(filter(None, [_told(one, ranks), f"n = {one['n']}"]))


def _told(one: Mapping[str, Any], names: Sequence[tuple[str, str]]) -> str:
    parts = [f"{words} {one[key]:.3g}" for key, words in names if one.get(key) is not None]
    return ", ".join(parts).replace("-", "−")
