"""The learned geometry for reading: one line per token table."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from latentlab.report_table import markdown_row, print_tables

GEOMETRY_SCHEMA_VERSION = 1
"""Version of the form of ``results.json``; raised when a key changes its meaning or disappears."""

_COLUMNS = (
    "table",
    "codes x width (sub-vector)",
    "norm",
    "stored norm",
    "nearest angle",
    "of uniform codes",
    "ratio",
    "ratio per sub-vector",
    "mean cosine",
    "effective rank",
    "participation",
    "shared neighbours (chance)",
)

_MEANING = (
    "angles in degrees, to the nearest other code; ratio: over that of codes drawn uniformly from the same spheres, above 1 is "
    "further apart than chance",
    "effective rank: exp(entropy of singular values); participation: (sum of eigenvalues)^2 / sum of squares; at most the width",
    "shared neighbours: of the nearest codes, the share that is also nearest in the tokenizer's own codebook",
)


def table_rows(results: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Return the cells of the table."""
    return [_cells(name, table) for name, table in results["tables"].items()]


def _cells(name: str, table: Mapping[str, Any]) -> tuple[str, ...]:
    whole = table["separation"]
    return (
        name,
        f"{table['codes']:,} x {table['width']} ({table['subvector_size']})"
        + ("" if table["normalise"] else ", no sphere"),
        f"{table['norms']['rows']['mean']:.3g}",
        f"{table['norms']['raw_rows']['mean']:.3g}",
        f"{whole['nearest_angle']['mean']:.2f}",
        f"{whole['uniform_nearest_angle']['mean']:.2f}",
        f"{whole['ratio']:.3f}",
        ", ".join(f"{part['ratio']:.2f}" for part in table["subvector_separation"]),
        f"{whole['mean_cosine']:.4f}",
        f"{table['effective_rank']:.2f}",
        f"{table['participation_ratio']:.2f}",
        _agreement(table["codebook_agreement"]),
    )


def _agreement(agreement: Mapping[str, Any] | None) -> str:
    """Return the share among as many neighbours as were compared."""
    if not agreement:
        return "-"
    k = max(agreement, key=int)
    return f"{agreement[k]['overlap']:.3f} of {k} ({agreement[k]['chance']:.3f})"


def summary_lines(results: Mapping[str, Any]) -> list[str]:
    """Return the study in Markdown: table, what its columns mean, figures."""
    lines = [
        "# Learned geometry",
        "",
        markdown_row(_COLUMNS),
        markdown_row(["---"] * len(_COLUMNS)),
        *map(markdown_row, table_rows(results)),
        "",
    ]
    lines += [f"* {line}" for line in _MEANING]
    if results["command"]:
        lines.append(f"* made by `{results['command']}`")
    return [*lines, "", *(f"![{Path(file).stem}]({file})" for file in results["figures"] if file.endswith(".png"))]


def print_geometry(results: Mapping[str, Any]) -> None:
    """Print the table and what it means to stdout; plain text unless it is a terminal."""
    print_tables([("Learned geometry", _COLUMNS, table_rows(results))], _MEANING)
