"""Any table of results as the table of a study: what a user's columns are called, and what is wrong with them."""

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from latentlab.errors import UserError, unknown_name
from latentlab.study.analysis.plan import not_a_number
from latentlab.study.table import CELL, COLUMNS_FILE, IDENTITY, Column, Role, StudyTable, read_csv

_COUNTED, _NUMBER_OF = {"sample", "samples", "image", "images"}, {"n", "num", "count"}
_OF_DISTANCES = {"fid", "gfid", "rfid", "fd"}
_FILLED: dict[str, str | float] = {
    "tokenizer_seed": 0, "cluster": "", "family": "", "control": "", "control_of": "", "held_out": False,
    "generator": "", "generator_seed": 0, "guidance": np.nan,
}  # fmt: skip
"""What stands in the columns of a study that a table lacks."""


def is_study(path: Path) -> bool:
    """Whether a path is a results folder, or a table with its columns explained beside it."""
    return path.is_dir() or (path.parent / COLUMNS_FILE).is_file()


def read_any(path: Path, targets: Sequence[str], label: str | None = None, family: str | None = None) -> StudyTable:
    """Return a CSV table, one row per tokenizer (and generator, guidance, seed where it has such columns), as a study.

    Args:
        path: the file.
        targets: columns of quality; other columns of numbers are measurements.
        label: column that names the tokenizers; by default ``tokenizer``, else the first column of words, else line numbers.
        family: column of groups that are alike (architecture, cluster).

    Raises:
        UserError: not a table, a column that is not there, names or groups missing, or a tokenizer that occurs twice.
    """
    rows = _plain(read_csv(path))
    for name in (*targets, *filter(None, (label, family))):
        if name not in rows:
            raise unknown_name(f"column of {path}", name, map(str, rows))
    named = label or _first_words(rows, family)
    lines = [f"line {i + 2}" for i in range(len(rows))]
    rows = rows.assign(tokenizer=lines if named is None else rows[named])
    for name in dict.fromkeys(filter(None, ("tokenizer", family))):
        if rows[name].isna().any():
            line = int(np.flatnonzero(rows[name].isna())[0]) + 2
            raise UserError(f"{path} has no {'name' if name == 'tokenizer' else name} in line {line}: fill it in")
        rows[name] = rows[name].astype(str).str.strip()
    _check_typos(rows, [str(name) for name in rows if name not in ("tokenizer", named, family, *_FILLED)], path)
    for name, value in _FILLED.items():
        rows = rows if name in rows else rows.assign(**{name: value})
    _check_once(rows, path)
    return StudyTable(rows, tuple(Column(str(name), _role(rows, str(name), targets, family), "") for name in rows))


def _plain(rows: pd.DataFrame) -> pd.DataFrame:
    """Return rows whose ``control`` is a name or empty and whose ``held_out`` is a truth value, also where they were 0 and 1."""
    none = {"0", "0.0", "false", "no", "nan"}
    truth = {"1": True, "1.0": True, "0": False, "0.0": False}
    if "control" in rows:
        words = rows["control"].astype(str)
        rows["control"] = words.where(~words.str.lower().isin(none), "")
    if "held_out" in rows and rows["held_out"].astype(str).isin(truth).all():
        rows["held_out"] = rows["held_out"].astype(str).map(truth).astype(bool)
    return rows


def _first_words(rows: pd.DataFrame, family: str | None) -> str | None:
    words = [str(name) for name in rows if rows[name].dtype.kind not in "iufb" and name not in (family, *_FILLED)]
    return "tokenizer" if "tokenizer" in rows else next(iter(words), None)


def _role(rows: pd.DataFrame, name: str, targets: Sequence[str], family: str | None) -> Role:
    if name in targets:
        return "quality"
    if name in IDENTITY or name == family or rows[name].dtype.kind not in "iuf":
        return "identity"
    of_interval = any(name.endswith(end) and name.removesuffix(end) in rows for end in ("_low", "_high"))
    return "count" if is_size(rows[name]) or of_interval else "measurement"


def is_size(values: pd.Series) -> bool:
    """Whether a column says of how many images a row is: by its name (``n``, ``n_samples``, ``NumImages``) and whole numbers."""
    words = set(re.findall(r"[a-z]+", re.sub(r"([a-z])([A-Z])", r"\1 \2", str(values.name)).lower()))
    named = words & _COUNTED or words <= _NUMBER_OF or (words & _NUMBER_OF and words & _OF_DISTANCES)
    numbers = values.dropna()
    return bool(named) and bool((numbers == numbers.round()).all() and (numbers > 1).all())


def _check_typos(rows: pd.DataFrame, names: Sequence[str], path: Path) -> None:
    """Refuse columns of numbers in which a word hides, since they would else be taken for words."""
    for name in names:
        numbers = pd.to_numeric(rows[name], errors="coerce").notna()
        if rows[name].dtype.kind not in "iufb" and numbers.mean() > 0.5:
            wrong = not_a_number(rows[name])
            line = int(np.flatnonzero(rows[name] == wrong)[0]) + 2
            raise UserError(
                f"{path} holds '{wrong}' in column {name}, line {line}, among numbers: leave unknown values empty"
            )


def _check_once(rows: pd.DataFrame, path: Path) -> None:
    twice = rows[rows.duplicated(list(CELL), keep=False)]
    if len(twice):
        name = twice["tokenizer"].iloc[0]
        count = int((twice["tokenizer"] == name).sum())
        raise UserError(
            f"{path} holds tokenizer '{name}' {count} times: keep one row of each, or number repeats in a column generator_seed"
        )
