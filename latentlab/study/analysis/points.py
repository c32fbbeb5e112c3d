"""The points that are correlated: one per tokenizer under each setting (generator and guidance scale), repeats averaged."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from latentlab.errors import UserError
from latentlab.study.table import StudyTable, mixed_sizes

SEEDS = ("tokenizer_seed", "generator_seed")


ALL_ROWS = "all rows"
"""What the setting of a table without generators and scales is called."""


class Setting(NamedTuple):
    """A generator and a guidance scale; empty and None where a table has no such columns."""

    generator: str
    guidance: float | None

    def facts(self) -> dict[str, Any]:
        """Return the fields of a record that name the setting."""
        return {"generator": self.generator, "guidance": self.guidance}

    def __str__(self) -> str:
        """Return it in words."""
        scale = None if self.guidance is None else f"guidance {self.guidance:g}"
        return " at ".join(filter(None, (self.generator, scale))) or ALL_ROWS


@dataclass(frozen=True)
class Points:
    """Tokenizers under one setting, controls left out.

    Attributes:
        setting: the generator and guidance scale.
        fitted: one row per tokenizer that fits are made of, means over repeats.
        held_out: the same of those kept for validation.
        sizes: the numbers of samples in words where rows differ in them, else empty.
    """

    setting: Setting
    fitted: pd.DataFrame
    held_out: pd.DataFrame
    sizes: str

    @property
    def all(self) -> pd.DataFrame:
        """Return both."""
        return pd.concat([self.fitted, self.held_out])

    def known(self, columns: Sequence[str]) -> tuple[str, ...]:
        """Return the columns of which any tokenizer has a value: a judge need not have judged every setting."""
        values = self.all
        return tuple(name for name in columns if values[name].notna().any())


def on_scale(table: StudyTable, logarithms: Sequence[str]) -> StudyTable:
    """Return the table with logarithms in these columns.

    Raises:
        UserError: one holds a number that is not positive.
    """
    rows = table.rows.copy()
    for name in logarithms:
        if (rows[name] <= 0).any():
            label = rows.loc[rows[name] <= 0, "tokenizer"].iloc[0]
            raise UserError(f"column {name} has no logarithm: it holds {rows[name].min():g} (tokenizer {label})")
        rows[name] = np.log(rows[name])
    return StudyTable(rows, table.columns)


def settings(table: StudyTable) -> list[Setting]:
    """Return the settings of a table in order of appearance, guidance ascending; rows without a generator have none."""
    found = table.rows[["generator", "guidance"]].drop_duplicates()
    order = {name: i for i, name in enumerate(found["generator"].fillna("").unique())}
    pairs = [
        Setting(str(name), None if np.isnan(scale) else float(scale))
        for name, scale in zip(found["generator"].fillna(""), found["guidance"], strict=True)
    ]
    return sorted(pairs, key=lambda one: (order[one.generator], one.guidance or 0.0))


def rows_of(table: StudyTable, setting: Setting, controls: bool = False) -> pd.DataFrame:
    """Return the rows of a setting: those of controls, or all others."""
    rows = table.rows
    scale = rows["guidance"].isna() if setting.guidance is None else rows["guidance"] == setting.guidance
    chosen = (rows["generator"].fillna("") == setting.generator) & scale
    return rows[chosen & ((rows["control"] != "") == controls)]


def averaged(rows: pd.DataFrame) -> pd.DataFrame:
    """Return one row per tokenizer, its index: means of numbers over repeats, the first of words."""
    how = {
        name: "mean" if pd.api.types.is_numeric_dtype(rows[name]) and rows[name].dtype != bool else "first"
        for name in rows
        if name not in ("tokenizer", *SEEDS)
    }
    means = rows.groupby("tokenizer", sort=False).agg(how)
    words = [name for name, what in how.items() if what == "first"]
    return means.astype(dict.fromkeys(words, object))  # plain strings compare much faster in numpy


def points(table: StudyTable, setting: Setting, held_out: tuple[str, ...] = ()) -> Points:
    """Return the points of a setting; ``held_out`` labels join those that the table marks."""
    rows = rows_of(table, setting)
    means = averaged(rows)
    kept_apart = means["held_out"].astype(bool) | means.index.isin(held_out)
    return Points(setting, means[~kept_apart], means[kept_apart], mixed_sizes(rows, table.names("count")))
