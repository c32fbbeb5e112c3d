"""Many training runs in one file: a base, architectures, and words that each change something; a row is a name made of words."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from latentlab.configuration import Strict
from latentlab.errors import UserError, unknown_name
from latentlab.files import first_problem

Changes = dict[str, Any]
"""Nested settings of a training run."""


class RowFile(Strict):
    """What such a file holds.

    Attributes:
        base: settings that all rows share.
        architectures: changes by the name of an architecture.
        parameters: of the tokenizer, by the name of an architecture, and what a word adds to them.
        clusters: the words by which rows are grouped.
        words: changes by word.
        rows: by architecture, first words with the words that follow each of them (``""`` for none).
    """

    base: Changes
    architectures: dict[str, Changes]
    parameters: dict[str, int]
    clusters: tuple[str, ...]
    words: dict[str, Changes]
    rows: dict[str, list[dict[str, list[str]]]]


@dataclass(frozen=True)
class Row:
    """One training run.

    Attributes:
        id: counted from 1.
        architecture: name of its architecture.
        name: its words.
        cluster: the one of its words that names a cluster.
        parameters: of its tokenizer.
        settings: all of its settings.
    """

    id: int
    architecture: str
    name: str
    cluster: str
    parameters: int
    settings: Changes


def read_rows(path: Path) -> list[Row]:
    """Return the rows of a file in order.

    Raises:
        UserError: no such file, not such a file, or a word or architecture that it does not explain.
    """
    try:
        file = RowFile.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except ValidationError as error:
        raise UserError(f"{path} is not a file of rows: {first_problem(error)}") from error
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"{path} is not a readable YAML file: {' '.join(str(error).split())}") from error
    named = [
        (architecture, [first, *second.split()])
        for architecture, groups in file.rows.items()
        for group in groups
        for first, seconds in group.items()
        for second in seconds
    ]
    return [_row(file, number, *one) for number, one in enumerate(named, start=1)]


def row_settings(path: Path, row: str) -> Changes:
    """Return the settings of the row with an id.

    Raises:
        UserError: there is no such row.
    """
    rows = read_rows(path)
    if not row.isdecimal() or not 1 <= int(row) <= len(rows):
        raise UserError(f"{path} has no row '{row}'; {told_rows(path)}")
    return rows[int(row) - 1].settings


def is_row_file(path: Path) -> bool:
    """Return whether a file is there and looks like one of rows."""
    if not path.is_file():
        return False
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return False
    return isinstance(found, Mapping) and {"base", "rows"} <= found.keys()


def told_rows(path: Path) -> str:
    """Return the ids of a file's rows and what they are, in words."""
    rows = read_rows(path)
    shown = ", ".join(f"{row.id} is {row.architecture} {row.name}" for row in rows)
    return f"its rows: {shown}"


def _row(file: RowFile, number: int, architecture: str, words: list[str]) -> Row:
    for kind, name, known in (
        ("architecture", architecture, file.architectures),
        *(("word of a row", word, file.words) for word in words),
    ):
        if name not in known:
            raise unknown_name(kind, name, known)
    settings = merged(file.base, file.architectures[architecture], *(file.words[word] for word in words))
    settings["name"] = f"{settings['name']}-{number}"
    cluster = next((word for word in words if word in file.clusters), words[0])
    parameters = sum(file.parameters.get(name, 0) for name in (architecture, *words))
    return Row(number, architecture, " ".join(words), cluster, parameters, settings)


def merged(base: Mapping[str, Any], *changes: Mapping[str, Any]) -> Changes:
    """Return nested settings after all changes in order; tables are merged, everything else is replaced."""
    result = dict(base)
    for change in changes:
        for key, value in change.items():
            old = result.get(key)
            if isinstance(value, Mapping) and isinstance(old, Mapping):
                result[key] = merged(old, value)
            else:
                result[key] = value
    return result
