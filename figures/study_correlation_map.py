"""Which measurement goes with quality, across generators and guidance scales: a map of correlations."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import seaborn
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

from figures.study_layout import short
from figures.style import fit, themed, title
from latentlab.errors import UserError

SIGNED = LinearSegmentedColormap.from_list("signed", ("#26185f", "#6f86c6", "#f7f7f5", "#eeb45c", "#b06a00"))
"""Colours of signed amounts: lightness falls to both sides, further to the negative one, so that grey shows the amount."""

_ALPHA = 0.05
_NAMES = {"pearson": "Pearson's r", "spearman": "Spearman's ρ", "kendall": "Kendall's τ"}


@themed
def draw(
    correlations: Sequence[Mapping[str, Any]],
    target: str,
    method: str = "pearson",
    covariates: Sequence[str] = (),
) -> Figure:
    """Draw the correlation of each predictor (rows, strongest first) with ``target`` under each generator and guidance scale.

    Args:
        correlations: records of ``analysis.json``.
        target: which quality.
        method: ``pearson``, ``spearman`` or ``kendall``.
        covariates: held constant; none for plain correlations.

    Raises:
        UserError: there is no such correlation.
    """
    values, texts = _tables(correlations, target, method, covariates)
    rows, across = values.shape
    figure = Figure(figsize=(3.6 + 0.95 * max(across, 5), 1.9 + 0.32 * rows), layout="constrained")
    axes = figure.subplots()
    seaborn.heatmap(
        values, annot=texts, fmt="", vmin=-1, vmax=1, cmap=SIGNED, ax=axes, linewidths=1, annot_kws={"size": 9.5},
        cbar_kws={"label": _NAMES.get(method, method), "pad": 0.02},
    )  # fmt: skip
    axes.set(xlabel="", ylabel="")
    axes.set_xticks(np.arange(across) + 0.5, [_cell_label(*cell) for cell in values.columns], rotation=0)
    axes.set_yticks(np.arange(rows) + 0.5, [fit(short(name), 34) for name in values.index], rotation=0)
    axes.tick_params(length=0, labelsize=9.5)
    given = f", given {', '.join(map(short, covariates))}" if covariates else ""
    counts = _counts(_chosen(correlations, target, method, covariates))
    note = f"in brackets: may be chance (adjusted p of {_ALPHA:g} or more); n = {counts}"
    title(figure, f"Correlation with {fit(target, 44)}{given}", note)
    return figure


def _chosen(
    correlations: Sequence[Mapping[str, Any]], target: str, method: str, covariates: Sequence[str]
) -> list[Mapping[str, Any]]:
    wanted = {"target": target, "method": method, "within": "", "covariates": list(covariates)}
    return [one for one in correlations if all(one.get(name) == value for name, value in wanted.items())]


def _tables(
    correlations: Sequence[Mapping[str, Any]], target: str, method: str, covariates: Sequence[str]
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the correlations and what is written into their cells; predictors by (generator, guidance)."""
    records = [one for one in _chosen(correlations, target, method, covariates) if one["value"] is not None]
    if not records:
        raise UserError(f"the analysis has no {method} correlation with {target} given {list(covariates)}")
    found = pd.DataFrame([{**one, "text": _text(one)} for one in records])
    shape: dict[str, Any] = {"index": "predictor", "columns": ["generator", "guidance"]}
    values = found.pivot_table(values="value", aggfunc="first", sort=False, **shape)
    texts = found.pivot_table(values="text", aggfunc="first", sort=False, **shape)
    order = values.abs().mean(axis=1).sort_values(ascending=False, kind="stable").index
    return values.loc[order], texts.reindex(index=order, columns=values.columns).fillna("")


def _text(record: Mapping[str, Any]) -> str:
    p = record["p"] if record.get("p_adjusted") is None else record["p_adjusted"]
    text = f"{record['value']:.2f}".replace("-", "−")
    return text if p is not None and p < _ALPHA else f"({text})"


def _cell_label(generator: str, guidance: float) -> str:
    return f"{fit(str(generator), 13)}\nw={guidance:g}"


def _counts(drawn: Sequence[Mapping[str, Any]]) -> str:
    counts = {int(one["n"]) for one in drawn if one["value"] is not None}
    return str(min(counts)) if len(counts) == 1 else f"{min(counts)} to {max(counts)}"
