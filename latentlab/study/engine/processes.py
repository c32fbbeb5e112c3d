"""The process of a cell as whoever starts it sees it: its command, its threads, and how it is stopped."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from latentlab.study.cells.process import LOG

_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS")


def start_process(
    folders: Sequence[Path], device: str, cpus: int, more: Mapping[str, str] | None = None
) -> "subprocess.Popen[bytes]":
    """Start a process that does cells one after the other, with as many threads as it has CPUs.

    It has a session of its own: Ctrl-C in a terminal must reach it once, through whoever started it, and not twice. What it
    says before it turns to the log of a cell goes to that of the first.

    Args:
        folders: of the cells.
        device: where they compute, ``cpu`` or ``cuda``.
        cpus: number of threads.
        more: of the environment.
    """
    module = [sys.executable, "-m", "latentlab.study.cells.process", "--device", device, "--parent", str(os.getpid())]
    environment = {**os.environ, **dict.fromkeys(_THREADS, str(cpus)), **(more or {})}
    with open(folders[0] / LOG, "ab") as log:
        return subprocess.Popen(
            [*module, *map(str, folders)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=environment,
            start_new_session=True,
        )


def stop_processes(processes: Iterable["subprocess.Popen[bytes]"]) -> None:
    """Send SIGTERM to processes and wait for them: trainings save a checkpoint."""
    asked = list(processes)
    for process in asked:
        process.send_signal(signal.SIGTERM)
    for process in asked:
        process.wait()
