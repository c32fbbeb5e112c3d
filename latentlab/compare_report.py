"""A comparison for reading: one table for the terminal, a Markdown summary and a CSV file with every number."""

import csv
import io
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from latentlab.compare import LEVEL, Comparison, Difference
from latentlab.files import write_json, write_text
from latentlab.measurement import Estimate, Measurement
from latentlab.report_table import markdown_row, number, print_tables

_EASIER = {"lower": "lower", "higher": "higher", "none": "-"}
_MARKS = {"best": " *", "level": " ="}
_STYLES = {"best": "bold green", "level": "green"}
_FIRST_COLUMNS = ("measurement", "easier")


def print_comparison(comparison: Comparison, title: str, file: TextIO | None = None) -> None:
    """Print table, legend and remarks to ``file`` (default: stdout); plain text unless it is a terminal."""
    from rich.text import Text

    rows: list[list[str | Text]] = []
    for metric in comparison.metrics:
        styles = {name: _STYLES[place] for name, place in comparison.standing(metric).items() if place in _STYLES}
        cells = [Text(_cell(comparison, metric, name), style=styles.get(name, "")) for name in comparison.names]
        rows.append([metric, _direction(comparison, metric), *cells])
    table = (title, [*_FIRST_COLUMNS, *comparison.names], rows)
    print_tables([table], [legend(comparison), *remarks(comparison)], right=comparison.names, file=file)


def legend(comparison: Comparison) -> str:
    """Return what the marks of the table mean, and how differences were tested."""
    tested = [one for one in comparison.differences if one.p is not None]
    alone = tested and not any(one.paired for one in tested)
    how = "bootstrap of each by itself, as they are not known to be of the same images" if alone else "paired bootstrap"
    return f"* easiest; = not distinguishable from it ({how}, Holm, {LEVEL:.0%}); no mark: worse, or not tested. Intervals: 95 %."


def write_comparison(comparison: Comparison, title: str, folder: Path, figures: list[str]) -> None:
    """Write ``comparison.json``, ``comparison.csv`` and ``summary.md`` into ``folder``, each atomically."""
    write_json(folder / "comparison.json", comparison.to_dict())
    write_text(folder / "comparison.csv", as_csv(comparison))
    head = [*_FIRST_COLUMNS, *comparison.names]
    lines = [f"# {title}", "", markdown_row(head), markdown_row(["---"] * len(head))]
    for metric in comparison.metrics:
        cells = [_cell(comparison, metric, name).replace(" *", " \\*") for name in comparison.names]
        lines.append(markdown_row([metric, _direction(comparison, metric), *cells]))
    lines += ["", legend(comparison).replace("*", "\\*"), "", *(f"* {line}" for line in remarks(comparison)), ""]
    lines += ["## Differences", "", *_difference_table(comparison), ""]
    lines += [f"![{Path(figure).stem}]({figure})" for figure in figures if figure.endswith(".png")]
    write_text(folder / "summary.md", "\n".join(lines).rstrip() + "\n")


def as_csv(comparison: Comparison) -> str:
    """Return every value, companions included, one per line: measurement, companion, tokenizer, value, interval, n, standing."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(
        ["measurement", "companion", "tokenizer", "value", "low", "high", "easier", "n", "standing", "variant"]
    )
    for metric in comparison.metrics:
        standing = comparison.standing(metric)
        for name, m in comparison.column(metric).items():
            for companion, estimate in _estimates(m):
                low, high = estimate.interval or ("", "")
                said = "" if companion else standing.get(name, "")
                writer.writerow([metric, companion, name, estimate.value, low, high, m.direction, m.n, said, m.variant])
    return text.getvalue()


def remarks(comparison: Comparison) -> list[str]:
    """Return what must not be compared, what is missing and what the measurements warn about, one line each."""
    lines = [f"{metric}: values are not compared: {reason}" for metric, reason in comparison.refused.items()]
    for metric in comparison.metrics:
        missing = [name for name in comparison.names if name not in comparison.column(metric)]
        if missing:
            lines.append(f"{metric}: not measured for {', '.join(missing)}: see its own summary")
    warnings: dict[tuple[str, str], list[str]] = {}
    for name in comparison.names:
        for m in comparison.measurements[name].values():
            for warning in m.warnings:
                warnings.setdefault((m.name, warning), []).append(name)
    for (metric, warning), names in warnings.items():
        who = "" if len(names) == len(comparison.names) else f" ({', '.join(names)})"
        lines.append(f"{metric}{who}: {warning}")
    return lines


def _estimates(m: Measurement) -> Iterator[tuple[str, Estimate]]:
    yield "", Estimate(m.value, m.interval)
    yield from m.companions.items()


def _direction(comparison: Comparison, metric: str) -> str:
    return _EASIER[next(iter(comparison.column(metric).values())).direction]


def _cell(comparison: Comparison, metric: str, name: str) -> str:
    m = comparison.measurements[name].get(metric)
    if m is None:
        return "-"
    interval = "" if m.interval is None else f" [{number(m.interval[0])}, {number(m.interval[1])}]"
    return f"{number(m.value)}{interval}{_MARKS.get(comparison.standing(metric).get(name, ''), '')}"


def _difference_table(comparison: Comparison) -> list[str]:
    head = ["measurement", "pair", "difference", "95 % interval", "p", "p (Holm)", ""]
    rows = [markdown_row(head), markdown_row(["---"] * len(head))]
    return rows + [markdown_row(_difference_cells(d)) for d in comparison.differences]


def _difference_cells(d: Difference) -> list[str]:
    interval = "-" if d.interval is None else f"{number(d.interval[0])} .. {number(d.interval[1])}"
    p, adjusted = ("-" if value is None else f"{value:.2g}" for value in (d.p, d.adjusted))
    said = "not tested" if d.adjusted is None else "differ" if d.significant else "not distinguishable"
    return [d.measurement, f"{d.first} - {d.second}", number(d.value), interval, p, adjusted, said]
