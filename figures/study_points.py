"""The points of a study: one per tokenizer with its bars, the look of its cluster, and controls joined to their originals."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from figures.style import FORMS, GREY, colour
from latentlab.errors import UserError
from latentlab.study.table import StudyTable

BARS = "bars: outermost ends of the seeds' 95 % intervals, or the range over seeds"
"""What the error bars of `spread` span."""

R_OF = "ρ: Spearman's, without controls and held-out tokenizers"
"""Over which tokenizers an analysis correlates."""


_SIZES = {"P": 8.0, "X": 8.0, "*": 10.5, "d": 8.0, "p": 8.0, "h": 8.0}
"""Of markers with less ink, or with corners that show only when they are large."""


class Facts(NamedTuple):
    """What a study says about a tokenizer; words are empty where it says nothing."""

    cluster: str
    control: str
    control_of: str
    held_out: bool


def facts(table: StudyTable) -> dict[str, Facts]:
    """Return what is known of every tokenizer, in the order of the table."""
    first = table.rows.drop_duplicates("tokenizer")
    words = [_words_of(first[name]) for name in ("tokenizer", "cluster", "control", "control_of")]
    held_out = first["held_out"].astype(str).str.lower() == "true"
    return {name: Facts(*rest) for name, *rest in zip(*words, held_out, strict=True)}


def _words_of(column: pd.Series) -> pd.Series:
    """Return a column as words, missing ones empty."""
    return column.astype(object).where(column.notna(), "").astype(str)


def at(table: StudyTable, generator: str, guidance: float) -> pd.DataFrame:
    """Return the rows of one generator and guidance scale."""
    return table.rows[(table.rows["generator"] == generator) & (table.rows["guidance"] == guidance)]


def spread(table: StudyTable, name: str, generator: str, guidance: float) -> pd.DataFrame:
    """Return ``value``, ``low`` and ``high`` of a column by tokenizer; tokenizers without a value are left out.

    The value is the mean over seeds; the ends are those of the outermost interval of all seeds, or the outermost seeds where
    the column has no intervals.
    """
    return spread_of(at(table, generator, guidance), name)


def spread_of(rows: pd.DataFrame, name: str) -> pd.DataFrame:
    """Return the same of chosen rows."""
    value = rows[name]
    ends = {end: rows.get(f"{name}_{end}", value).fillna(value) for end in ("low", "high")}
    parts = pd.DataFrame({"tokenizer": rows["tokenizer"], "value": value, **ends})
    groups = parts[np.isfinite(value)].groupby("tokenizer", sort=False)
    return groups.agg(value=("value", "mean"), low=("low", "min"), high=("high", "max"))


def measured(table: StudyTable, names: Sequence[str], generator: str, guidance: float) -> list[str]:
    """Return those of ``names`` that have a value under this generator and guidance scale.

    Raises:
        UserError: none has.
    """
    rows = at(table, generator, guidance)
    found = [name for name in names if name in rows and np.isfinite(rows[name]).any()]
    if not found:
        raise UserError(
            f"none of {', '.join(names) or 'the columns'} has a value for {generator}, guidance {guidance:g}"
        )
    return found


def looks(table: StudyTable) -> dict[str, dict[str, Any]]:
    """Return colour, marker and its filling by cluster, the same in every figure of the study."""
    clusters = dict.fromkeys(one.cluster for one in facts(table).values())
    forms = [FORMS[index % len(FORMS)] for index in range(len(clusters))]
    return {
        name: {"color": colour(index), "marker": marker, "fillstyle": filling}
        for index, (name, (marker, filling)) in enumerate(zip(clusters, forms, strict=True))
    }


def curve(table: StudyTable, name: str) -> dict[str, Any]:
    """Return the keywords of the curve of a tokenizer: the look of its cluster, dashed for a control."""
    one = facts(table)[name]
    dashes = "dashed" if one.control else "solid"
    return {**looks(table)[one.cluster], "linestyle": dashes, "linewidth": 1.2, "markersize": 4.5, "alpha": 0.85}


def face(look: Mapping[str, Any], hollow: bool) -> dict[str, Any]:
    """Return the keywords of a marker: filled with a white rim, filled by half, or hollow (that halved by a line)."""
    size = _SIZES.get(look["marker"], 6.5)
    if not hollow and look.get("fillstyle", "full") == "full":
        rim: dict[str, Any] = {"markeredgecolor": "white", "markeredgewidth": 0.5}
    else:
        rim = {"markeredgecolor": look["color"], "markeredgewidth": 1.3, "markerfacecoloralt": "white"}
        rim |= {"markerfacecolor": "white"} if hollow else {}
    return {**look, "linestyle": "none", "markersize": size, **rim}


def scatter(axes: Axes, table: StudyTable, x: pd.DataFrame, y: pd.DataFrame, joined: bool = True) -> list[str]:
    """Draw ``y`` over ``x`` (both from `spread`) with bars, and return the tokenizers that have both.

    Each cluster has colour and marker; controls are hollow and, where ``joined``, joined to what they were made of.
    """
    who, styles = facts(table), looks(table)
    axes.ticklabel_format(useOffset=False)
    both = [name for name in who if name in x.index and name in y.index]
    x, y = x.loc[both], y.loc[both]
    for name in both:
        base = who[name].control_of
        if joined and base in both:
            axes.plot(x.loc[[base, name], "value"], y.loc[[base, name], "value"], color=GREY, linewidth=0.8, zorder=1.5)
    shades = [styles[who[name].cluster]["color"] for name in both]
    axes.hlines(y["value"], x["low"], x["high"], colors=shades, linewidth=1, alpha=0.6)
    axes.vlines(x["value"], y["low"], y["high"], colors=shades, linewidth=1, alpha=0.6)
    for cluster, look in styles.items():
        for hollow in (False, True):
            own = [n for n in both if who[n].cluster == cluster and bool(who[n].control) == hollow]
            axes.plot(x.loc[own, "value"], y.loc[own, "value"], **face(look, hollow), zorder=3)
    return both
