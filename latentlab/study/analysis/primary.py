"""The primary question of a study: which predictors go with its first target, over all settings at once.

    value = mean over settings of Spearman's rank correlation,      raw, and given each covariate and all of them

over the tokenizers that have the target, the predictor and the covariates in every setting that has the target. Ranks need no
choice of scale. Every setting has the same tokenizers, so resamplings and permutations move them in all settings together.
Held-out tokenizers are among them, as a correlation fits nothing. Everything else in an analysis is exploratory.
"""

from collections.abc import Iterator, Sequence
from functools import partial

import numpy as np
import pandas as pd

from analyses.correlation import FEWEST, is_constant, of_counts, permuted
from analyses.multiplicity import adjusted
from analyses.partial_correlation import partial_of_counts
from analyses.resampling import bootstrap_interval, estimate, listed, p_value
from latentlab.study.analysis.correlations import Record, covariate_sets, direction, signed
from latentlab.study.analysis.flags import fairly_judged
from latentlab.study.analysis.plan import AnalysisPlan
from latentlab.study.analysis.points import Points
from latentlab.study.table import StudyTable


def primary_records(
    table: StudyTable, plan: AnalysisPlan, cells: Sequence[Points], warnings: list[str]
) -> list[Record]:
    """Return a record per predictor and set of covariates; p-values, of the raw ones, adjusted over predictors.

    Args:
        table: the study.
        plan: what is asked.
        cells: its settings; those without the target do not count.
        warnings: takes a line per predictor that has no value.
    """
    target = plan.targets[0]
    frames = [fairly_judged(plan, target, one.all) for one in cells if one.known([target])]
    if not frames:
        warnings.append(f"primary question: no tokenizer has {target}")
        return []
    found = [
        record
        for predictor in plan.predictors
        for record in _of_predictor(table, plan, frames, target, predictor, warnings)
    ]
    raw = [one for one in found if not one["covariates"]]
    for one, p in zip(raw, adjusted([one["p"] for one in raw], plan.multiplicity), strict=True):
        one["p_adjusted"] = float(p)
    return found


def _of_predictor(
    table: StudyTable, plan: AnalysisPlan, frames: list[pd.DataFrame], target: str, predictor: str, warnings: list[str]
) -> Iterator[Record]:
    for covariates in covariate_sets(plan.covariates_of(target, table), predictor):
        names, columns = _complete(frames, [predictor, target, *covariates])
        if not _has_value(columns, len(covariates)):
            given = f" given {', '.join(covariates)}" if covariates else ""
            what = f"{predictor} with {target}{given}"
            warnings.append(f"primary question: no correlation of {what} over {len(names)} tokenizers")
            continue
        common = {"target": target, "predictor": predictor, **direction(table, target, predictor)}
        value = _given(columns, plan.seed) if covariates else _raw(columns, names, plan.seed)
        sizes = {"settings": len(columns), "n": len(names), "method": "spearman", "covariates": covariates}
        yield signed({**common, **sizes, **value})


def _has_value(columns: Sequence[np.ndarray], covariates: int) -> bool:
    n = len(columns[0])
    if n < FEWEST + covariates or any(is_constant(one).any() for one in columns):
        return False
    return bool(np.isfinite(_mean(columns, np.ones((1, n)))).all())  # covariates may determine one of the others


def _complete(frames: Sequence[pd.DataFrame], names: Sequence[str]) -> tuple[list[str], list[np.ndarray]]:
    """Return the tokenizers that have all columns in every setting, and these columns by setting, [n,columns]."""
    whole = [frame.dropna(subset=[*names]).index for frame in frames]
    common = [name for name in whole[0] if all(name in one for one in whole[1:])]
    return [str(name) for name in common], [frame.loc[common, [*names]].to_numpy(float) for frame in frames]


def _raw(columns: Sequence[np.ndarray], names: Sequence[str], seed: int) -> Record:
    """Return the mean rank correlation, its interval and p-value, and the tokenizer that moves it most when left out."""
    n = len(names)
    statistic = partial(_mean, columns)
    value, without = estimate(statistic, n), statistic(1 - np.eye(n))
    most = int(np.nanargmax(np.abs(without - value)))
    low, high = bootstrap_interval(statistic, n, seed) or (None, None)
    p = p_value(value, np.mean([permuted(one, "spearman", seed) for one in columns], axis=0), exact=listed(n))
    return {
        "value": value, "low": low, "high": high, "p": p, "most_moved_by": names[most], "without_it": float(without[most]),
    }  # fmt: skip


def _given(columns: Sequence[np.ndarray], seed: int) -> Record:
    """Return the mean partial rank correlation, and by how much it differs from the raw one of the same tokenizers."""
    n = len(columns[0])
    statistic, raw = partial(_mean, columns), partial(_mean, [one[:, :2] for one in columns])
    low, high = bootstrap_interval(statistic, n, seed) or (None, None)
    change = bootstrap_interval(lambda counts: statistic(counts) - raw(counts), n, seed)
    change_low, change_high = change or (None, None)
    value = estimate(statistic, n)
    return {
        "value": value, "low": low, "high": high, "change": value - estimate(raw, n), "change_low": change_low,
        "change_high": change_high,
    }  # fmt: skip


def _mean(columns: Sequence[np.ndarray], counts: np.ndarray) -> np.ndarray:
    """Return the rank correlation of the first two columns, given the others, under counts [r,n]; mean over settings, [r]."""
    function = of_counts if columns[0].shape[1] == 2 else partial_of_counts
    means: np.ndarray = np.mean([function(one, "spearman")(counts) for one in columns], axis=0)
    return means
