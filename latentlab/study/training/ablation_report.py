"""An ablation for reading: our numbers and the published ones side by side, each under a heading that says what it is."""

import csv
import io
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from latentlab.files import write_text
from latentlab.report_table import markdown_row, print_tables
from mind.ablation import Row

ABLATION_SCHEMA_VERSION = 2
"""Version of the form of an ablation's ``results.json``; raised when a key changes its meaning or disappears."""

_LEAST_RANKED = 3
"""Fewer rows than this have no order worth comparing."""


_OURS: dict[str, Callable[[Mapping[str, Any]], float | None]] = {
    "distance": lambda cell: cell["distance"]["value"],
    "precision": lambda cell: cell["precision"]["value"],
    "recall": lambda cell: cell["recall"]["value"],
    "train loss": lambda cell: cell["losses"].get("loss"),
    "mean latent norm": lambda cell: cell["geometry"]["latent_norm"] if cell["training"] else None,
    "nearest angle (degrees)": lambda cell: cell["geometry"]["nearest_angle"] if cell["training"] else None,
}
"""Our columns; those about training are empty for rows that only sample."""


def summarise_rows(rows: Sequence[Row], cells: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return every row with the cells of its seeds and, per column, the values of those that did not fail."""
    summaries = []
    for row in rows:
        own = [cell for cell in cells if cell["label"] == row.label]
        done = [cell for cell in own if cell["error"] is None]
        values = {name: [v for cell in done if (v := of(cell)) is not None] for name, of in _OURS.items()}
        summaries.append({**row.model_dump(), "cells": own, "values": values})
    return summaries


def write_tables(results: Mapping[str, Any], folder: Path) -> None:
    """Write ``table.md`` and ``table.csv``."""
    write_text(folder / "table.md", "\n".join(markdown_lines(results)) + "\n")
    write_text(folder / "table.csv", csv_text(results))


def figure_rows(results: Mapping[str, Any]) -> tuple[list[dict[str, Any]], str, str]:
    """Return the rows of `figures.ablation_table`, and the labels of its two axes."""
    published = results["published"]
    rows = []
    for row in results["rows"]:
        values = row["values"]["distance"]
        interval = next((cell["distance"]["interval"] for cell in row["cells"] if cell["error"] is None), None)
        theirs = row["published"].get(published["compare"]) if published else None
        rows.append({"label": row["label"], "values": values, "interval": interval, "published": theirs})
    heading = f"published {published['columns'][published['compare']]}" if published else ""
    return rows, f"ours: {distance_name(results)}", heading


def distance_name(results: Mapping[str, Any]) -> str:
    """Return what our distance is called, with what decides its size: ``fd_efficientnet_lite0 on fashion:test (n=2,000)``."""
    done = [cell for row in results["rows"] for cell in row["cells"] if cell["error"] is None]
    name = done[0]["distance"]["name"] if done else f"Frechet distance on {results['extractor']}"
    return f"{name} on {results['reference']['name']} (n={results['samples']:,})"


def rank_agreement(results: Mapping[str, Any]) -> tuple[float, int] | None:
    """Return Spearman's correlation between the order of our rows and of the published ones, and over how many rows.

    None where fewer than three rows have both, or one side has no order.
    """
    from scipy.stats import rankdata

    pairs = [(np.mean(row["values"]), row["published"]) for row in figure_rows(results)[0] if row["values"]]
    both = [(ours, theirs) for ours, theirs in pairs if theirs is not None]
    if len(both) < _LEAST_RANKED:
        return None
    ranks = rankdata(np.array(both), axis=0)
    if (ranks.std(axis=0) == 0).any():
        return None
    return float(np.corrcoef(ranks.T)[0, 1]), len(both)


def columns(results: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """Return our columns that have a number in some row, and the keys of the published ones."""
    ours = [name for name in _OURS if name == "distance" or any(row["values"][name] for row in results["rows"])]
    return ours, list(results["published"]["columns"]) if results["published"] else []


def table_rows(results: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Return headings and cells of the table."""
    ours, theirs = columns(results)
    distance = f"ours: {distance_name(results)}"
    headings = ["row", *(distance if name == "distance" else f"ours: {name}" for name in ours)]
    headings += [f"published: {results['published']['columns'][key]}" for key in theirs]
    lines = []
    for number, row in enumerate(results["rows"], 1):
        mark = f" [{number}]" if row["note"] else ""
        cells = [_ours_cell(row, name) for name in ours]
        lines.append([row["label"] + mark, *cells, *(_number(row["published"].get(key)) for key in theirs)])
    return headings, lines


def _ours_cell(row: Mapping[str, Any], name: str) -> str:
    """Return one value with its interval, several as mean and range."""
    values = row["values"][name]
    if not values:
        failed = name == "distance" and all(cell["error"] is not None for cell in row["cells"])
        return "failed" if failed else "-"
    text = _number(float(np.mean(values)))
    if len(values) > 1:
        return f"{text} ({_number(min(values))} .. {_number(max(values))})"
    done = next(cell for cell in row["cells"] if cell["error"] is None)
    interval = done["distance"]["interval"] if name == "distance" else None
    return f"{text} [{_number(interval[0])}, {_number(interval[1])}]" if interval else text


def markdown_lines(results: Mapping[str, Any]) -> list[str]:
    """Return the ablation in Markdown: table, notes, failures, what was run, figures."""
    headings, rows = table_rows(results)
    lines = [
        f"# {results['title']}",
        "",
        markdown_row(headings),
        markdown_row(["---"] * len(headings)),
        *map(markdown_row, rows),
        "",
    ]
    lines += [f"* {line}" for line in remarks(results)]
    pictures = [f"![{Path(figure).stem}]({figure})" for figure in results["figures"] if figure.endswith(".png")]
    return [*lines, "", *pictures]


def remarks(results: Mapping[str, Any]) -> list[str]:
    """Return what a reader must know: what the two sides are, notes of rows, failures, warnings."""
    lines = [_ours_remark(results)]
    if published := results["published"]:
        lines.append(f"published: {published['source']}; other images and other features, so only the order compares")
    if agreement := rank_agreement(results):
        name = results["published"]["columns"][results["published"]["compare"]]
        lines.append(
            f"order of our rows against published {name}: Spearman {agreement[0]:.2f} over {agreement[1]} rows"
        )
    lines += [f"[{i}] {row['label']}: {row['note']}" for i, row in enumerate(results["rows"], 1) if row["note"]]
    lines += failures(results)
    lines += sorted({text for row in results["rows"] for cell in row["cells"] for text in _warnings(cell)})
    return [*lines, f"made by `{results['command']}`"] if results["command"] else lines


def _ours_remark(results: Mapping[str, Any]) -> str:
    what = (
        f"raw weights of training configuration {results['base']}"
        if results["base"]
        else f"weights {results['weights']}"
    )
    seeds = results["seeds"]
    spread = f"mean (range) over {seeds} seeds" if seeds > 1 else "one seed; brackets: 95 % over images"
    return f"ours: {what}, {results['samples']:,} samples per row, {spread}"


def failures(results: Mapping[str, Any]) -> list[str]:
    """Return one line about every cell that failed, with where its log is."""
    lines = []
    for row in results["rows"]:
        for cell in row["cells"]:
            if cell["error"] is not None:
                log = f" (log: {cell['log']})" if cell["log"] else ""
                lines.append(f"failed: {row['label']}, seed {cell['seed']}: {cell['error']}{log}")
    return lines


def _warnings(cell: Mapping[str, Any]) -> list[str]:
    return [] if cell["error"] is not None else list(cell["distance"]["warnings"])


def csv_text(results: Mapping[str, Any]) -> str:
    """Return one line per row: mean, least and greatest of our columns, then the published ones; empty where there is none."""
    ours, theirs = columns(results)
    plain = {name: name.partition(" (")[0].replace(" ", "_") for name in ours}
    stream = io.StringIO()
    table = csv.writer(stream, lineterminator="\n")
    parts = [f"ours_{plain[name]}{part}" for name in ours for part in ("", "_least", "_greatest")]
    table.writerow(["row", *parts, *(f"published_{key}" for key in theirs), "failed"])
    for row in results["rows"]:
        cells: list[Any] = []
        for name in ours:
            values = row["values"][name]
            cells += [np.mean(values), min(values), max(values)] if values else ["", "", ""]
        failed = sum(cell["error"] is not None for cell in row["cells"])
        table.writerow([row["label"], *cells, *(row["published"].get(key, "") for key in theirs), failed])
    return stream.getvalue()


def print_ablation(results: Mapping[str, Any]) -> None:
    """Print the table and the remarks to stdout; plain text unless it is a terminal."""
    print_tables([(results["title"], *table_rows(results))], remarks(results))


def _number(value: float | None) -> str:
    return "-" if value is None or not math.isfinite(value) else f"{value:.4g}"
