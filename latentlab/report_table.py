"""The results of an analysis for reading: a table for the terminal and a short Markdown summary; and such tables of others."""

import math
import sys
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from latentlab.files import write_text
from latentlab.measurement import Interval, Measurement
from latentlab.results import Results

if TYPE_CHECKING:
    from rich.text import Text

_EASIER = {"lower": "lower", "higher": "higher", "none": "-"}
_COLUMNS = ("measurement", "value", "95 % interval", "easier", "n", "variant")
_WIDE = 200
"""Characters in a line where nobody watches."""

PlainTable = tuple[str, Sequence[str], Sequence[Sequence[str]]]
"""Title, headings and rows."""

_StyledTable = tuple[str, Sequence[str], Sequence[Sequence["str | Text"]]]


def print_results(results: Results, file: TextIO | None = None) -> None:
    """Print table, warnings and refusals to ``file`` (default: stdout); plain text unless it is a terminal."""
    table = (_heading(results), _COLUMNS, list(_rows(results.measurements)))
    print_tables([table], _remarks(results), right=("value", "95 % interval", "n"), file=file)


def print_tables(
    tables: Iterable[_StyledTable],
    remarks: Iterable[str],
    heading: str = "",
    *,
    right: Collection[str] = (),
    file: TextIO | None = None,
) -> None:
    """Print tables of words, a line above them and remarks below; plain text unless it is on a terminal.

    Args:
        tables: each with title, headings and rows; a row that is indented belongs to the one above and is dimmed.
        remarks: one line each.
        heading: the line above.
        right: headings of the columns that are set to the right.
        file: where to; None for stdout.
    """
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    file = file or sys.stdout
    console = Console(file=file, width=None if file.isatty() else _WIDE, highlight=False, markup=False)
    if heading:
        console.print(Text(heading))
    for title, headings, rows in tables:
        shown = Table(title=title, title_justify="left")
        for one in headings:
            shown.add_column(Text(one), justify="right" if one in right else "left", overflow="fold")
        for row in rows:
            cells = [Text(cell) if isinstance(cell, str) else cell for cell in row]
            shown.add_row(*cells, style="dim" if cells[0].plain.startswith(" ") else None)
        console.print(shown)
    for line in remarks:
        console.print(Text(line), soft_wrap=True)  # one line each, also for grep


def write_summary(results: Results, folder: Path) -> None:
    """Write ``summary.md`` with the table, remarks and figures into ``folder``, atomically."""
    lines = [f"# {results.title}", "", _heading(results), ""]
    lines += [markdown_row(_COLUMNS), markdown_row(["---"] * len(_COLUMNS))]
    lines += [markdown_row(row) for row in _rows(results.measurements)]
    lines += ["", *(f"* {_escape(line)}" for line in _remarks(results)), ""]
    lines += [f"![{Path(figure).stem}]({figure})" for figure in results.figures if figure.endswith(".png")]
    write_text(folder / "summary.md", "\n".join(lines).rstrip() + "\n")


def _heading(results: Results) -> str:
    shape = " x ".join(map(str, results.latents["shape"]))
    return f"{results.title}: {results.latents['n']:,} latents of {shape}, seed {results.seed}"


def _rows(measurements: Sequence[Measurement]) -> Iterator[tuple[str, ...]]:
    """Yield the cells of each measurement and, indented below it, of its companions."""
    for m in measurements:
        yield m.name, number(m.value), _interval(m.interval), _EASIER[m.direction], f"{m.n:,}", m.variant
        for name, estimate in m.companions.items():
            yield f"  {name}", number(estimate.value), _interval(estimate.interval), "", "", ""


def _remarks(results: Results) -> list[str]:
    """Return predictions, warnings, refusals and notes, one line each."""
    lines = [prediction["text"] for prediction in results.predictions]
    lines += [f"{m.name}: {warning}" for m in results.measurements for warning in m.warnings]
    lines += [f"{name}: not measured: {reason}" for name, reason in results.refused.items()]
    if results.skipped_images:
        shown = ", ".join(results.skipped_images[:3])
        more = ", ..." if len(results.skipped_images) > 3 else ""
        lines.append(f"{len(results.skipped_images)} unreadable images were left out: {shown}{more}")
    return lines + list(results.notes)


def number(value: float) -> str:
    """Return ``value`` with four significant digits."""
    return f"{value:.4g}" if math.isfinite(value) else "-"


def _interval(interval: Interval | None) -> str:
    return "-" if interval is None else f"{number(interval[0])} .. {number(interval[1])}"


def markdown_row(cells: Sequence[str]) -> str:
    """Return one line of a Markdown table."""
    return "| " + " | ".join(_escape(cell) for cell in cells) + " |"


def _escape(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")
