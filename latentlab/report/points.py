"""The rows of the report: one per tokenizer, generator and guidance scale, averaged over seeds."""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from pandas.api.types import is_bool_dtype, is_numeric_dtype

from latentlab.study.table import Column, StudyTable

RUNS = "finished runs"
"""Column with the number of cells behind a row."""
KIND = "kind"
"""Column that tells trained tokenizers from controls."""
SCALE = "guidance scale"
"""Column with the guidance as a word, to filter by."""

_WORDS = ("tokenizer", "cluster", "family", "control", "control_of", "generator")
_AXES = ("measurement", "reconstruction", "decoder", "quality", "trajectory", "count", "cost")


@dataclass(frozen=True)
class Points:
    """What table and plots show.

    Attributes:
        rows: words (never missing) and float64 numbers (NaN where missing).
        axes: columns of numbers that a plot can show, in the order of the study.
        generators: labels in the order of the study.
        scales: guidance scales as words, ascending.
    """

    rows: pd.DataFrame
    axes: tuple[Column, ...]
    generators: tuple[str, ...]
    scales: tuple[str, ...]

    def intervals(self) -> tuple[str, ...]:
        """Return the columns with the ends of intervals of ``axes``."""
        ends = (f"{axis.name}_{end}" for axis in self.axes for end in ("low", "high"))
        return tuple(name for name in ends if name in self.rows)

    def first(self, *roles: str) -> str | None:
        """Return the first axis of the first of these roles that has one."""
        return next((axis.name for role in roles for axis in self.axes if axis.role == role), None)


def points_of(table: StudyTable) -> Points:
    """Average the seeds of every tokenizer, generator and guidance scale."""
    cells = table.rows.dropna(subset=["generator", "guidance"])
    pairs = cells[["generator", "guidance"]].drop_duplicates()
    means = [table.by_tokenizer(generator, guidance) for generator, guidance in pairs.itertuples(index=False)]
    rows = pd.concat(means, ignore_index=True) if means else table.rows.iloc[:0].copy()
    axes = tuple(c for c in table.columns if c.role in _AXES and _is_number(rows[c.name]))
    rows = _plain(rows, axes).copy()  # in one piece, or pandas warns of each added column
    keys = ["tokenizer", "generator", "guidance"]
    finished = _finished(cells).groupby(keys).size()
    rows[RUNS] = [int(finished.get(tuple(key), 0)) for key in rows[keys].itertuples(index=False, name=None)]
    rows[KIND] = np.where(rows["control"] == "", "trained", "control")
    rows[SCALE] = [scale_word(scale) for scale in rows["guidance"]]
    scales = tuple(scale_word(scale) for scale in sorted(rows["guidance"].unique()))
    return Points(rows, axes, tuple(rows["generator"].unique()), scales)


def incomplete_rows(table: StudyTable) -> pd.DataFrame:
    """Return the rows that lack numbers, of failed cells or of such as are not done yet."""
    return table.rows.drop(_finished(table.rows).index)


def scale_word(scale: float) -> str:
    """Return a guidance scale as JavaScript writes it: 1, 1.5."""
    return np.format_float_positional(float(scale), trim="-")


def _finished(rows: pd.DataFrame) -> pd.DataFrame:
    return rows[rows["error"] == ""] if "error" in rows else rows


def _is_number(values: pd.Series) -> bool:
    return bool(is_numeric_dtype(values) and not is_bool_dtype(values))


def _plain(rows: pd.DataFrame, axes: tuple[Column, ...]) -> pd.DataFrame:
    """Return words as str and numbers as float64, infinite ones as missing: no plot has a place for them."""
    plain = rows.copy()
    for name in _WORDS:
        plain[name] = rows[name].astype(object).where(rows[name].notna(), "").astype(str)
    for name in ("guidance", *(axis.name for axis in axes)):
        plain[name] = rows[name].astype("float64").replace([np.inf, -np.inf], np.nan)
    return plain
