"""One cell in a process of its own: ``python -m latentlab.study.cells.process FOLDER``.

The folder holds ``cell.json``. The process writes ``log.txt``, whatever the stage makes, ``result.json`` and last ``done.json``:
a cell without it is not done, whatever else is there, and the same command does what is left of it.
"""

import argparse
import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Any

from latentlab import __version__
from latentlab.errors import MORE_MEMORY, UserError, is_out_of_memory
from latentlab.files import read_json, write_json
from latentlab.study.stages.known import STAGES

CELL, RESULT, DONE, ATTEMPTS, LOG = "cell.json", "result.json", "done.json", "attempts.json", "log.txt"

RESTORED = "restored"
"""Set in the ``done.json`` of a cell that was taken from an archive: what it found is there, not all that it made."""

INTERRUPTED = 130
"""Exit status of a cell that was asked to stop and has saved what it had."""


@dataclass(frozen=True)
class Finished:
    """A finished cell that another one needs.

    Attributes:
        folder: of the cell.
    """

    folder: Path

    @cached_property
    def result(self) -> dict[str, Any]:
        """What its stage returned."""
        return dict(read_json(self.folder / RESULT))

    @cached_property
    def places(self) -> dict[str, str]:
        """Where the files that its settings speak of lie now."""
        return dict(read_json(self.folder / CELL)["places"])

    def file(self, name: str) -> Path:
        """Return the file that the result names; beside it in the cell's folder, or elsewhere on this machine."""
        return self.folder / str(self.result[name])


@dataclass(frozen=True)
class CellRun:
    """What a stage gets.

    Attributes:
        folder: of the cell, where it may write.
        settings: as in `Cell`.
        places: as in `Cell`.
        needs: the finished cells it needs.
        device: where it computes: ``cpu`` or ``cuda``.
    """

    folder: Path
    settings: Mapping[str, Any]
    places: Mapping[str, str]
    needs: Mapping[str, Finished]
    device: str

    @classmethod
    def read(cls, folder: Path, device: str) -> "CellRun":
        """Read ``cell.json``.

        Raises:
            UserError: it is not there.
        """
        told = read_json(folder / CELL)
        cells = folder.parents[1]
        needs = {role: Finished(cells / place) for role, place in told["needs"].items()}
        return cls(folder, told["settings"], told["places"], needs, device)


def is_whole(folder: Path) -> bool:
    """Return whether the cell in a folder is done and has all its files: a restored one has its results alone.

    Raises:
        UserError: its ``done.json`` is damaged.
    """
    if not (folder / DONE).is_file():
        return False
    told = read_json(folder / DONE)
    if not isinstance(told, dict):
        raise UserError(f"{folder / DONE} is damaged: delete it, and the cell is done again")
    return not told.get(RESTORED, False)


def run_cell(folder: Path, device: str, began: float) -> int:
    """Do the cell in ``folder`` unless it is done; return the exit status.

    Args:
        folder: of the cell.
        device: where it computes.
        began: when the process turned to it, as `time.time` counts.
    """
    from huggingface_hub.utils import WeakFileLock

    from latentlab.run_folder import Interrupted

    _write_output_to(folder / LOG)
    with WeakFileLock(folder / ".lock"):  # of two processes for one cell the second finds it done
        if is_whole(folder):
            return 0
        before = _note_attempt(folder)
        try:
            told = read_json(folder / CELL)
            module, _, function = STAGES[told["stage"]].function.partition(":")
            result = getattr(import_module(module), function)(CellRun.read(folder, device))
            write_json(folder / RESULT, result)
            _write_done(folder, told, before + time.time() - began, device)
        except UserError as error:
            print(f"error: {error}", flush=True)
            return 2
        except (Interrupted, KeyboardInterrupt) as error:
            print(error, flush=True)
            return INTERRUPTED
        except Exception as error:  # any: other cells of this process must not be lost
            if is_out_of_memory(error):
                print(f"error: {MORE_MEMORY}", flush=True)
                return 2
            traceback.print_exc()
            print(f"internal error: {type(error).__name__}: {' '.join(str(error).split())}", flush=True)
            return 1
    return 0


def _write_output_to(log: Path) -> None:
    """Send what this process and its libraries print to a file."""
    sys.stdout.flush()
    sys.stderr.flush()
    with open(log, "ab") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)


def _note_attempt(folder: Path) -> float:
    """Write down that work begins; return the seconds that earlier attempts spent.

    An attempt is taken to have lived as long as it wrote to its log: one that was killed said nothing of its end.
    """
    attempts = read_json(folder / ATTEMPTS) if (folder / ATTEMPTS).exists() else []
    if attempts:
        last = attempts[-1]
        last["seconds"] = max(0.0, (folder / LOG).stat().st_mtime - last["began"])
    attempts.append({"began": time.time(), "host": socket.gethostname(), "pid": os.getpid()})
    write_json(folder / ATTEMPTS, attempts)
    return float(sum(one["seconds"] for one in attempts[:-1]))


def _write_done(folder: Path, told: Mapping[str, Any], seconds: float, device: str) -> None:
    stage = STAGES[told["stage"]]
    write_json(
        folder / DONE,
        {
            "key": told["key"],
            "stage": told["stage"],
            "sort": stage.sort(told["settings"]),
            "work": stage.work(told["settings"]),
            "seconds": round(seconds, 2),
            "host": socket.gethostname(),
            "device": device,
            "latentlab": __version__,
            "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        },
    )


def _die_with(parent: int) -> None:
    """Be asked to stop when the process that started this one is gone, kill -9 included (Linux)."""
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG
    if os.getppid() != parent:
        sys.exit(INTERRUPTED)


def main(arguments: Sequence[str]) -> int:
    """Do the cells one after the other; return the greatest exit status."""
    import psutil

    from latentlab.runtime import prepare_threads

    parser = argparse.ArgumentParser(prog="python -m latentlab.study.cells.process")
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--parent", type=int, default=None, help="process without which this one must not go on")
    asked = parser.parse_args(arguments)
    if asked.parent is not None:
        _die_with(asked.parent)
    prepare_threads()
    worst, began = 0, psutil.Process().create_time()
    for folder in asked.folders:
        worst = max(worst, run_cell(folder.resolve(), asked.device, began))
        if worst == INTERRUPTED:
            break
        began = time.time()
    return worst


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
