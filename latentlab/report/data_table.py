"""A sortable table over a source."""

from collections.abc import Sequence
from html import escape
from math import floor, log10
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from bokeh.models import CDSView, ColumnDataSource, DataTable, TableColumn

_DIGITS = 4


def data_table(
    source: "ColumnDataSource",
    view: "CDSView",
    words: Sequence[str],
    numbers: Sequence[str],
    name: str,
    height: int = 420,
) -> "DataTable":
    """Return a table of these columns; a click on a heading sorts, a click on a row selects it in every plot of the source."""
    from bokeh.models import DataTable

    columns = [_words(source, column) for column in words] + [_numbers(source, column) for column in numbers]
    return DataTable(
        source=source,
        view=view,
        columns=columns,
        index_position=None,
        frozen_columns=1,
        autosize_mode="none",
        sizing_mode="stretch_width",
        height=height,
        row_height=24,
        reorderable=False,
        name=name,
    )


def _words(source: "ColumnDataSource", column: str) -> "TableColumn":
    from bokeh.models import StringFormatter, TableColumn

    longest = max((len(value) for value in source.data[column]), default=0)
    width = _width(max(min(longest, 40), len(column)))
    return TableColumn(field=column, title=escape(column), formatter=StringFormatter(), width=width)  # titles are HTML


def _numbers(source: "ColumnDataSource", column: str) -> "TableColumn":
    from bokeh.models import NumberFormatter, TableColumn

    formatter = NumberFormatter(format=number_format(source.data[column]), nan_format="–", text_align="left")
    return TableColumn(
        field=column,
        title=escape(column),
        formatter=formatter,
        default_sort="descending",
        width=_width(max(len(column), 7)),
    )


def _width(characters: int) -> int:
    return 26 + 8 * characters


def number_format(values: Sequence[float]) -> str:
    """Return numbro's format that shows the largest of ``values`` with four digits, or fewer where they have fewer."""
    finite = np.asarray(values, dtype=np.float64)
    finite = finite[np.isfinite(finite)]
    largest = np.abs(finite).max(initial=0.0)
    most = min(max(_DIGITS - 1 - floor(log10(largest)), 1), 9) if largest else 0
    decimals = next((d for d in range(most) if np.allclose(finite.round(d), finite, rtol=1e-9, atol=0)), most)
    return "0." + "0" * decimals if decimals else "0"
