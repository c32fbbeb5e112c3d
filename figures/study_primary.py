"""The primary question of a study: rank correlation of every predictor with quality, raw and with covariates held level."""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from figures.study_layout import short
from figures.style import GREY, MARKERS, colour, fit, legend, panel, require, themed, title

_ALPHA = 0.05


@themed
def draw(records: Sequence[Mapping[str, Any]]) -> Figure:
    """Draw a row per predictor, the strongest on top, and in it a point with its 95 % interval per set of covariates.

    Names of predictors whose raw correlation may be chance (adjusted p of 0.05 or more) stand in brackets, and those that
    correlate the other way than their measurement says are marked with "!".

    Args:
        records: ``primary`` of ``analysis.json``.

    Raises:
        UserError: there is none.
    """
    require(records, "correlation")
    raw = sorted((one for one in records if not one["covariates"]), key=lambda one: abs(one["value"]))
    sets = list(dict.fromkeys(tuple(one["covariates"]) for one in records))
    rows = {one["predictor"]: place for place, one in enumerate(raw)}
    figure, axes = panel(9.2, 1.6 + 0.42 * len(rows))
    for index, covariates in enumerate(sets):
        own = [one for one in records if tuple(one["covariates"]) == covariates and one["predictor"] in rows]
        offset = 0.56 * (0.5 - (index + 0.5) / len(sets))
        _points(axes, [(rows[one["predictor"]] + offset, one) for one in own], index)
    axes.axvline(0, color=GREY, linewidth=0.9, zorder=1)
    axes.set(xlim=(-1.02, 1.02), ylim=(-0.6, len(rows) - 0.4))
    axes.set_yticks(range(len(raw)), [_name(one) for one in raw])
    for label in axes.get_yticklabels():
        label.set_parse_math(False)
    axes.set_xlabel(
        f"Spearman's ρ with {records[0]['target']}, mean over {records[0]['settings']} settings", parse_math=False
    )
    legend(figure, [Line2D([], [], **_look(i), label=_words(covariates)) for i, covariates in enumerate(sets)])
    title(
        figure,
        f"What goes with quality: {max(one['n'] for one in raw)} tokenizers",
        "bars: 95 % intervals; in brackets: may be chance (adjusted p of 0.05 or more); !: the other way than claimed",
    )
    return figure


def _points(axes: Axes, placed: Sequence[tuple[float, Mapping[str, Any]]], index: int) -> None:
    for height, one in placed:
        if one["low"] is not None:
            axes.plot([one["low"], one["high"]], [height, height], color=colour(index), linewidth=1.6, alpha=0.6)
    axes.plot([one["value"] for _, one in placed], [height for height, _ in placed], **_look(index))


def _look(index: int) -> dict[str, Any]:
    return {"marker": MARKERS[index % len(MARKERS)], "color": colour(index), "linestyle": "none", "markersize": 6}


def _name(one: Mapping[str, Any]) -> str:
    name = fit(short(one["predictor"]), 34) + (" !" if one["agrees"] is False else "")
    return name if one["p_adjusted"] < _ALPHA else f"({name})"


def _words(covariates: Sequence[str]) -> str:
    return "given\n" + ",\n".join(fit(short(name), 26) for name in covariates) if covariates else "as measured"
