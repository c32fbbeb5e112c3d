"""Flat records of JSON files as plain tables of a page."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any

from latentlab.report.contents import Records

_MOST = 200


@dataclass(frozen=True)
class PlainTable:
    """A table in words: its title, its columns, its cells, and how many records found no place."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    left_out: int = 0


def plain_table(title: str, records: Records, columns: Sequence[str]) -> PlainTable | None:
    """Return ``columns`` of the first records; None where there are no records."""
    if not records:
        return None
    rows = tuple(tuple(shown(record.get(column)) for column in columns) for record in records[:_MOST])
    return PlainTable(title, tuple(columns), rows, max(len(records) - _MOST, 0))


def shown(value: Any) -> str:
    """Return a value of a JSON file as a reader wants it: numbers with four digits, lists with commas, nothing as a dash."""
    if value is None or value == "":
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}" if isfinite(value) else "–"
    if isinstance(value, dict):
        return ", ".join(f"{key} {shown(item)}" for key, item in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(shown(item) for item in value)
    return str(value)
