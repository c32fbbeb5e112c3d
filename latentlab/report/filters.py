"""Widgets that choose which rows of a source are shown, everywhere at once."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from latentlab.report.scripts import script

if TYPE_CHECKING:
    from bokeh.models import CDSView, ColumnDataSource, FlexBox, Select


@dataclass(frozen=True)
class Choice:
    """A filter by one column of words: its values, and the one chosen at first (empty: all)."""

    column: str
    title: str
    values: tuple[str, ...]
    chosen: str = ""


@dataclass(frozen=True)
class Filters:
    """The widgets in a row, the view that they steer, and the widgets by column."""

    row: "FlexBox"
    view: "CDSView"
    selects: "dict[str, Select]"


def filters_of(source: "ColumnDataSource", choices: Sequence[Choice], searched: Sequence[str], name: str) -> Filters:
    """Return widgets for ``choices`` and a search through the columns ``searched``.

    Args:
        source: whose rows are filtered.
        choices: one drop-down each; those with a single value are left out.
        searched: columns of words; a row stays where one of them contains the text.
        name: begins the names of the models, by which tests find them.
    """
    from bokeh.layouts import row
    from bokeh.models import BooleanFilter, CDSView, CustomJS, Div, Select, TextInput

    shown = [choice for choice in choices if len(choice.values) > 1]
    selects = {
        choice.column: Select(
            title=choice.title,
            value=choice.chosen,
            options=[("", "all"), *((value, value) for value in choice.values)],
            width=150,
            name=f"{name}-{choice.column}",
        )
        for choice in shown
    }
    search = TextInput(title="search", placeholder=" or ".join(searched), width=200, name=f"{name}-search")
    kept = [all(source.data[c.column][i] == c.chosen or not c.chosen for c in shown) for i in range(_length(source))]
    chosen = BooleanFilter(booleans=kept, name=f"{name}-rows")
    count = Div(text=f"{sum(kept)} of {len(kept)} rows", name=f"{name}-count", margin=(26, 5, 5, 5))
    update = CustomJS(
        args={
            "source": source,
            "filter": chosen,
            "selects": selects,
            "search": search,
            "searched": list(searched),
            "count": count,
        },
        code=script("filter_rows.js"),
    )
    for widget in (*selects.values(), search):
        widget.js_on_change("value" if widget is not search else "value_input", update)
    widgets = row(*selects.values(), search, count, styles={"flex-wrap": "wrap"}, sizing_mode="stretch_width")
    return Filters(widgets, CDSView(filter=chosen), selects)


def _length(source: "ColumnDataSource") -> int:
    return len(next(iter(source.data.values()), ()))
