"""The page: everything a results folder holds, in one HTML file."""

import base64
import hashlib
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import latentlab
from latentlab.errors import UserError
from latentlab.files import write_text
from latentlab.report.cards import cards_of, measurements_in
from latentlab.report.contents import ANALYSIS, CLAIMS, PICTURES, PLAN, Contents, read_contents
from latentlab.report.interactive import interactive_parts
from latentlab.report.pictures import Picture, read_pictures
from latentlab.report.points import Points, incomplete_rows, points_of
from latentlab.report.records import PlainTable, plain_table
from latentlab.report.scripts import script
from latentlab.report.verdicts import counts_of, verdicts_of
from latentlab.study.table import CELL

FILE = "report.html"
_ANALYSES = (
    (
        "The primary question: rank correlations over all settings",
        "primary",
        "target predictor covariates settings n value low high p_adjusted change change_low change_high most_moved_by without_it",
    ),
    ("Pairs of predictors", "pairs", "target generator guidance first second n r2 r2_adjusted r2_cross_validated"),
    ("Prediction", "prediction", "target generator guidance predictors scheme scale n r2 rmse spearman"),
    ("Do generators agree?", "stability", "target first second n spearman kendall low high"),
    ("Do judges agree?", "judges", "first second generator guidance n spearman kendall low high"),
    (
        "Noise of the targets",
        "noise",
        "target scale generator guidance n repeats between_sd within_sd tokenizer_seed_sd ceiling",
    ),
    (
        "Did measurements react as quality did?",
        "reactions",
        "predictor kind tokenizer of moved_sd measurement quality_change quality_error quality says",
    ),
    ("What controls changed", "controls", "tokenizer control of generator guidance name base changed relative"),
)
"""Heading, kind of records, and columns of the tables below the correlations."""


@dataclass(frozen=True)
class Report:
    """The page, and what a reader must know about it.

    Attributes:
        html: the file.
        missing: optional parts that the folder lacks.
        problems: parts that are damaged and left out, a sentence each.
    """

    html: str
    missing: tuple[str, ...]
    problems: tuple[str, ...]


def write_report(folder: Path, out: Path | None = None) -> Path:
    """Write the report of a results folder as one HTML file that fetches nothing; the same folder gives the same bytes.

    Args:
        folder: with ``results.csv`` and ``columns.json``; ``analysis.json``, ``claims.json``, ``plan.yaml`` and ``pictures/``
            are shown where they are there.
        out: the file; by default ``report.html`` in the folder.

    Raises:
        UserError: the table is missing or damaged, or the file cannot be written.
    """
    return save_report(build_report(folder), out or folder / FILE)


def save_report(report: Report, file: Path) -> Path:
    """Write a report to a file, whole or not at all."""
    if file.is_dir():
        raise UserError(f"{file} is a folder: name the HTML file to write")
    write_text(file, report.html)
    return file


def build_report(folder: Path) -> Report:
    """Return the report of a results folder (see `write_report`)."""
    contents = read_contents(folder)
    points = points_of(contents.table)
    if points.rows.empty or not points.axes:
        raise UserError(f"{folder}: its table has no cell with numbers, so there is nothing to report")
    problems = list(contents.problems)
    pictures = read_pictures(folder, dict.fromkeys(points.rows["tokenizer"]), points.generators, problems)
    html = _rendered(
        contents=contents,
        problems=problems,
        facts=_facts(contents, points),
        pictures=_by_tokenizer(pictures),
        interactive=interactive_parts(contents, points, pictures),
    )
    return Report(html, _missing(contents, pictures), tuple(problems))


def _facts(contents: Contents, points: Points) -> list[tuple[str, str]]:
    """Return the size of the study, fact by fact."""
    rows = points.rows
    return [
        ("tokenizers", f"{rows['tokenizer'].nunique()} in {rows['cluster'].nunique()} clusters"),
        ("generators", ", ".join(points.generators)),
        ("guidance scales", ", ".join(points.scales)),
        ("rows", f"{len(contents.table.rows)}, {len(incomplete_rows(contents.table))} unfinished or failed"),
    ]


def _by_tokenizer(pictures: list[Picture]) -> dict[str, list[Picture]]:
    grouped: dict[str, list[Picture]] = {}
    for picture in pictures:
        grouped.setdefault(picture.tokenizer, []).append(picture)
    return grouped


def _missing(contents: Contents, pictures: list[Picture]) -> tuple[str, ...]:
    parts = {ANALYSIS: contents.analysis, CLAIMS: contents.claims, PLAN: contents.plan, PICTURES: pictures}
    return tuple(name for name, part in parts.items() if part is None or part == [])


def _analyses(contents: Contents) -> list[PlainTable]:
    tables = (plain_table(title, contents.records(kind), columns.split()) for title, kind, columns in _ANALYSES)
    return [table for table in tables if table]


def _incomplete(contents: Contents) -> PlainTable | None:
    columns = [*CELL, "error"]
    rows = incomplete_rows(contents.table).reindex(columns=columns)
    records = [dict(zip(columns, row, strict=True)) for row in rows.itertuples(index=False)]
    return plain_table("Unfinished or failed rows", records, columns)


def _rendered(contents: Contents, **parts: Any) -> str:
    """Return the page; Jinja escapes every text that comes from files."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("latentlab.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    cards, unknown = cards_of(measurements_in(contents.table.names("measurement")), contents.records("reactions"))
    verdicts = None if contents.claims is None else verdicts_of(contents.claims)
    scripts = (*_bokeh_scripts(), script("embed.js"))
    return environment.get_template("page.html").render(
        contents=contents,
        verdicts=verdicts,
        counts=counts_of(verdicts or []),
        analyses=_analyses(contents),
        warnings=[str(warning) for warning in (contents.analysis or {}).get("warnings", [])],
        cards=cards,
        unknown=unknown,
        incomplete=_incomplete(contents),
        scripts=scripts,
        hashes=[_policy_hash(text) for text in scripts],
        versions=_versions(),
        **parts,
    )


@cache
def _bokeh_scripts() -> tuple[str, ...]:
    """Return BokehJS as text: the core, widgets and tables."""
    from bokeh.resources import Resources

    return tuple(Resources(mode="inline", components=["bokeh", "bokeh-widgets", "bokeh-tables"]).js_raw)


def _policy_hash(text: str) -> str:
    """Return how a content security policy names a script: no other script of the page may run."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode("ascii")


def _versions() -> dict[str, str]:
    import bokeh

    return {"latentlab": latentlab.__version__, "bokeh": bokeh.__version__}
