"""Which tokenizers and measurements of a study a predictor is made of."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from latentlab.errors import UserError, unknown_name
from latentlab.study.predictor.file import Scale, Target
from latentlab.study.table import StudyTable, mixed_sizes

PREFIX = "m_"
"""Start of the columns of measurements; what follows is the registered name."""

FEWEST_TOKENIZERS = 12
FEWEST_CLUSTERS = 3

_OFTEN_MISSING = 0.25
"""A measurement that more of the tokenizers lack is left out; tokenizers that lack one of the others are."""

_DISTANCES = ("gfd_", "fd_", "gfid", "fid")
"""Starts of names of Frechet distances: positive, and their noise grows with them, so their logarithm is predicted."""


@dataclass(frozen=True)
class Chosen:
    """What is used of a study.

    Attributes:
        target: what is predicted.
        names: registered names of the measurements.
        fitted: a row per tokenizer that is fitted.
        held_out: those kept for validation.
        controls: those made out of another by a transformation.
        dropped: tokenizer or measurement -> why it is not used.
    """

    target: Target
    names: tuple[str, ...]
    fitted: pd.DataFrame
    held_out: pd.DataFrame
    controls: pd.DataFrame
    dropped: dict[str, str]


def choose(
    study: StudyTable,
    target: str,
    generator: str,
    guidance: float,
    measurements: Sequence[str] | None,
    learned: Collection[str],
) -> Chosen:
    """Choose; the arguments and errors are those of `latentlab.study.predictor.fit.fit_predictor`."""
    told = _target(study, target, generator, guidance)
    if sizes := mixed_sizes(study.rows, study.names("count")):
        raise UserError(f"{sizes} in this study: distances of unequal numbers do not compare, so nothing is predicted")
    dropped = {name: f"a copy of {other}" for name, other in study.copies().items()}
    rows = study.by_tokenizer(generator, guidance)
    flattered = rows["tokenizer"][rows["cluster"].isin(learned)]
    dropped |= dict.fromkeys(map(str, flattered), f"learned from the features that give {target}")
    rows = _with_target(rows[~rows["tokenizer"].isin(dropped)], told, dropped)
    _check_enough(_fitted(rows), told)
    names = _usable(study, _fitted(rows), measurements, dropped)
    rows = _complete(rows, names, dropped)
    fitted = _fitted(rows)
    _check_enough(fitted, told)
    same = [column for column in (target, *(PREFIX + name for name in names)) if fitted[column].nunique() == 1]
    if same:
        raise UserError(f"{', '.join(same)} is the same for all tokenizers that could be fitted: leave it out")
    control, held_out = rows["control"] != "", rows["held_out"].astype(bool)
    return Chosen(told, tuple(names), fitted, rows[~control & held_out], rows[control], dropped)


def _fitted(rows: pd.DataFrame) -> pd.DataFrame:
    return rows[(rows["control"] == "") & ~rows["held_out"].astype(bool)]


def _target(study: StudyTable, name: str, generator: str, guidance: float) -> Target:
    """Return what is predicted, after checking that the study has it."""
    qualities = study.names("quality")
    if name not in qualities:
        raise unknown_name("quality of this study", name, qualities)
    generators = sorted(set(study.rows["generator"].astype(str)))
    if generator not in generators:
        raise unknown_name("generator of this study", generator, generators)
    scales = sorted(set(study.rows[study.rows["generator"] == generator]["guidance"]))
    if guidance not in scales:
        raise UserError(
            f"{generator} has no guidance scale {guidance:g} in this study: {', '.join(f'{s:g}' for s in scales)}"
        )
    column = study.column(name)
    scale: Scale = "log" if name.startswith(_DISTANCES) and (study.rows[name].dropna() > 0).all() else "linear"
    return Target(
        name=name, meaning=column.meaning, unit=column.unit, better=column.better, scale=scale, generator=generator,
        guidance=guidance,
    )  # fmt: skip


def _with_target(rows: pd.DataFrame, target: Target, dropped: dict[str, str]) -> pd.DataFrame:
    there = np.isfinite(rows[target.name].to_numpy(np.float64))
    dropped |= dict.fromkeys(rows["tokenizer"][~there], f"no {target.name}")
    return rows[there]


def measured_names(study: StudyTable, chosen: Sequence[str] | None = None) -> list[str]:
    """Return the registered names of the measurements in a table, or those of them that are ``chosen``.

    Raises:
        UserError: the study lacks one, or there is none.
    """
    columns = [name for name in study.names("measurement") if name.startswith(PREFIX) and "." not in name]
    known = [name.removeprefix(PREFIX) for name in columns]
    for name in chosen or ():
        if name not in known:
            raise unknown_name("measurement of this study", name, known)
    names = known if chosen is None else list(dict.fromkeys(chosen))
    if not names:
        raise UserError(f"no measurement is named; the study has {', '.join(known) or 'none'}")
    return names


def _usable(
    study: StudyTable, fitted: pd.DataFrame, chosen: Sequence[str] | None, dropped: dict[str, str]
) -> list[str]:
    """Return the names of the measurements to use; say in ``dropped`` why others are not."""
    known = measured_names(study, chosen)
    if chosen is not None:
        return known
    names = []
    for name in known:
        values = fitted[PREFIX + name].to_numpy(np.float64)
        missing = int((~np.isfinite(values)).sum())
        if missing > _OFTEN_MISSING * len(values):
            dropped[name] = f"{missing} of {len(values)} tokenizers lack it"
        elif np.nanmin(values) == np.nanmax(values):
            dropped[name] = "the same for all tokenizers"
        else:
            names.append(name)
    if not names:
        raise UserError(
            f"no measurement can be used: {'; '.join(f'{k}: {v}' for k, v in dropped.items()) or 'there is none'}"
        )
    return names


def _complete(rows: pd.DataFrame, names: Sequence[str], dropped: dict[str, str]) -> pd.DataFrame:
    """Return the rows that have all measurements."""
    there = np.isfinite(rows[[PREFIX + name for name in names]].to_numpy(np.float64))
    for label, has in zip(rows["tokenizer"], there, strict=True):
        if lacking := [name for name, one in zip(names, has, strict=True) if not one]:
            dropped[str(label)] = f"lacks {', '.join(lacking)}"
    return rows[there.all(1)]


def _check_enough(fitted: pd.DataFrame, target: Target) -> None:
    n, clusters = len(fitted), fitted["cluster"].nunique()
    if n < FEWEST_TOKENIZERS or clusters < FEWEST_CLUSTERS:
        raise UserError(
            f"a predictor needs at least {FEWEST_TOKENIZERS} tokenizers in {FEWEST_CLUSTERS} clusters (controls and held-out "
            f"ones do not count); {n} in {clusters} have {target.title} and the measurements"
        )
