"""What a results folder holds: the table, and whatever else was written beside it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from latentlab.errors import UserError
from latentlab.files import file_sha256, read_json_as
from latentlab.study.table import COLUMNS_FILE, FILE, StudyTable, is_of_another_table

ANALYSIS, CLAIMS, PLAN, PICTURES = "analysis.json", "claims.json", "plan.yaml", "pictures"

Records = list[dict[str, Any]]
"""Rows as they stand in a JSON file: any field may be missing."""

_LISTS = (
    "primary", "correlations", "pairs", "prediction", "stability", "judges", "noise", "controls", "reactions", "warnings",
)  # fmt: skip
"""Parts of an analysis that the report shows."""


@dataclass(frozen=True)
class SourceFile:
    """A file that went into the report: its name in the folder, its bytes and their SHA-256."""

    name: str
    size: int
    sha256: str


@dataclass(frozen=True)
class Contents:
    """A results folder as read.

    Attributes:
        folder: where it is.
        name: of the folder, without the way to it.
        table: the study.
        analysis: list of records by kind (``correlations``, ``pairs``, ...), and ``warnings``; None where there is none.
        claims: one record per claim; None where there are none.
        plan: text of the study file; None where there is none.
        title: of the study file, or the name of the folder.
        problems: what was left out because it is damaged, a sentence each.
        files: what was read, pictures excepted.
    """

    folder: Path
    name: str
    table: StudyTable
    analysis: Mapping[str, list[Any]] | None
    claims: Records | None
    plan: str | None
    title: str
    problems: tuple[str, ...]
    files: tuple[SourceFile, ...]

    def records(self, kind: str) -> Records:
        """Return one list of the analysis; empty where there is none."""
        return [record for record in (self.analysis or {}).get(kind, []) if isinstance(record, dict)]


def read_contents(folder: Path) -> Contents:
    """Read a results folder; damaged optional files are told in ``problems``.

    Raises:
        UserError: there is no such folder, or its table is missing or damaged.
    """
    if not folder.is_dir():
        raise UserError(
            f"{folder} is not a folder: give the results of a study, a folder with {FILE} and {COLUMNS_FILE}"
        )
    if not (folder / FILE).is_file():
        raise UserError(f"{folder} has no {FILE}: give a folder that `latentlab study` has written")
    table = StudyTable.read(folder)
    problems: list[str] = []
    analysis = _optional(folder / ANALYSIS, _analysis, problems)
    claims = _optional(folder / CLAIMS, _claims, problems)
    plan = _optional(folder / PLAN, _text, problems)
    name = folder.resolve().name
    title = (None if plan is None else _title(plan, problems)) or name
    return Contents(folder, name, table, analysis, claims, plan, title, tuple(problems), _sources(folder))


def _optional(file: Path, read: Callable[[Path], Any], problems: list[str]) -> Any:
    """Return what ``read`` makes of a file; None where it is missing or, with a note, damaged."""
    if not file.exists():
        return None
    try:
        return read(file)
    except (UserError, OSError, ValueError, RecursionError) as error:
        problems.append(f"{file.name} is left out: {_without_place(str(error), file)}")
        return None


def _without_place(message: str, file: Path) -> str:
    """Return a message in one line, without the folder: the report must not depend on where the results lie."""
    return " ".join(message.replace(str(file), file.name).split())


def _analysis(file: Path) -> dict[str, list[Any]]:
    """Return the parts that are shown, empty ones where an analysis lacks them."""
    told = read_json_as(dict[str, Any], file)
    if is_of_another_table(told, file.with_name(FILE)):
        raise UserError(f"it is of an earlier {FILE}: `latentlab study table` makes it anew")
    wrong = [name for name in _LISTS if not isinstance(told.get(name, []), list)]
    if wrong:
        raise UserError(f"{wrong[0]} is not a list")
    return {name: told.get(name, []) for name in _LISTS}


def _claims(file: Path) -> Records:
    """Return the verdicts; those on the study of tokenizers must be of the table as it is."""
    told = read_json_as(Records, file)
    if any(is_of_another_table(one, file.with_name(FILE)) for one in told):
        raise UserError(f"it is of an earlier {FILE}: `latentlab claims` judges anew")
    return told


def _text(file: Path) -> str:
    return file.read_text(encoding="utf-8")


def _title(plan: str, problems: list[str]) -> str | None:
    import yaml

    try:
        told = yaml.safe_load(plan)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        problems.append(f"{PLAN} is not YAML and is shown as text only: {' '.join(str(error).split())}")
        return None
    title = told.get("title") if isinstance(told, dict) else None
    return title if isinstance(title, str) else None


def _sources(folder: Path) -> tuple[SourceFile, ...]:
    files = (folder / name for name in (FILE, COLUMNS_FILE, ANALYSIS, CLAIMS, PLAN))
    return tuple(SourceFile(file.name, file.stat().st_size, file_sha256(file)) for file in files if file.is_file())
