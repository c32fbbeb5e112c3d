"""Whether measurements react as quality does where it is seen to change or not: under controls, and to a regulariser.

    control    a transformed tokenizer             against  the trainings that it was made of (equal seeds)
    training   a tokenizer of another cluster      against  those of cluster ``baseline`` of its family

    quality      change = mean over repeats of v, less that of the other side;  v = mean over the settings that both sides have
                 error  = sd of v between repeats of one unit, pooled over units * sqrt(1/n_1 + 1/n_2), n repeats of each side
    measurement  change = mean over the same trainings, less that of the other side, in sd between tokenizers

A control shares the training of its base, so only its generator differs by chance: its repeats are generator seeds (of all
generators together), its unit a trained tokenizer. For trainings repeats are tokenizer seeds, whose generators are averaged, and
the unit is a tokenizer. Repeats without a value in each of the settings do not count. Noise is pooled over the same settings
as are compared, so that it is that of v, over the tokenizers that are no controls, as that of targets is; nothing is fitted, so
held-out ones take part. The rules and their numbers are our own, and were stated before there were results.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import pandas as pd

from analyses.correlation import is_constant
from analyses.noise_ceiling import noise_ceiling
from latentlab.errors import UserError
from latentlab.measurement import Direction
from latentlab.study.analysis.correlations import Record
from latentlab.study.analysis.flags import fairly_judged, listed
from latentlab.study.analysis.plan import AnalysisPlan
from latentlab.study.analysis.points import averaged
from latentlab.study.table import StudyTable, with_original

SURE = 2.0
"""Errors by which quality must change to be better or worse: about the 95 % of all intervals here."""

MOVED = 0.5
"""Standard deviations between tokenizers by which a measurement must change to have moved: less is small beside what it tells
tokenizers apart by (a medium effect in Cohen, Statistical Power Analysis, 1988)."""

BASELINE = "baseline"
"""Cluster of tokenizers that nothing but their bottleneck shapes: what a regulariser is compared with."""

Kind = Literal["control", "training"]

_REPEAT: dict[Kind, tuple[str, ...]] = {
    "control": ("tokenizer", "tokenizer_seed", "generator_seed"),
    "training": ("tokenizer", "tokenizer_seed"),
}
"""What names a repeat; all but the last names its unit."""

_NO_REPEATS = {"control": "nothing was judged with two generator seeds", "training": "no tokenizer was trained twice"}
_NOT_JUDGED = "no repeat of each side was judged in all settings of both"


class _Pair(NamedTuple):
    """Rows of a tokenizer, and of what it is compared with."""

    kind: Kind
    tokenizer: str
    of: str
    changed: pd.DataFrame
    original: pd.DataFrame


@dataclass(frozen=True)
class _Compared:
    """How quality differs between the trainings (tokenizer and seed) of both sides of a pair."""

    pair: _Pair
    changed: pd.MultiIndex
    original: pd.MultiIndex
    change: float
    error: float


def reaction_records(table: StudyTable, plan: AnalysisPlan, warnings: list[str]) -> Iterator[Record]:
    """Yield a record per predictor of latents or decoder and pair of tokenizers that both have it.

    Those that learned from the judge of the target (the plan's first) are left out.

    Args:
        table: the study, on the scale of the analysis.
        plan: what is asked.
        warnings: takes a line per reason for which pairs could not be compared, and per predictor that does not vary.
    """
    target = plan.targets[0]
    judged = fairly_judged(plan, target, averaged(table.rows)).index
    rows = table.rows[table.rows["tokenizer"].isin(judged)].dropna(subset=[target])
    pairs = [*_controls(rows), *_trainings(rows)]
    compared = list(_comparisons(pairs, _no_controls(rows), target, warnings))
    for predictor in plan.predictors if compared else ():
        if table.column(predictor).role in ("measurement", "decoder"):
            yield from _of_predictor(table, predictor, target, compared, warnings)


def _no_controls(rows: pd.DataFrame) -> pd.DataFrame:
    return rows[rows["control"] == ""]


def _controls(rows: pd.DataFrame) -> Iterator[_Pair]:
    """Yield every control whose base is there; that of others is missed by ``controls`` already."""
    for label in rows.loc[rows["control"] != "", "tokenizer"].unique():
        changed, original = with_original(rows, label)
        if len(original):
            yield _Pair("control", str(label), str(original["tokenizer"].iloc[0]), changed, original)


def _trainings(rows: pd.DataFrame) -> Iterator[_Pair]:
    own = _no_controls(rows)
    plain = own["cluster"] == BASELINE
    for label, changed in own[~plain].groupby("tokenizer", sort=False):
        family = str(changed["family"].iloc[0])
        original = own[plain & (own["family"] == family)]
        if len(original):
            yield _Pair("training", str(label), f"{BASELINE} of {family}" if family else BASELINE, changed, original)


def _comparisons(
    pairs: Sequence[_Pair], everyone: pd.DataFrame, target: str, warnings: list[str]
) -> Iterator[_Compared]:
    """Yield how quality differs in each pair, given the rows of all tokenizers that are no controls."""
    lacking: dict[str, list[str]] = {}
    noise = {kind: _by_setting(everyone, target, repeat) for kind, repeat in _REPEAT.items()}
    for pair in pairs:
        found = _compare(pair, noise[pair.kind], target)
        if isinstance(found, str):
            lacking.setdefault(found, []).append(pair.tokenizer)
        else:
            yield found
    warnings += [f"reactions to {listed(labels)}: not told, as {why}" for why, labels in lacking.items()]


def _compare(pair: _Pair, everyone: pd.DataFrame, target: str) -> _Compared | str:
    """Return how quality differs in a pair, or why that cannot be told; ``everyone``: repeats by setting."""
    changed, original = (_by_setting(side, target, _REPEAT[pair.kind]) for side in (pair.changed, pair.original))
    both = changed.columns.intersection(original.columns)
    first, second = _complete(changed, both), _complete(original, both)
    if both.empty or first.empty or second.empty:
        return _NOT_JUDGED
    sd = _noise(_complete(everyone, both))
    if sd is None:
        return _NO_REPEATS[pair.kind]
    error = sd * (1 / len(first) + 1 / len(second)) ** 0.5
    return _Compared(pair, _trained(first), _trained(second), float(first.mean() - second.mean()), float(error))


def _by_setting(rows: pd.DataFrame, target: str, repeat: Sequence[str]) -> pd.DataFrame:
    """Return the target of every repeat (rows) in every setting (columns); what a repeat leaves open is averaged."""
    setting = rows["generator"].fillna("").astype(str) + " " + rows["guidance"].astype(str)
    return rows.groupby([*repeat, setting.rename("setting")])[target].mean().unstack()


def _complete(repeats: pd.DataFrame, settings: pd.Index) -> pd.Series:
    """Return the mean over settings of the repeats that have all of them."""
    whole = repeats[settings].dropna()
    return whole.mean(axis=1) if len(whole) else pd.Series(dtype=float, index=whole.index)


def _noise(repeats: pd.Series) -> float | None:
    """Return the pooled standard deviation between repeats of a unit; None where none is repeated."""
    units = np.array([str(name[:-1]) for name in repeats.index])
    try:
        return noise_ceiling(repeats.to_numpy(float), units).within_sd
    except UserError:
        return None


def _trained(repeats: pd.Series) -> pd.MultiIndex:
    names = [repeats.index.get_level_values(name) for name in _REPEAT["training"]]
    return pd.MultiIndex.from_arrays(names).unique()


def _of_predictor(
    table: StudyTable, predictor: str, target: str, compared: Sequence[_Compared], warnings: list[str]
) -> Iterator[Record]:
    own = _trainings_of(table.rows, predictor)
    means = _trainings_of(_no_controls(table.rows), predictor)[predictor].groupby("tokenizer").mean().dropna()
    if len(means) < 2 or is_constant(means.to_numpy(float)[:, None])[0]:
        warnings.append(f"reactions of {predictor}: not told, as no two tokenizers differ in it")
        return
    for one in compared:
        changed, original = own.loc[one.changed].mean(), own.loc[one.original].mean()
        moved = float((changed[predictor] - original[predictor]) / means.std())
        if np.isnan(moved):
            continue
        quality = _quality(one, table.column(target).better)
        way = _way(moved, _apart(changed, original, predictor), table.column(predictor).better)
        yield {
            "predictor": predictor, "kind": one.pair.kind, "tokenizer": one.pair.tokenizer, "of": one.pair.of, "target": target,
            "moved_sd": moved, "measurement": way, "quality_change": one.change, "quality_error": one.error, "quality": quality,
            "says": _says(way, quality),
        }  # fmt: skip


def _trainings_of(rows: pd.DataFrame, predictor: str) -> pd.DataFrame:
    """Return a measurement with the ends of its interval by tokenizer and seed; missing ends are NaN."""
    columns = [predictor, f"{predictor}_low", f"{predictor}_high"]
    numbers = rows.reindex(columns=[*_REPEAT["training"], *columns])
    return numbers.astype(dict.fromkeys(columns, float)).groupby([*_REPEAT["training"]]).mean()


def _apart(first: pd.Series, second: pd.Series, predictor: str) -> bool:
    """Return whether intervals do not overlap, or are not known; those of means over trainings are means of theirs.

    That is rather too wide: trainings that go either way do not count as a move.
    """
    low, high = f"{predictor}_low", f"{predictor}_high"
    return not (first[low] <= second[high] and second[low] <= first[high])  # False of what is missing


def _way(moved: float, apart: bool, better: Direction) -> str:
    if abs(moved) < MOVED or not apart:
        return "same"
    return _worded(moved, better, "easier", "harder", "moved")


def _quality(one: _Compared, better: Direction) -> str:
    if abs(one.change) <= SURE * one.error:
        return "same"
    return _worded(one.change, better, "better", "worse", "changed")


def _worded(change: float, better: Direction, gained: str, lost: str, neither: str) -> str:
    if better == "none":
        return neither
    return gained if (change > 0) == (better == "higher") else lost


def _says(measurement: str, quality: str) -> str:
    """Return what a pair says of a measurement; where one of both has no direction, any move agrees with any change."""
    if measurement == "same":
        return "agrees" if quality == "same" else "blind"
    if quality == "same":
        return "moves alone"
    return "opposite" if (measurement, quality) in {("easier", "worse"), ("harder", "better")} else "agrees"
