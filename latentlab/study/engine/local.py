"""Cells as processes on this machine, each with as many threads as it has CPUs."""

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

from latentlab.errors import UserError
from latentlab.runtime import usable_memory
from latentlab.study.cells.cell import Cell
from latentlab.study.engine.processes import start_process, stop_processes
from latentlab.study.plan_file import Resources


@dataclass(frozen=True, eq=False)
class Job:
    """Cells for one process.

    Attributes:
        cells: done one after the other.
        folders: theirs.
        wants: what they take.
    """

    cells: tuple[Cell, ...]
    folders: tuple[Path, ...]
    wants: Resources

    @property
    def device(self) -> str:
        """Where they compute."""
        return "cuda" if self.wants.gpus else "cpu"


class Ended(NamedTuple):
    """A process that has ended."""

    job: Job
    code: int
    """Exit status; negative for a signal."""
    why: str = ""
    """What the engine knows of its end, where the log may not say."""


class Engine(Protocol):
    """Where processes run."""

    name: str

    @property
    def workers(self) -> float:
        """How many cells of one CPU run side by side."""

    def check(self, wants: Resources, stage: str) -> None:
        """Raise `UserError` when a cell of this stage would never start."""

    def room(self, wants: Resources) -> bool:
        """Return whether a cell may be handed over now."""

    def start(self, job: Job) -> None:
        """Start a process, for which there is room."""

    def ended(self) -> list[Ended]:
        """Return the processes that have ended since the last call."""

    def stop(self) -> None:
        """Ask all processes to save what they have, and wait for them."""


class LocalEngine:
    """Processes of this machine.

    Attributes:
        name: for people.
        workers: CPUs that are shared out.
    """

    name = "local"

    def __init__(self, workers: int, gpus: int = 0) -> None:
        """Share out ``workers`` CPUs, ``gpus`` GPUs and the memory."""
        self.workers = workers
        self._gpus = gpus
        self._memory = usable_memory() / 2**30
        self._running: dict[Job, tuple[subprocess.Popen[bytes], int | None]] = {}

    def check(self, wants: Resources, stage: str) -> None:
        """See `Engine`."""
        limits = (("GPUs", wants.gpus, self._gpus), ("GiB of memory", wants.memory or 0, self._memory))
        for what, wanted, there in limits:
            if wanted > there:
                raise UserError(
                    f"resources.{stage} asks for {wanted:g} {what}, this machine has {there:.3g}: change the study file"
                )
        if wants.gpus > 1:
            raise UserError(f"resources.{stage} asks for {wants.gpus:g} GPUs, a local cell gets one: ask for 1")

    def room(self, wants: Resources) -> bool:
        """See `Engine`."""
        taken = [job.wants for job in self._running]
        cpus = self.workers - sum(self._cpus(one) for one in taken)
        memory = self._memory - sum(one.memory or 0 for one in taken)
        return (
            self._cpus(wants) <= cpus
            and (wants.memory or 0) <= memory
            and (not wants.gpus or self._gpu(wants) is not None)
        )

    def _cpus(self, wants: Resources) -> float:
        """CPUs that are counted: a cell that wants more than there are runs alone."""
        return min(wants.cpus, self.workers)

    def _gpu(self, wants: Resources) -> int | None:
        """Return the number of a GPU with enough of it free; None where there is none."""
        free = [1.0] * self._gpus
        for job, (_, number) in self._running.items():
            if number is not None:
                free[number] -= job.wants.gpus
        able = [number for number, share in enumerate(free) if share + 1e-9 >= min(wants.gpus, 1.0)]
        return max(able, key=free.__getitem__) if able else None

    def start(self, job: Job) -> None:
        """See `Engine`."""
        number = self._gpu(job.wants) if job.wants.gpus else None
        chosen = {} if number is None else {"CUDA_VISIBLE_DEVICES": visible_gpu(number)}
        self._running[job] = start_process(job.folders, job.device, job.wants.cpus, chosen), number

    def ended(self) -> list[Ended]:
        """See `Engine`."""
        codes = {job: process.poll() for job, (process, _) in self._running.items()}
        over = [Ended(job, code) for job, code in codes.items() if code is not None]
        for job, _, _ in over:
            del self._running[job]
        return over

    def stop(self) -> None:
        """See `Engine`."""
        stop_processes(process for process, _ in self._running.values())
        self._running.clear()


def visible_gpu(number: int) -> str:
    """Return the name of the GPU ``number`` among those this process may see."""
    seen = os.environ.get("CUDA_VISIBLE_DEVICES")
    return seen.split(",")[number] if seen else str(number)
