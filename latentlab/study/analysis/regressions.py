"""Regression records of one setting: all pairs of predictors, and predictions of tokenizers that were left out."""

from collections.abc import Iterator, Sequence
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd

from analyses.regression import Prediction, fit, leave_out, predict
from latentlab.errors import UserError
from latentlab.study.analysis.correlations import Record, Refuse
from latentlab.study.analysis.flags import fairly_judged
from latentlab.study.analysis.plan import AnalysisPlan
from latentlab.study.analysis.points import Points

LEAVE_ONE, HELD_OUT = "leave_one_out", "held_out"
"""Schemes of prediction, beside `leave_group` of every group of the plan."""


_FITTED = 1 / 3
"""Share of the points that must remain when a group is left out: a line through two or three of them predicts nothing."""

_COMMON = 0.75
"""Share of the tokenizers that a predictor must have, and all such predictors together, for scores over the same tokenizers."""


def scored_rows(plan: AnalysisPlan, rows: pd.DataFrame, target: str, names: Sequence[str]) -> pd.DataFrame:
    """Return the rows over which predictors ``names`` are scored: if possible the same ones for all, or scores do not compare.

    They are those that have every predictor that most have, where that leaves enough; otherwise those that have ``names``.
    """
    rows = fairly_judged(plan, target, rows).dropna(subset=[target])
    common = [name for name in plan.predictors if rows[name].notna().mean() >= _COMMON]
    complete = rows.dropna(subset=common)
    enough = len(complete) >= _COMMON * len(rows) and {*names} <= {*common}
    return complete if enough else rows.dropna(subset=[*names])


def pair_records(plan: AnalysisPlan, cell: Points, refuse: Refuse) -> Iterator[Record]:
    """Yield R^2 of every target on every pair of predictors."""
    for target in plan.targets:
        for first, second in combinations(plan.predictors, 2):
            rows = scored_rows(plan, cell.fitted, target, (first, second))
            try:
                found = fit(rows[[first, second]].to_numpy(float), rows[target].to_numpy(float))
            except UserError as error:
                refuse(f"{target} on {first} and {second}", cell, error)
                continue
            yield {
                "target": target, **cell.setting.facts(), "first": first, "second": second, "n": found.n, "r2": found.r2,
                "r2_adjusted": found.r2_adjusted, "r2_cross_validated": found.r2_cross_validated,
            }  # fmt: skip


def prediction_records(plan: AnalysisPlan, cell: Points, pairs: Sequence[Record], refuse: Refuse) -> Iterator[Record]:
    """Yield predictions by every predictor, every model of the plan, and the pair with the best cross-validated R^2."""
    for target in plan.targets:
        chosen = _best_pair(target, cell, pairs)
        for names in dict.fromkeys([*((one,) for one in plan.predictors), *plan.models, *chosen]):
            note = (
                [f"chosen as the best of {len(plan.predictors)} predictors' pairs: optimistic"]
                if names in chosen
                else []
            )
            for scheme in (LEAVE_ONE, *map(leave_group, plan.groups), HELD_OUT):
                if record := _predicted(plan, cell, target, names, scheme, refuse):
                    yield {**record, "warnings": [*note, *record["warnings"]]}


def _best_pair(target: str, cell: Points, pairs: Sequence[Record]) -> list[tuple[str, ...]]:
    facts = {"target": target, **cell.setting.facts()}
    here = [one for one in pairs if all(one[key] == value for key, value in facts.items())]
    best = max(of_most_points(here), key=lambda one: one["r2_cross_validated"], default=None)
    return [] if best is None else [(best["first"], best["second"])]


def of_most_points(records: Sequence[Record]) -> list[Record]:
    """Return the records of as many points as any has: scores over fewer do not compare with them."""
    most = max((one["n"] for one in records), default=0)
    return [one for one in records if one["n"] == most]


def leave_group(group: str) -> str:
    """Return what predicting each group of a column from the others is called."""
    return f"leave_{group}_out"


def _predicted(
    plan: AnalysisPlan, cell: Points, target: str, names: tuple[str, ...], scheme: str, refuse: Refuse
) -> Record | None:
    rows = scored_rows(plan, cell.fitted, target, names)
    x, y = rows[[*names]].to_numpy(float), rows[target].to_numpy(float)
    group = next((name for name in plan.groups if leave_group(name) == scheme), plan.groups[0] if plan.groups else None)
    labels = rows[group].astype(str) if group else pd.Series("", index=rows.index)
    others = fairly_judged(plan, target, cell.held_out).dropna(subset=[target, *names])
    if (scheme == HELD_OUT and others.empty) or (scheme not in (LEAVE_ONE, HELD_OUT) and labels.nunique() < 2):
        return None
    if scheme not in (LEAVE_ONE, HELD_OUT) and (why := _too_few_remain(labels)):
        refuse(f"predictions of {target}, {scheme.replace('_', ' ')}", cell, UserError(why))
        return None
    try:
        if scheme == HELD_OUT:
            found = predict(x, y, others[[*names]].to_numpy(float), others[target].to_numpy(float))
            rows = others
        else:
            found = leave_out(x, y, np.arange(len(y)) if scheme == LEAVE_ONE else labels.to_numpy())
    except UserError as error:
        refuse(f"{target} by {' and '.join(names)}", cell, error)
        return None
    return {
        "target": target, **cell.setting.facts(), "predictors": list(names), "scheme": scheme,
        "scale": plan.scale_of(target), "n": found.n,
        "r2": _finite(found.r2), "rmse": _finite(found.rmse), "spearman": _finite(found.spearman),
        "warnings": _not_predicted(rows, found), "rows": _rows(rows, target, group, found, plan.scale_of(target) == "log"),
    }  # fmt: skip


def _too_few_remain(labels: pd.Series) -> str:
    """Say that less than a third of the points remain without the largest of the groups ``labels`` [n]; nothing where more do."""
    counts = labels.value_counts()
    left = len(labels) - counts.iloc[0]
    few = left < _FITTED * len(labels)
    return f"without {counts.index[0]} only {left} of {len(labels)} tokenizers remain to be fitted" if few else ""


def _not_predicted(rows: pd.DataFrame, found: Prediction) -> list[str]:
    lost = [str(name) for name in rows.index[~np.isfinite(found.predicted)]]
    return [f"not predicted, since the others determine no fit: {', '.join(lost)}"] if lost else []


def _rows(
    rows: pd.DataFrame, target: str, group: str | None, found: Prediction, logarithmic: bool
) -> list[dict[str, Any]]:
    """Return observed and predicted values in the units of the column: scores are of logarithms, these are not."""
    plain = np.exp if logarithmic else np.asarray
    return [
        {
            "tokenizer": str(name), "cluster": str(row[group]) if group else "", "observed": float(plain(row[target])),
            "predicted": float(plain(value)),
        }
        for (name, row), value in zip(rows.iterrows(), found.predicted, strict=True)
        if np.isfinite(value)
    ]  # fmt: skip


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None
