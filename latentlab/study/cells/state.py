"""What became of the cells of a study, as their folders tell: readable while it runs, and without torch."""

import socket
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from latentlab.errors import UserError
from latentlab.files import read_json, write_json
from latentlab.study.cells.cell import Cell, Graph
from latentlab.study.cells.process import ATTEMPTS, CELL, DONE, RESULT, is_whole

State = Literal["done", "running", "waiting", "failed", "blocked"]
STATES: tuple[State, ...] = ("done", "running", "waiting", "failed", "blocked")

FAILED = "failed.json"


@dataclass(frozen=True)
class CellState:
    """One cell.

    Attributes:
        state: ``blocked`` is one that needs a failed cell.
        reason: why it failed, or which cell blocks it; empty otherwise.
    """

    state: State
    reason: str = ""


def is_done(folder: Path) -> bool:
    """Return whether the cell in a folder is done."""
    return (folder / DONE).is_file()


def settled(graph: Graph, out: Path, archived: Collection[str] = ()) -> set[str]:
    """Return the keys of the cells that need not be done.

    A finished cell need not. One of which only the results are here (restored, or in an archive) need not if no cell that needs
    it is to be done.

    Args:
        graph: the cells.
        out: folder of the study.
        archived: keys of cells in an archive (see `latentlab.study.archive`).
    """
    found: set[str] = set()
    for cell in reversed(graph.cells):  # each after those that need it
        folder = cell.folder(out)
        known = is_done(folder) or cell.key in archived
        if is_whole(folder) or (known and all(user.key in found for user in graph.users[cell.key])):
            found.add(cell.key)
    return found


def result_of(folder: Path) -> dict[str, Any]:
    """Return what the stage of a finished cell returned.

    Raises:
        UserError: the file is gone or damaged.
    """
    return dict(read_json(folder / RESULT))


def prepare(cell: Cell, out: Path) -> Path:
    """Write ``cell.json`` and forget an earlier failure; return the folder."""
    folder = cell.folder(out)
    write_json(folder / CELL, cell.told())
    (folder / FAILED).unlink(missing_ok=True)
    return folder


def note_places(cell: Cell, out: Path) -> None:
    """Write down where the files of a finished cell lie now, since others that need it may read them there."""
    file = cell.folder(out) / CELL
    if cell.places and read_json(file)["places"] != dict(cell.places):
        write_json(file, cell.told())


def note_failure(cell: Cell, out: Path, reason: str, attempts: int) -> None:
    """Write down why a cell was given up."""
    write_json(cell.folder(out) / FAILED, {"reason": reason, "attempts": attempts})


def states(graph: Graph, out: Path, to_do: Collection[str] = ()) -> dict[str, CellState]:
    """Return what became of every cell, by key; those of ``to_do`` are not done although their results are known."""
    found: dict[str, CellState] = {}
    for cell in graph.cells:  # each after those it needs
        found[cell.key] = _state(cell, out, found, cell.key in to_do)
    return found


def _state(cell: Cell, out: Path, known: Mapping[str, CellState], to_do: bool) -> CellState:
    folder = cell.folder(out)
    if is_done(folder) and not to_do:
        return CellState("done")
    if (folder / FAILED).is_file():
        return CellState("failed", str(read_json(folder / FAILED)["reason"]))
    for need in cell.needs.values():
        before = known[need.key]
        if before.state == "failed":
            return CellState("blocked", f"{need.title}: {before.reason}")
        if before.state == "blocked":
            return before
    return CellState("running" if _is_running(folder) else "waiting")


def _is_running(folder: Path) -> bool:
    """Whether the last attempt's process lives, as far as this machine can tell."""
    import psutil

    try:
        last = read_json(folder / ATTEMPTS)[-1]
        if last["host"] != socket.gethostname():
            return False
        return psutil.Process(last["pid"]).create_time() <= last["began"]  # else another one has the number now
    except (UserError, IndexError, psutil.Error):
        return False
