"""``latentlab report``: the results of a study as one HTML file."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from latentlab.cli.options import AsJson


def report(
    results: Annotated[
        Path,
        typer.Argument(
            metavar="RESULTS", help="Folder of a study: results.csv, columns.json and what lies beside them."
        ),
    ],
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="The HTML file (default: report.html in RESULTS).")
    ] = None,
    json: AsJson = False,
) -> None:
    """Write one HTML file with everything a study found; it opens from disk and needs no network.

    Shows a sortable and filterable table, linked scatter plots, correlations, verdicts on claims, pictures, metric cards and
    provenance. What RESULTS lacks (analysis.json, claims.json, plan.yaml, pictures) is named, and how to get it.
    """
    from latentlab.report.page import FILE, build_report, save_report

    built = build_report(results)
    file = save_report(built, out or results / FILE)
    size = file.stat().st_size
    news = sys.stderr if json else sys.stdout
    if json:
        import json as codec

        told = {"report": str(file), "bytes": size, "missing": built.missing, "problems": built.problems}
        print(codec.dumps(told, indent=1))
    print(f"report   {file} ({size / 1e6:.1f} MB)", file=news)
    if built.missing:
        print(f"missing  {', '.join(built.missing)} (the report says how to get them)", file=news)
    for problem in built.problems:
        print(f"damaged  {problem}", file=news)
