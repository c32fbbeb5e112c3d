"""Independent tasks in processes of their own: on two cores two processes of one thread outrun one of two threads by far."""

import multiprocessing
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from latentlab.runtime import keep_freed_memory, progress, usable_cpus


@dataclass(frozen=True)
class Outcome:
    """What became of a task.

    Attributes:
        value: what it returned; None when it failed.
        error: why it failed, in one line; None when it did not.
    """

    value: Any = None
    error: str | None = None


def run_side_by_side(
    tasks: Sequence[Callable[[], Any]], jobs: int, what: str, note: Callable[[int, Outcome], None] | None = None
) -> list[Outcome]:
    """Do ``tasks``, ``jobs`` at a time with an equal share of the CPUs each; one that fails costs no other.

    Args:
        tasks: picklable functions of nothing (``functools.partial`` of a function of a module).
        jobs: processes; with 1 everything happens in this one.
        what: name of the progress bar.
        note: is told the number and the outcome of each task as it ends.

    Returns:
        The outcomes, in the order of the tasks.
    """
    outcomes: list[Outcome] = [Outcome(error="not done")] * len(tasks)
    with progress(what, len(tasks)) as advance:
        for number, outcome in _each(tasks, jobs):
            outcomes[number] = outcome
            advance(1)
            if note is not None:
                note(number, outcome)
    return outcomes


def _each(tasks: Sequence[Callable[[], Any]], jobs: int) -> Iterator[tuple[int, Outcome]]:
    """Yield tasks as they end."""
    if jobs == 1 or len(tasks) < 2:
        yield from ((number, _attempted(task)) for number, task in enumerate(tasks))
        return
    # not forked: threads of torch do not survive that
    context = multiprocessing.get_context("spawn")
    with _threads(jobs), ProcessPoolExecutor(min(jobs, len(tasks)), context, keep_freed_memory) as pool:
        waiting = {pool.submit(_attempted, task): number for number, task in enumerate(tasks)}
        try:
            for done in as_completed(waiting):
                broken = done.exception()  # the process itself: killed, or out of memory
                yield waiting[done], Outcome(error=_line(broken)) if broken else done.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _attempted(task: Callable[[], Any]) -> Outcome:
    try:
        return Outcome(task())
    except Exception as error:  # any: the other tasks must not be lost
        return Outcome(error=_line(error))


def _line(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


@contextmanager
def _threads(jobs: int) -> Iterator[None]:
    """Let processes started meanwhile take their share of the CPUs: torch reads these names when it is imported."""
    wanted: Mapping[str, str] = dict.fromkeys(
        ("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(max(1, usable_cpus() // jobs))
    )
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
