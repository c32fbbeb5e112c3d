"""How long cells take: as long as finished ones of their stage and sort, per unit of work."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from latentlab.errors import UserError
from latentlab.files import read_json
from latentlab.study.cells.cell import Cell
from latentlab.study.cells.process import DONE
from latentlab.study.stages.known import STAGES


class Durations:
    """Seconds and work of finished cells."""

    def __init__(self) -> None:
        self._seconds: dict[tuple[str, str | None], float] = defaultdict(float)
        self._work: dict[tuple[str, str | None], float] = defaultdict(float)

    @classmethod
    def of_study(cls, out: Path) -> "Durations":
        """Read all finished cells in the folder of a study, those of earlier plans too."""
        durations = cls()
        for file in sorted((out / "cells").glob(f"*/*/{DONE}")):
            durations.note_file(file)
        return durations

    def note_file(self, file: Path) -> None:
        """Take in the ``done.json`` of a finished cell; a damaged one says nothing."""
        try:
            told: Mapping[str, Any] = read_json(file)
            stage, sort, seconds, work = (told[name] for name in ("stage", "sort", "seconds", "work"))
        except (UserError, KeyError, TypeError):
            return
        for key in ((stage, None), (stage, sort)):
            self._seconds[key] += seconds
            self._work[key] += work

    def known(self, cell: Cell) -> bool:
        """Return whether finished cells tell about this one's stage."""
        return self._work[cell.stage, None] > 0

    def estimate(self, cell: Cell) -> float:
        """Return about how many seconds a cell takes."""
        stage = STAGES[cell.stage]
        work = stage.work(cell.settings)
        for key in ((cell.stage, stage.sort(cell.settings)), (cell.stage, None)):
            if self._work[key]:
                return work * self._seconds[key] / self._work[key]
        return work * stage.seconds

    def total(self, cells: Iterable[Cell]) -> float:
        """Return the seconds of several cells, one after the other."""
        return sum(map(self.estimate, cells))


def in_words(seconds: float) -> str:
    """Return a duration for people: ``40 s``, ``12 min``, ``3 h 20 min``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"
