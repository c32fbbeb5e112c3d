"""How fast a long job runs and when it will end: a bar for somebody watching, a line now and then for a log."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from latentlab.runtime import say

LOG_SECONDS = 30.0
"""Time between two lines in a log."""


class Pace:
    """Counts units of work done since it was made.

    Attributes:
        done: units done, those of earlier runs included.
    """

    def __init__(self, total: int, done: int = 0) -> None:
        self.total, self.done = total, done
        self._before, self._start = done, time.perf_counter()

    @property
    def seconds(self) -> float:
        """Time since the start."""
        return time.perf_counter() - self._start

    @property
    def rate(self) -> float:
        """Units per second in this run; 0 before the first."""
        return (self.done - self._before) / max(self.seconds, 1e-9)

    def text(self, unit: str) -> str:
        """Return how far it is, how fast, and how long it will still take."""
        left = (self.total - self.done) / self.rate if self.rate else float("inf")
        return f"{self.done:,} of {self.total:,} {unit}, {self._speed(unit)}, {duration(left)} left"

    def summary(self, unit: str) -> str:
        """Return what this run did."""
        return f"{self.done - self._before:,} {unit} in {duration(self.seconds)}, {self._speed(unit)}"

    def _speed(self, unit: str) -> str:
        return f"{self.rate:,.1f} {unit}/s" if self.rate >= 1 else f"{self.rate:.2g} {unit}/s"


def duration(seconds: float) -> str:
    """Return a time in words: ``3.2 s``, ``4 min 10 s``, ``2 h 5 min``."""
    if seconds == float("inf"):
        return "unknown time"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes = round(seconds) // 60
    return f"{minutes} min {round(seconds) % 60} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


@contextmanager
def shown_pace(
    description: str, unit: str, total: int, done: int = 0, quiet: bool = False
) -> Iterator[Callable[[int], None]]:
    """Show on stderr how a job of ``total`` units goes; yield the function that notes how many more are done.

    On a terminal a bar, else a line every `LOG_SECONDS`; at the end, unless it failed, one line that sums up.

    Args:
        description: what is being done.
        unit: what is counted, in the plural.
        total: units in all.
        done: units done before.
        quiet: show nothing.
    """
    pace = Pace(total, done)
    if quiet:
        yield lambda amount: None
        return
    with _bar(description, unit, pace) if sys.stderr.isatty() else _log(description, unit, pace) as advance:
        yield advance
    say(f"{description}: {pace.summary(unit)}")


@contextmanager
def _log(description: str, unit: str, pace: Pace) -> Iterator[Callable[[int], None]]:
    spoken = 0.0

    def advance(amount: int) -> None:
        nonlocal spoken
        pace.done += amount
        if pace.seconds - spoken >= LOG_SECONDS:
            spoken = pace.seconds
            say(f"{description}: {pace.text(unit)}")

    yield advance


@contextmanager
def _bar(description: str, unit: str, pace: Pace) -> Iterator[Callable[[int], None]]:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn

    columns = (TextColumn(description, markup=False), BarColumn(), TextColumn("{task.fields[pace]}", markup=False))
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=pace.total, completed=pace.done, pace="")

        def advance(amount: int) -> None:
            pace.done += amount
            bar.update(task, completed=pace.done, pace=pace.text(unit))

        yield advance
