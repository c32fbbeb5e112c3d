"""The finished cells of a study as one table, with the pictures and details that figures and reports are made of."""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pandas as pd

from latentlab.errors import UserError
from latentlab.files import atomic_path, read_json, write_json
from latentlab.quality.names import plain_name
from latentlab.study.cells.cell import Cell, Graph, Row
from latentlab.study.cells.process import DONE, is_whole
from latentlab.study.cells.state import CellState, result_of, states
from latentlab.study.collect_columns import IDENTITY, values_of
from latentlab.study.table import Column, StudyTable

_MINUTES = Column(
    "minutes",
    "cost",
    "Time of all cells that the row stands on, those it shares with other rows counted in full.",
    "min",
)
_ERROR = Column("error", "status", "Why numbers of the row are missing; empty if none are.")

_ORDER = (
    "identity",
    "measurement",
    "reconstruction",
    "decoder",
    "quality",
    "floor",
    "trajectory",
    "count",
    "cost",
    "status",
)

_MOST = 0.75
"""Share of a measurement's rows that must be of one variant for the others to be left out."""

PICTURES, DETAILS, FLOORS = "pictures", "details", "floors.json"


@dataclass
class _Variant:
    """One way in which a measurement was made, its column, and the rows that have it."""

    column: Column
    rows: list[dict[str, Any]] = field(default_factory=list)


@dataclass
class _Collected:
    """What cells say, read once each.

    Attributes:
        out: folder of the study.
        known: what became of every cell.
        columns: name -> column, in order of their first appearance.
        variants: column of a measurement -> variant -> what is of it.
        refusals: column of a measurement -> why latents cannot have it -> labels of the tokenizers, in order.
        results: key -> what a finished cell's stage returned.
        seconds: key -> how long it took.
    """

    out: Path
    known: Mapping[str, CellState]
    columns: dict[str, Column] = field(default_factory=dict)
    variants: dict[str, dict[str, _Variant]] = field(default_factory=dict)
    refusals: dict[str, dict[str, dict[str, None]]] = field(default_factory=dict)
    results: dict[str, dict[str, Any]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    def result(self, cell: Cell) -> dict[str, Any]:
        """Return what a finished cell's stage returned."""
        if cell.key not in self.results:
            self.results[cell.key] = result_of(cell.folder(self.out))
        return self.results[cell.key]

    def time(self, cell: Cell) -> float:
        """Return how many seconds a finished cell took."""
        if cell.key not in self.seconds:
            self.seconds[cell.key] = float(read_json(cell.folder(self.out) / DONE)["seconds"])
        return self.seconds[cell.key]


def collect(out: Path) -> StudyTable:
    """Write ``results.csv``, ``columns.json``, ``floors.json``, pictures and details of what is finished; return the table.

    Rows of unfinished or failed cells have NaN there, and the first reason in the column ``error``. A measurement that had to be
    made in another way than of most tokenizers is NaN as well, and its column says so.

    Args:
        out: folder of the study.

    Raises:
        UserError: it holds no study, or cannot be written.
    """
    graph = Graph.read(out)
    found = _Collected(out, states(graph, out))
    rows = [_row(row, found) for row in graph.rows]
    _keep_what_compares(found)
    _say_what_cannot_be(found)
    table = _table(rows, found.columns)
    table.write(out)
    _write_floors(graph, found)
    _copy_files(graph, found)
    return table


def _row(row: Row, found: _Collected) -> dict[str, Any]:
    values: dict[str, Any] = dict(row.identity)
    reasons, seconds = [], 0.0
    for role, cell in row.cells.items():
        state = found.known[cell.key]
        if state.state != "done":
            reasons.append(
                state.reason if state.state == "blocked" else f"{cell.title}: {state.reason or 'not done yet'}"
            )
            continue
        seconds += found.time(cell)
        result = found.result(cell)
        if reason := result.get("refused"):
            name = f"m_{role.removeprefix('measure ')}"
            found.refusals.setdefault(name, {}).setdefault(reason, {})[row.identity["tokenizer"]] = None
        for value in values_of(role, result):
            name = value.column.name
            found.columns.setdefault(name, value.column)
            values[name] = value.value
            if value.interval is not None:
                values[f"{name}_low"], values[f"{name}_high"] = value.interval
            if role == f"measure {name.removeprefix('m_')}":
                same = found.variants.setdefault(name, {}).setdefault(result["variant"], _Variant(value.column))
                same.rows.append(values)
    values |= {"minutes": round(seconds / 60, 2), "error": reasons[0] if reasons else ""}
    return values


def _keep_what_compares(found: _Collected) -> None:
    """Leave a measurement out of rows where it was made in another way than in most; where none is common, say so.

    The foreground of 1-D tokens, say, cannot be told from their background, so that they have another LNC than grids.
    """
    for name, variants in found.variants.items():
        common, *others = sorted(variants, key=lambda one: -len(variants[one].rows))
        if not others:
            continue
        column, rows = variants[common].column, [row for one in others for row in variants[one].rows]
        if len(variants[common].rows) < _MOST * (len(rows) + len(variants[common].rows)):
            told = f" Other rows are of other variants, which may not compare: {'; '.join(others)}."
        else:
            labels = ", ".join(dict.fromkeys(str(row["tokenizer"]) for row in rows))
            told = f" Left out where only another variant could be measured: {labels} ({'; '.join(others)})."
            for row in rows:
                _empty(row, name)
        found.columns[name] = replace(column, meaning=column.meaning + told)


def _say_what_cannot_be(found: _Collected) -> None:
    """Let columns say of which tokenizers there can be no number, and why."""
    for name, reasons in found.refusals.items():
        if name in found.columns:
            told = "; ".join(f"{', '.join(labels)} ({reason})" for reason, labels in reasons.items())
            column = found.columns[name]
            found.columns[name] = replace(column, meaning=f"{column.meaning} Not there for {told}.")


def _empty(row: dict[str, Any], name: str) -> None:
    """Remove a measurement, its interval and its companions."""
    for key in list(row):
        if key in (name, f"{name}_low", f"{name}_high") or key.startswith(f"{name}."):
            del row[key]


def _table(rows: list[dict[str, Any]], columns: Mapping[str, Column]) -> StudyTable:
    frame = pd.DataFrame(rows)
    there = [column for column in columns.values() if column.name in frame]  # not those of rows that were emptied
    every = sorted([*IDENTITY, *there, _MINUTES, _ERROR], key=lambda column: _ORDER.index(column.role))
    names = [name for column in every for name in (column.name, f"{column.name}_low", f"{column.name}_high")]
    whole = frame[
        [name for name in names if name in frame]
    ].copy()  # in one piece, or pandas warns of each added column
    return StudyTable(whole, tuple(every))


def _write_floors(graph: Graph, found: _Collected) -> None:
    """Write the distance of real images by judge, as far as it is known.

    That of fewer images than are drawn is left out: the distance falls with their number, and it would be no floor.
    """
    cells = {cell.key: cell for cell in graph.cells}
    known = {judge: cells[key] for judge, key in graph.facts["floors"].items() if found.known[key].state == "done"}
    floors = {
        plain_name(judge): found.result(cell)["value"]
        for judge, cell in known.items()
        if found.result(cell)["n"] == cell.settings["n"]
    }
    write_json(found.out / FLOORS, floors)


def _copy_files(graph: Graph, found: _Collected) -> None:
    """Copy pictures and details of measurements; remove those of an earlier plan, or of settings that have changed since."""
    kept = shown_files(graph, found.out, found.known)
    for place, (cell, name) in kept.items():
        _copy(cell.folder(found.out) / name, found.out / place)
    for folder in (PICTURES, DETAILS):
        for file in (found.out / folder).rglob("*"):
            if file.is_file() and str(file.relative_to(found.out)) not in kept:
                file.unlink()


def shown_files(graph: Graph, out: Path, known: Mapping[str, CellState]) -> dict[str, tuple[Cell, str]]:
    """Return which files of finished cells figures and reports show: place in the study's folder -> cell, name in its folder.

    They are those of the first row of every tokenizer and of each of its generators, of restored cells of the first that has
    them: archives hold only what was shown.

    Raises:
        UserError: a result names a file that is not its cell's.
    """
    shown: dict[str, tuple[Cell, str]] = {}
    for row in graph.rows:
        tokenizer, generator = str(row.identity["tokenizer"]), str(row.identity["generator"])
        for role, cell in row.cells.items():
            wanted = _place(role, tokenizer, generator)
            if wanted is None or known[cell.key].state != "done" or wanted[1] in shown:
                continue
            key, place = wanted
            folder = cell.folder(out)
            name = result_of(folder).get(key)
            if name is None:
                continue
            if not (folder / name).resolve().is_relative_to(folder.resolve()):
                raise UserError(f"{folder} names a file outside, {name}: delete the folder and run the study again")
            if (folder / name).is_file() or is_whole(folder):
                shown[place] = (cell, name)
    return shown


def _place(role: str, tokenizer: str, generator: str) -> tuple[str, str] | None:
    """Return which file of a cell's results is kept, and where; None for cells without one."""
    stage, _, what = role.partition(" ")
    places = {
        "reconstruct": ("picture", f"{PICTURES}/{tokenizer}/reconstructions.png"),
        "sample": ("grid", f"{PICTURES}/{tokenizer}/{generator}.png"),
        "latent_map": ("details", f"{DETAILS}/{tokenizer}/umap.json"),
        "measure": ("details", f"{DETAILS}/{tokenizer}/{what}.json"),
        "trajectories": ("details", f"{DETAILS}/{tokenizer}/{generator}/straightness.json"),
    }
    return places.get(stage)


def _copy(source: Path, target: Path) -> None:
    if not source.is_file():
        raise UserError(f"{source} is gone: delete the folder of that cell and run the study again")
    with atomic_path(target) as temporary:
        shutil.copyfile(source, temporary)
