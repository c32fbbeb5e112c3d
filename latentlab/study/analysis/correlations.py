"""Correlation records of one setting: raw, given covariates, within groups, and without each group in turn."""

from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from typing import Any

import numpy as np
import pandas as pd

from analyses.correlation import FEWEST, Method, correlate, of_counts
from analyses.mixed_effects import mixed_slope
from analyses.multiplicity import adjusted
from analyses.partial_correlation import partial_correlate
from analyses.resampling import PERMUTATIONS
from analyses.within_groups import correlate_within
from latentlab.errors import UserError
from latentlab.measurement import Interval
from latentlab.study.analysis.flags import FEW, dependent_tokenizers, fairly_judged, listed
from latentlab.study.analysis.plan import AnalysisPlan
from latentlab.study.analysis.points import Points
from latentlab.study.table import StudyTable

Record = dict[str, Any]
Refuse = Callable[[str, Points, UserError], None]
"""Takes note of what could not be computed: of what, where, why."""

_BY_RESIDUALS: tuple[Method, ...] = ("pearson", "spearman")


def correlation_records(table: StudyTable, plan: AnalysisPlan, cell: Points, refuse: Refuse) -> list[Record]:
    """Return the correlations of all targets with all predictors under one setting, p-values adjusted over predictors."""
    found: list[Record] = []
    for target in plan.targets:
        for predictor in plan.predictors:
            found += _of_pair(table, plan, cell, target, predictor, refuse)
    _adjust(found, plan)
    return found


def _of_pair(
    table: StudyTable, plan: AnalysisPlan, cell: Points, target: str, predictor: str, refuse: Refuse
) -> Iterator[Record]:
    common = {"target": target, **cell.setting.facts(), "predictor": predictor, **direction(table, target, predictor)}
    what = f"{predictor} with {target}"
    fitted, everyone = (fairly_judged(plan, target, rows) for rows in (cell.fitted, cell.all))
    for covariates in covariate_sets(plan.covariates_of(target, table), predictor):
        rows = fitted.dropna(subset=[target, predictor, *covariates])
        for method in plan.methods if not covariates else [m for m in plan.methods if m in _BY_RESIDUALS]:
            try:
                value = _raw_or_partial(rows, target, predictor, covariates, method, plan)
            except UserError as error:
                refuse(f"{what} given {', '.join(covariates)}" if covariates else what, cell, error)
                break
            warnings = _warnings(plan, cell, rows, cell.fitted, {**common, **value})
            yield signed(
                {**common, "method": method, **value, "covariates": covariates, "within": "", "warnings": warnings}
            )
    rows = everyone.dropna(subset=[target, predictor])
    for group in plan.groups:
        labels = rows[plan.split_by(group)].astype(str).agg("/".join, axis=1)
        for method in [m for m in plan.methods if m in _BY_RESIDUALS]:
            if labels.nunique() < 2 or labels.value_counts().max() < 2:
                continue
            try:
                value = _within(rows, target, predictor, labels, method, plan)
            except UserError as error:
                refuse(f"{what} within {group}", cell, error)
                break
            warnings = _warnings(plan, cell, rows, cell.all, {**common, **value})
            yield signed({**common, "method": method, **value, "covariates": [], "within": group, "warnings": warnings})


def covariate_sets(covariates: Sequence[str], predictor: str) -> list[list[str]]:
    """Return no covariates, each one, and all of them; a predictor is not its own covariate."""
    given = [name for name in covariates if name != predictor]
    return [[], *([name] for name in given), *([given] if len(given) > 1 else [])]


def _raw_or_partial(
    rows: pd.DataFrame, target: str, predictor: str, covariates: list[str], method: Method, plan: AnalysisPlan
) -> Record:
    x, y = rows[predictor].to_numpy(float), rows[target].to_numpy(float)
    if covariates:
        found = partial_correlate(x, y, rows[covariates].to_numpy(float), method, plan.seed)
        return _value(found.n, found.value, found.interval, found.p)
    found = correlate(x, y, method, plan.seed)
    return {**_value(found.n, found.value, found.interval, found.p), **_without_groups(x, y, rows, method, plan)}


def _within(
    rows: pd.DataFrame, target: str, predictor: str, labels: pd.Series, method: Method, plan: AnalysisPlan
) -> Record:
    x, y = rows[predictor].to_numpy(float), rows[target].to_numpy(float)
    found = correlate_within(x, y, labels.to_numpy(str), method, plan.seed)
    return {**_value(found.n, found.value, found.interval, found.p), "orders": found.orders}


def _value(n: int, value: float, interval: Interval | None, p: float) -> Record:
    low, high = interval or (None, None)
    return {"n": n, "value": value, "low": low, "high": high, "p": p}


def _without_groups(x: np.ndarray, y: np.ndarray, rows: pd.DataFrame, method: Method, plan: AnalysisPlan) -> Record:
    """Return between what values the correlation stays when each group is left out, and the group that moves it most."""
    if not plan.groups or rows[plan.groups[0]].nunique() < 2:
        return {}
    labels = rows[plan.groups[0]].astype(str).to_numpy()
    names = np.array([name for name in np.unique(labels) if np.sum(labels != name) >= FEWEST])
    if not len(names):
        return {}
    statistic = of_counts(np.column_stack([x, y]), method)
    values = statistic((labels != names[:, None]).astype(float))
    names, values = names[np.isfinite(values)], values[np.isfinite(values)]
    if not len(names):
        return {}
    most = names[np.argmax(np.abs(values - statistic(np.ones((1, len(x))))[0]))]
    return {
        "left_out": plan.groups[0], "left_out_low": float(values.min()), "left_out_high": float(values.max()),
        "left_out_most": str(most),
    }  # fmt: skip


def direction(table: StudyTable, target: str, predictor: str) -> Record:
    """Return which way each column is good, and the sign that a correlation has if good goes with good."""
    ways = [table.column(name).better for name in (predictor, target)]
    expected = "" if "none" in ways else "positive" if ways[0] == ways[1] else "negative"
    return {"predictor_better": ways[0], "target_better": ways[1], "expected": expected}


def signed(record: Record) -> Record:
    """Return the record with ``agrees``: whether the sign is the expected one; None where none is expected."""
    agrees = (record["value"] > 0) == (record["expected"] == "positive") if record["expected"] else None
    return {**record, "agrees": agrees}


def _warnings(plan: AnalysisPlan, cell: Points, rows: pd.DataFrame, everyone: pd.DataFrame, value: Record) -> list[str]:
    """Return what is doubtful about a correlation over those ``rows`` of ``everyone`` that have values, one line each."""
    lines, target = [], value["target"]
    if is_judged_alike(everyone, value["predictor"], target):
        lines.append("by the judge of the target, whose reconstruction error is in both")
    if value["n"] < FEW:
        lines.append(f"only {value['n']} points")
    learned = dependent_tokenizers(plan, target, everyone)
    absent = [str(name) for name in everyone.index if name not in rows.index and name not in learned]
    if absent:
        lines.append(f"without {listed(absent)}: a value is missing")
    if learned:
        lines.append(f"without {listed(learned)}: dependent judge")
    if cell.sizes:
        lines.append(f"mixed sample sizes: {cell.sizes}")
    if value.get("orders", PERMUTATIONS) < PERMUTATIONS:
        least = 1 / value["orders"]
        told = f"p is at least {least:.2g}, over all predictors {min(1.0, least * len(plan.predictors)):.2g}"
        lines.append(f"only {value['orders']:,} orders within groups: {told}")
    if value["low"] is None:
        lines.append("no interval: too many resamplings are constant")
    return lines


def is_judged_alike(rows: pd.DataFrame, predictor: str, target: str) -> bool:
    """Whether a predictor is a distance of decoded images on the features that give the target ``gfd_JUDGE``."""
    judge = target.removeprefix("gfd_")
    return predictor == f"rfd_{judge}" or f"{predictor}.rfd_{judge}" in rows  # the companion of iFID


def _adjust(records: list[Record], plan: AnalysisPlan) -> None:
    """Add ``p_adjusted``: over all predictors of one target, with one method, covariates and grouping."""

    def question(record: Record) -> tuple[str, str, str, str]:
        return record["target"], record["method"], "+".join(record["covariates"]), record["within"]

    for _, same in groupby(sorted(records, key=question), key=question):
        family = list(same)
        values = adjusted([one["p"] for one in family], plan.multiplicity)
        for one, value in zip(family, values, strict=True):
            one["p_adjusted"] = float(value)


def mixed_records(plan: AnalysisPlan, cell: Points, refuse: Refuse) -> Iterator[Record]:
    """Yield the slope of every target on every predictor with a random intercept per group."""
    for target in plan.targets:
        for predictor in plan.predictors:
            rows = fairly_judged(plan, target, cell.fitted).dropna(subset=[target, predictor])
            for group in plan.groups:
                try:
                    found = mixed_slope(
                        rows[predictor].to_numpy(float),
                        rows[target].to_numpy(float),
                        rows[group].astype(str).to_numpy(),
                    )
                except UserError as error:
                    refuse(f"{predictor} with {target}, levels by {group}", cell, error)
                    continue
                low, high = found.interval or (None, None)
                yield {
                    "target": target, **cell.setting.facts(), "predictor": predictor, "group": group, "n": found.n,
                    "groups": found.groups, "value": found.value, "low": low, "high": high,
                    "p": found.p if np.isfinite(found.p) else None, "group_sd": found.group_sd,
                    "converged": found.converged, "warnings": list(found.warnings),
                }  # fmt: skip
