"""What a running study shows: a live table with the time left on a terminal, plain lines elsewhere."""

import sys
import time
from collections import Counter
from types import TracebackType
from typing import TYPE_CHECKING, Any

from latentlab.runtime import say
from latentlab.study.cells.cell import Cell
from latentlab.study.engine.estimate import in_words
from latentlab.study.engine.local import Engine, Job
from latentlab.study.engine.schedule import Schedule
from latentlab.study.stages.known import STAGES

if TYPE_CHECKING:
    from rich.console import RenderableType

_REFRESH_SECONDS = 1.0


class Board:
    """Progress of a study on stderr, for as long as the block lasts."""

    def __init__(self, schedule: Schedule, engine: Engine) -> None:
        """Show ``schedule`` as ``engine`` goes through it."""
        self._schedule, self._engine = schedule, engine
        self._since: dict[Job, float] = {}
        self._live: Any = None
        self._drawn = 0.0

    def __enter__(self) -> "Board":
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.live import Live

            self._live = Live(console=Console(stderr=True), auto_refresh=False, transient=True)
            self._live.start()
        else:
            left = self._schedule.left()
            self.say(f"{len(left)} of {len(self._schedule.graph.cells)} cells to do, {self._time_left()}")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def say(self, line: str) -> None:
        """Show one line of news."""
        if self._live is None:
            say(line)
        else:
            self._live.console.print(line, markup=False, highlight=False)

    def started(self, job: Job) -> None:
        """Note that a process has begun."""
        self._since[job] = time.monotonic()

    def ended(self, job: Job) -> None:
        """Note that a process is gone."""
        self._since.pop(job, None)
        self._drawn = 0.0

    def finished(self, cell: Cell) -> None:
        """Note that a cell is done."""
        if self._live is None:
            done = len(self._schedule.done)
            self.say(f"[{done}/{len(self._schedule.graph.cells)}] {cell.title}; {self._time_left()}")

    def failed(self, cell: Cell, reason: str) -> None:
        """Note that a cell was given up."""
        self.say(f"failed: {cell.title}: {reason}")

    def refresh(self) -> None:
        """Draw the table anew, if it is time."""
        if self._live is not None and time.monotonic() - self._drawn > _REFRESH_SECONDS:
            self._drawn = time.monotonic()
            self._live.update(self._table(), refresh=True)

    def _time_left(self) -> str:
        return f"about {in_words(self._schedule.seconds_left(self._engine.workers))} left"

    def _table(self) -> "RenderableType":
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        table = Table("stage", *(title for title in ("done", "running", "waiting", "failed", "blocked")))
        for stage, counts in stage_counts(self._schedule).items():
            table.add_row(
                stage, *(str(counts[state] or "") for state in ("done", "running", "waiting", "failed", "blocked"))
            )
        lines = [Text(self._line(job, time.monotonic() - since)) for job, since in self._since.items()]
        return Group(table, *lines, Text(f"{self._time_left()}, engine {self._engine.name}"))

    @staticmethod
    def _line(job: Job, seconds: float) -> str:
        more = f" and {len(job.cells) - 1} more" if len(job.cells) > 1 else ""
        return f"{in_words(seconds):>12}  {job.cells[0].title}{more}"


def stage_counts(schedule: Schedule) -> dict[str, Counter[str]]:
    """Return, by stage in the order of the work, how many cells are done, running, waiting, failed and blocked."""
    counts: dict[str, Counter[str]] = {}
    for stage in STAGES:
        own = [cell for cell in schedule.graph.cells if cell.stage == stage]
        if own:
            counts[stage] = Counter(_state(cell.key, schedule) for cell in own)
    return counts


def _state(key: str, schedule: Schedule) -> str:
    groups = {
        "done": schedule.done,
        "running": schedule.running,
        "failed": schedule.failed,
        "blocked": schedule.blocked,
    }
    return next((state for state, keys in groups.items() if key in keys), "waiting")
