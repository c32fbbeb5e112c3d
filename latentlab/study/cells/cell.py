"""Cells: pieces of work that are done once, named after everything that determines what comes of them."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from latentlab import __version__
from latentlab.errors import UserError
from latentlab.files import digest, read_json, write_json
from latentlab.study.stages.known import STAGES

GRAPH_FILE = "graph.json"


@dataclass(frozen=True, eq=False)
class Cell:
    """One piece of work.

    Attributes:
        stage: a name of `STAGES`.
        title: in words, for people.
        settings: JSON values; files and images are in it by their content.
        needs: other cells, by what they are to this one.
        places: where the files and images lie that the settings speak of.
    """

    stage: str
    title: str
    settings: Mapping[str, Any]
    needs: Mapping[str, "Cell"] = field(default_factory=dict)
    places: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def key(self) -> str:
        """Digest of version, stage, settings and the keys of what it needs."""
        needs = {role: cell.key for role, cell in self.needs.items()}
        return digest([__version__, self.stage, STAGES[self.stage].version, dict(self.settings), needs])

    def folder(self, out: Path) -> Path:
        """Return the cell's folder in that of a study."""
        return out / "cells" / self.stage / self.key

    def told(self) -> dict[str, Any]:
        """Return the cell as JSON values, as in its ``cell.json``."""
        return {
            "key": self.key,
            "stage": self.stage,
            "title": self.title,
            "settings": dict(self.settings),
            "needs": {role: f"{cell.stage}/{cell.key}" for role, cell in self.needs.items()},
            "places": dict(self.places),
        }


@dataclass(frozen=True)
class Row:
    """One row of the study's table.

    Attributes:
        identity: its values in the columns that say who it is.
        cells: what its other values come of, by role: ``sample``, ``measure viv``, ``evaluate fashion-classifier``, ...
    """

    identity: Mapping[str, Any]
    cells: Mapping[str, Cell]


@dataclass(frozen=True)
class Graph:
    """All cells of a study in the order of the file, each after those it needs, and the rows that come of them.

    Attributes:
        cells: every key once.
        rows: of the table.
        owners: key -> number of the tokenizer, in the order of the file, that a cell belongs to first.
        facts: what else the table needs to know of the study, as JSON values.
    """

    cells: tuple[Cell, ...]
    rows: tuple[Row, ...]
    owners: Mapping[str, int] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def users(self) -> dict[str, list[Cell]]:
        """Key -> the cells that need it."""
        users: dict[str, list[Cell]] = {cell.key: [] for cell in self.cells}
        for cell in self.cells:
            for need in cell.needs.values():
                users[need.key].append(cell)
        return users

    def write(self, out: Path) -> None:
        """Write ``graph.json``, from which `read` makes the graph again without looking at images or configurations."""
        rows = [
            {"identity": dict(row.identity), "cells": {role: cell.key for role, cell in row.cells.items()}}
            for row in self.rows
        ]
        told = {"cells": [cell.told() for cell in self.cells], "rows": rows, "owners": dict(self.owners)}
        write_json(out / GRAPH_FILE, {"latentlab": __version__, **told, "facts": dict(self.facts)})

    @classmethod
    def read(cls, out: Path) -> "Graph":
        """Read what `write` left.

        Raises:
            UserError: the folder holds no study, or one that another version has begun.
        """
        if not (out / GRAPH_FILE).is_file():
            raise UserError(f"{out} holds no study: give the folder of `latentlab study run`")
        told = read_json(out / GRAPH_FILE)
        try:
            if told["latentlab"] != __version__:
                raise UserError(
                    f"{out} was begun by latentlab {told['latentlab']}, this is {__version__}: run `latentlab study run` again"
                )
            cells = _linked(told["cells"])
            rows = tuple(
                Row(row["identity"], {role: cells[key] for role, key in row["cells"].items()}) for row in told["rows"]
            )
            return cls(tuple(cells.values()), rows, told["owners"], told["facts"])
        except (KeyError, TypeError) as error:
            raise UserError(f"{out / GRAPH_FILE} is damaged ({error!r}): run `latentlab study run` again") from error


def _linked(told: Iterable[Mapping[str, Any]]) -> dict[str, Cell]:
    """Return the cells of their written form by key; each comes after those it needs."""
    cells: dict[str, Cell] = {}
    for one in told:
        needs = {role: cells[place.rpartition("/")[2]] for role, place in one["needs"].items()}
        cell = Cell(one["stage"], one["title"], one["settings"], needs, one["places"])
        cells[one["key"]] = cell
    return cells
