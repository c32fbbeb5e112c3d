"""The table of a study: one row per tokenizer, generator, seeds and guidance scale; what every column means lies beside it."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from pydantic import TypeAdapter, ValidationError

from latentlab.errors import UserError, unknown_name
from latentlab.files import file_sha256, first_problem, read_json, write_json, write_text
from latentlab.measurement import Direction

Role = Literal[
    "identity", "measurement", "reconstruction", "decoder", "quality", "floor", "trajectory", "count", "cost", "status"
]
"""What a column is about: who, its latents, its reconstructions, its decoder, its samples, the best they could be, its ODE,
how many there were, time, errors."""

FILE = "results.csv"
COLUMNS_FILE = "columns.json"

TABLE_KEY = "table_sha256"
"""Key under which a file that was made of a table says of which."""

IDENTITY = (
    "tokenizer", "tokenizer_seed", "cluster", "family", "control", "control_of", "held_out",
    "generator", "generator_seed", "guidance",
)  # fmt: skip
"""Columns of every study. ``cluster``: kind of regulariser; ``family``: architecture; ``control``: the transformation that made
this tokenizer out of ``control_of`` (both empty otherwise); ``held_out``: kept from fitting for validation."""

CELL = ("tokenizer", "tokenizer_seed", "generator", "generator_seed", "guidance")
"""Columns that together name a row."""

_NUMBERS = ("tokenizer_seed", "generator_seed", "guidance")
"""Columns of identity that hold numbers."""

_WORDS = ("identity", "status")
"""Roles of columns that hold words."""

_MAYBE_EMPTY = ("control", "control_of", "error")

_NAMES = ("tokenizer", "cluster", "family", "generator", *_MAYBE_EMPTY)
"""Columns of words of a study: a label such as ``8`` or ``None`` is no number and not missing."""


@dataclass(frozen=True)
class Column:
    """One column. Where there are columns ``NAME_low`` and ``NAME_high``, they are the ends of its 95 % interval.

    Attributes:
        name: in the table.
        role: what it is about.
        meaning: one sentence.
        unit: of its values; empty for words and pure numbers.
        better: which way is easier to generate, or of higher quality.
    """

    name: str
    role: Role
    meaning: str
    unit: str = ""
    better: Direction = "none"


@dataclass(frozen=True)
class StudyTable:
    """The rows and what their columns mean.

    Attributes:
        rows: one per cell; numbers are float64, missing ones NaN.
        columns: all but the ends of intervals.
    """

    rows: pd.DataFrame
    columns: tuple[Column, ...]

    @classmethod
    def read(cls, path: Path) -> "StudyTable":
        """Read what `write` left in a folder, or its CSV file with the columns beside it.

        Raises:
            UserError: no such file, not a CSV, columns that are not explained, or rows that occur twice.
        """
        file = path / FILE if path.is_dir() else path
        rows = read_csv(file, words=_NAMES)
        columns = _read_columns(file.parent / COLUMNS_FILE)
        absent = [column.name for column in columns if column.name not in rows]
        if absent:
            raise UserError(f"{file} lacks the columns {', '.join(absent)} that {COLUMNS_FILE} beside it explains")
        table = cls(rows, columns)
        table.check(file)
        return table

    def write(self, folder: Path) -> None:
        """Write ``results.csv`` and ``columns.json``."""
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / FILE, self.rows.to_csv(index=False))
        write_json(folder / COLUMNS_FILE, [asdict(column) for column in self.columns])

    def check(self, file: Path) -> None:
        """Raise `UserError` where identity columns are missing or two rows are the same cell."""
        missing = [name for name in IDENTITY if name not in self.rows]
        if missing:
            raise UserError(f"{file} is not the table of a study: it lacks the columns {', '.join(missing)}")
        twice = self.rows[self.rows.duplicated(list(CELL), keep=False)]
        if len(twice):
            first = ", ".join(f"{name} {twice.iloc[0][name]}" for name in CELL)
            raise UserError(f"{file} holds the same cell more than once ({first}): keep one of its rows")
        for name in self._numeric():
            check_numbers(self.rows[name], file)

    def _numeric(self) -> list[str]:
        """Return the columns that must hold numbers, with the ends of their intervals."""
        told = [column.name for column in self.columns if column.role not in _WORDS]
        ends = [f"{name}_{end}" for name in told for end in ("low", "high")]
        return [name for name in (*_NUMBERS, *told, *ends) if name in self.rows]

    def names(self, *roles: Role) -> tuple[str, ...]:
        """Return the columns of these roles in order; of all roles without any."""
        return tuple(column.name for column in self.columns if not roles or column.role in roles)

    def column(self, name: str) -> Column:
        """Return what a column means.

        Raises:
            UserError: there is no such column; near ones are named.
        """
        found = next((column for column in self.columns if column.name == name), None)
        if found is None:
            raise unknown_name("column", name, self.names())
        return found

    def copies(self) -> dict[str, str]:
        """Return tokenizers that agree with an earlier one in every measurement and quality, and that one; controls apart.

        Those of which nothing is known yet are no copies of each other.
        """
        names = self.names("measurement", "quality")
        own = self.rows[self.rows["control"].fillna("") == ""].sort_values(list(CELL[1:]), kind="stable")
        own = own[own[list(names)].notna().any(axis=1)]
        firsts: dict[str, str] = {}
        found = {}
        for label in own["tokenizer"].unique() if names else ():
            values = own.loc[own["tokenizer"] == label, ["generator", "guidance", *names]].to_csv(index=False)
            if (first := firsts.setdefault(values, label)) != label:
                found[str(label)] = str(first)
        return found

    def by_tokenizer(self, generator: str, guidance: float, seeds: bool = False) -> pd.DataFrame:
        """Return one row per tokenizer under one generator and guidance scale: means over seeds; words of the first.

        Args:
            generator: its label.
            guidance: the scale.
            seeds: keep the seeds of a tokenizer apart (those of generators are always averaged).
        """
        chosen = self.rows[(self.rows["generator"] == generator) & (self.rows["guidance"] == guidance)]
        keys = ["tokenizer", "tokenizer_seed"] if seeds else ["tokenizer"]
        numbers = [name for name in chosen.select_dtypes("number") if name not in keys]
        words = [name for name in chosen if name not in (*numbers, *keys)]
        groups = chosen.groupby(keys, sort=False)
        joined = pd.concat([groups[words].first(), groups[numbers].mean()], axis=1).copy().reset_index()
        return joined[[name for name in self.rows if name in joined]]


def with_original(rows: pd.DataFrame, control: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the rows of a control, and those of the tokenizer it was made of, that stand on the same trainings.

    Both are of equal length and order, and agree in seeds, generator and guidance scale: what another seed of the original
    has is no effect of the control. Both are empty where there are no such rows.
    """
    own = rows[rows["tokenizer"] == control]
    original = rows[rows["tokenizer"].isin(own["control_of"])]
    keys = own[[*CELL[1:]]].merge(original[[*CELL[1:]]])
    return keys.merge(own), keys.merge(original)


def is_of_another_table(told: Mapping[str, Any], table: Path) -> bool:
    """Whether the content of a file says that it was made of another table than the one that lies at ``table`` now."""
    return told.get(TABLE_KEY) not in (None, file_sha256(table))


def mixed_sizes(rows: pd.DataFrame, names: Iterable[str]) -> str:
    """Return in words which of the counts ``names`` differ between rows; empty where none does."""
    sizes = {name: sorted(rows[name].dropna().unique()) for name in names if not name.endswith(("_low", "_high"))}
    return "; ".join(
        f"{name} is {', '.join(f'{size:g}' for size in values)}" for name, values in sizes.items() if len(values) > 1
    )


def check_numbers(values: pd.Series, file: Path) -> None:
    """Raise `UserError` for a word or an infinite number in a column, whose name ``values`` bears."""
    numbers = pd.to_numeric(values, errors="coerce")
    wrong = (numbers.isna() & values.notna()) | np.isinf(numbers.astype(float))
    if values.dtype == bool or wrong.any():
        place = int(np.flatnonzero(wrong)[0]) if wrong.any() else 0
        raise UserError(
            f"{file} holds '{values.iloc[place]}' in column {values.name}, line {place + 2}, where a finite number must be: "
            "leave unknown values empty"
        )


def read_csv(file: Path, words: Sequence[str] = ()) -> pd.DataFrame:
    """Return any CSV table; ``control``, ``control_of`` and ``error`` are words, empty where one is missing.

    Args:
        file: to read.
        words: columns whose values are taken as they stand, ``NA`` as a name.

    Raises:
        UserError: no such file, or not a table with a header and rows.
    """
    if not file.is_file():
        raise UserError(f"there is no table {file}: give a CSV file, or a folder that `latentlab study` has written")
    try:
        _check_header(file)
        rows = pd.read_csv(file).copy()  # in one piece, or pandas warns of each added column
        texts = pd.read_csv(file, usecols=sorted({*words} & {*map(str, rows)}), dtype=str, keep_default_na=False)
    except (OSError, UnicodeDecodeError, pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        raise UserError(f"{file} is not a readable CSV table: {' '.join(str(error).split())}") from error
    if rows.empty:
        raise UserError(f"{file} has no rows")
    for name in {*_MAYBE_EMPTY} & {*rows}:
        rows[name] = rows[name].astype(object).where(rows[name].notna(), "").astype(str)
    rows[texts.columns] = texts
    return rows


def _check_header(file: Path) -> None:
    """Raise `UserError` for a column that is there twice: pandas would rename the second one silently."""
    header = pd.read_csv(file, header=None, nrows=1, dtype=str).iloc[0]
    other = next((mark for mark in (";", "\t") if len(header) == 1 and mark in str(header[0])), None)
    if other is not None:
        raise UserError(f"the columns of {file} are separated by {other!r}: save it with commas")
    twice = header[header.duplicated() & header.notna()]
    if len(twice):
        raise UserError(f"{file} has the column {twice.iloc[0]} twice: rename or remove one")


def _read_columns(file: Path) -> tuple[Column, ...]:
    told = read_json(file)
    try:
        return tuple(TypeAdapter(list[Column]).validate_python(told))
    except ValidationError as error:
        raise UserError(f"{file} does not explain columns: {first_problem(error)}") from error
