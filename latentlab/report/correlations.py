"""The correlations of the analysis, with intervals and adjusted p values, as a filterable table."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pandas as pd

from latentlab.report.contents import Records
from latentlab.report.data_table import data_table
from latentlab.report.filters import Choice, Filters, filters_of
from latentlab.report.records import shown

if TYPE_CHECKING:
    from bokeh.models import DataTable

_WORDS = ("predictor", "target", "generator", "guidance", "method", "given", "within", "left_out_most", "warnings")
_NUMBERS = ("value", "low", "high", "n", "p", "p_adjusted", "left_out_low", "left_out_high")
_FILTERS = ("target", "generator", "guidance", "method", "given", "within")
_MOST = 20_000
"""Rows that the page can hold; the analysis keeps the rest."""


@dataclass(frozen=True)
class Correlations:
    """Filters, table, and how many records found no place."""

    filters: Filters
    table: "DataTable"
    left_out: int


def correlations_table(records: Records) -> Correlations | None:
    """Return the records as a table; None where there are none. At first: raw rank correlations of the first target."""
    from bokeh.models import ColumnDataSource

    if not records:
        return None
    rows = _rows(records[:_MOST])
    source = ColumnDataSource({name: rows[name].to_numpy() if name in _NUMBERS else list(rows[name]) for name in rows})
    choices = [Choice(name, name, values, _first(name, values)) for name in _FILTERS if (values := _values(rows[name]))]
    filters = filters_of(source, choices, ("predictor", "target"), "correlations")
    words = [name for name in _WORDS if any(rows[name])]
    numbers = [name for name in _NUMBERS if rows[name].notna().any()]
    return Correlations(
        filters,
        data_table(source, filters.view, words, numbers, "correlations-table", height=300),
        max(len(records) - _MOST, 0),
    )


def _rows(records: Records) -> pd.DataFrame:
    """Return words as str and numbers as float64."""
    words = {name: [_word(record.get(name)) for record in records] for name in _WORDS}
    words["given"] = [_word(record.get("covariates")) or "nothing (raw)" for record in records]
    words["within"] = [word or "all tokenizers" for word in words["within"]]
    raw = pd.DataFrame({name: [record.get(name) for record in records] for name in _NUMBERS}, dtype=object)
    numbers = raw.apply(pd.to_numeric, errors="coerce").astype("float64")
    return pd.concat([pd.DataFrame(words), numbers], axis=1)


def _word(value: Any) -> str:
    return "" if value in (None, "", []) else shown(value)


def _values(column: pd.Series) -> tuple[str, ...]:
    return tuple(value for value in column.unique() if value)


def _first(name: str, values: Sequence[str]) -> str:
    if name == "method":
        return "spearman" if "spearman" in values else ""
    return values[0]
