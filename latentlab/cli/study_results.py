"""How a study ends on the command line: its tables or JSON, where the files are, and the exit code."""

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import typer


def report_study(
    results: Mapping[str, Any],
    folder: Path,
    csv: str,
    json: bool,
    show: Callable[[Mapping[str, Any]], None],
    failures: Callable[[Mapping[str, Any]], list[str]],
) -> None:
    """Print the results, then where everything is.

    Args:
        results: as in ``results.json``.
        folder: run directory.
        csv: name of the table for machines.
        json: print the results as JSON to stdout, and news to stderr.
        show: prints the tables.
        failures: what failed, one line each.

    Raises:
        typer.Exit: with code 1 when something failed.
    """
    if json:
        import json as codec

        print(codec.dumps(results, indent=1, allow_nan=False))
    else:
        show(results)
    news = sys.stderr if json else sys.stdout
    print(f"results  {folder / 'results.json'}", file=news)
    print(f"tables   {folder / 'table.md'} and {csv}", file=news)
    print(f"figures  {folder / 'figures'} ({len(results['figures'])} files)", file=news)
    if failures(results):
        raise typer.Exit(1)
