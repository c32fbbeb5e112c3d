"""Run the cells of a study: what is missing, as much at once as there is room for; a failed one costs only what needs it."""

import time
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from latentlab.errors import UserError
from latentlab.run_folder import stop_signal
from latentlab.runtime import make_writable
from latentlab.study.cells.cell import Cell, Graph
from latentlab.study.cells.process import DONE, INTERRUPTED, LOG, is_whole
from latentlab.study.cells.state import note_failure, note_places, prepare, settled
from latentlab.study.engine.board import Board
from latentlab.study.engine.estimate import Durations
from latentlab.study.engine.local import Ended, Engine, Job
from latentlab.study.engine.schedule import Schedule
from latentlab.study.plan_file import Resources, StudyFile
from latentlab.study.training.runs import last_words

_POLL_SECONDS = 0.1
_PATIENCE_SECONDS = 2.0


def planned(graph: Graph, out: Path, archived: Collection[str] = ()) -> Schedule:
    """Return the cells of a study with those that need not be done (see `settled`); failed ones get another chance."""
    return Schedule(graph, Durations.of_study(out), settled(graph, out, archived))


def run_cells(study: StudyFile, graph: Graph, out: Path, engine: Engine) -> Schedule:
    """Do all cells that are not done; the caller holds the folder (`only_one`). Main thread only.

    SIGTERM and Ctrl-C let every process save what it has, then raise KeyboardInterrupt.

    Args:
        study: what they take, and how often a failed one is tried again.
        graph: the cells.
        out: folder of the study.
        engine: where they run.

    Raises:
        UserError: a cell that the engine could never start, or a folder that cannot be written.
    """
    schedule = planned(graph, out)
    for cell in graph.cells:
        if cell.key in schedule.done:
            note_places(cell, out)
    check_resources(study, schedule, engine)
    with stop_signal() as stop, Board(schedule, engine) as board:
        run = _Run(study, out, engine, schedule, board)
        try:
            while run.advance():
                time.sleep(_POLL_SECONDS)
                if stop:
                    board.say("stopping: every cell saves what it has; the same command continues")
                    raise KeyboardInterrupt
        finally:
            engine.stop()
    return schedule


def check_resources(study: StudyFile, schedule: Schedule, engine: Engine) -> None:
    """Raise `UserError` for a cell that the engine could never start."""
    for stage in dict.fromkeys(cell.stage for cell in schedule.left()):
        engine.check(study.takes(stage), stage)


@contextmanager
def only_one(out: Path) -> Iterator[None]:
    """Keep a second run out of the folder of a study."""
    from filelock import Timeout
    from huggingface_hub.utils import WeakFileLock

    make_writable(out)
    try:
        with WeakFileLock(out / ".lock", timeout=_PATIENCE_SECONDS):
            yield
    except Timeout as error:
        raise UserError(
            f"another `latentlab study run` is at work in {out}: wait for it, or choose another --out (on a disk without "
            f"file locks a killed run leaves its lock: then delete {out / '.lock'})"
        ) from error


class _Run:
    """One call of `run_cells`."""

    def __init__(self, study: StudyFile, out: Path, engine: Engine, schedule: Schedule, board: Board) -> None:
        self._study, self._out, self._engine = study, out, engine
        self._schedule, self._board = schedule, board
        self._tries: Counter[str] = Counter()
        self._changed = True

    def advance(self) -> bool:
        """Take in what has ended and start what there is room for; return whether anything is left."""
        for ended in self._engine.ended():
            self._settle(ended)
            self._changed = True
        if self._changed:
            self._start_ready()
            self._changed = False
        self._board.refresh()
        return bool(self._schedule.running)

    def _start_ready(self) -> None:
        ready = self._schedule.ready()
        for cell in ready:
            wants = self._study.takes(cell.stage)
            if cell.key in self._schedule.running or not self._engine.room(wants):
                continue
            cells = (
                (cell,) if self._tries[cell.key] else self._schedule.with_company(cell, self._companions(ready, wants))
            )
            job = Job(cells, tuple(prepare(one, self._out) for one in cells), wants)
            self._engine.start(job)
            self._schedule.running |= {one.key for one in cells}
            self._board.started(job)

    def _companions(self, ready: Sequence[Cell], wants: Resources) -> list[Cell]:
        """Return the ready cells that may share a process: none that has failed before, and all taking the same."""
        running = self._schedule.running
        return [
            cell
            for cell in ready
            if cell.key not in running and not self._tries[cell.key] and self._study.takes(cell.stage) == wants
        ]

    def _settle(self, ended: Ended) -> None:
        """Note what became of the cells of a process."""
        cells = ended.job.cells
        self._schedule.running -= {cell.key for cell in cells}
        undone = []
        for cell in cells:
            folder = cell.folder(self._out)
            if is_whole(folder):
                self._schedule.done.add(cell.key)
                self._schedule.durations.note_file(folder / DONE)
                self._board.finished(cell)
            else:
                undone.append(cell)
        # a killed or stopped process did not come to the cells after the one it was in
        for cell in undone[:1] if ended.code < 0 or ended.code == INTERRUPTED else undone:
            self._note_failure(cell, ended)
        self._board.ended(ended.job)

    def _note_failure(self, cell: Cell, ended: Ended) -> None:
        self._tries[cell.key] += 1
        reason = ended.why or last_words(cell.folder(self._out) / LOG, ended.code)
        if self._tries[cell.key] <= self._study.retries:
            self._board.say(f"{cell.title}: {reason}; trying again")
            return
        self._schedule.give_up(cell, reason)
        note_failure(cell, self._out, reason, self._tries[cell.key])
        self._board.failed(cell, reason)
