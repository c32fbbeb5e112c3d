"""Measured sampling paths for reading: a table of straightness and what goes with it."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from latentlab.report_table import markdown_row, number, print_tables

TRAJECTORIES_SCHEMA_VERSION = 2
"""Version of the form of ``results.json``; raised when a key changes its meaning or disappears."""

_COLUMNS = ("measurement", "value", "95 % interval", "n", "variant")

_MEANING = (
    "states are x / (signal + noise) at flow time signal / (signal + noise), 0 noise and 1 data: one frame for every process",
    "straightness: mean cosine between steps that follow each other; efficiency: distance of the ends / length of the path",
    "length ratio: of a step, 1 where it is as long as an even step on a straight line; averaged over time 1 / efficiency",
)

_GAUSSIAN = (
    "of the exact flow, squared speed + irreducible variance is the same at all times: the correlation is near -1; viv is the "
    "variance of Gaussian classes"
)


def table_rows(results: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    """Yield the cells of each measurement and, indented below it, of its companions; then those of studies beside this one."""
    for study in (results, *results["beside"]):
        for one in study["measurements"]:
            yield one["name"] + _whose(study, results), *_estimate(one), f"{one['n']:,}", one["variant"]
            for name, companion in one["companions"].items():
                yield f"  {name}", *_estimate(companion), "", ""


def _estimate(one: Mapping[str, Any]) -> tuple[str, str]:
    value = "-" if one["value"] is None else number(one["value"])
    return value, "-" if one["interval"] is None else " .. ".join(map(number, one["interval"]))


def _remarks(results: Mapping[str, Any]) -> list[str]:
    """Return what the columns mean and the warnings, one line each."""
    studies = (results, *results["beside"])
    gaussian = [_GAUSSIAN] if any(len(study["measurements"]) > 1 for study in studies) else []
    measured = [(one, _whose(study, results)) for study in studies for one in study["measurements"]]
    warnings = [f"{one['name']}{whose}: {warning}" for one, whose in measured for warning in one["warnings"]]
    return [*_MEANING, *gaussian, *warnings]


def _whose(study: Mapping[str, Any], results: Mapping[str, Any]) -> str:
    """Return of which generator the measurements are, where there are several."""
    return f" of {study['name']}" if results["beside"] else ""


def _heading(results: Mapping[str, Any]) -> str:
    steps = len(results["flow_times"]) - 1
    return f"Sampling paths of {results['name']}: {results['n']:,} paths of {steps} steps, seed {results['seed']}"


def summary_lines(results: Mapping[str, Any]) -> list[str]:
    """Return the study in Markdown: table, what it means, figure."""
    lines = [f"# {_heading(results)}", "", markdown_row(_COLUMNS), markdown_row(["---"] * len(_COLUMNS))]
    lines += [*map(markdown_row, table_rows(results)), ""]
    lines += [f"* {line}" for line in _remarks(results)]
    if results["latents"]:
        lines.append(
            f"* irreducible variance of the {results['latents']['n']:,} latents in {results['latents']['path']}"
        )
    if results["command"]:
        lines.append(f"* made by `{results['command']}`")
    return [*lines, "", *(f"![{Path(file).stem}]({file})" for file in results["figures"] if file.endswith(".png"))]


def print_trajectories(results: Mapping[str, Any]) -> None:
    """Print the table and what it means to stdout; plain text unless it is a terminal."""
    table = (_heading(results), _COLUMNS, list(table_rows(results)))
    print_tables([table], _remarks(results), right=("value", "95 % interval", "n"))
