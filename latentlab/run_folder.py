"""The folder of a training run: its configuration, its metrics, its checkpoints, and how a run is stopped."""

import json
import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import current_thread, main_thread
from types import FrameType
from typing import Any

import yaml
from PIL import Image
from torch import Tensor

from latentlab.checkpoints import list_checkpoints
from latentlab.errors import UserError
from latentlab.files import atomic_path, first_difference, read_json, write_json, write_text


class Interrupted(Exception):
    """Training was asked to stop (SIGTERM or Ctrl-C) and has saved a checkpoint."""


@dataclass(frozen=True)
class RunFolder:
    """``config.yaml``, ``data.json``, ``metrics.jsonl`` and ``checkpoints/`` of one run; nothing is written before `prepare`."""

    path: Path

    def prepare(self, config_text: str) -> None:
        """Write the resolved configuration, or check that the folder belongs to the same one.

        Raises:
            UserError: the folder belongs to another configuration, or cannot be written.
        """
        file = self.path / "config.yaml"
        before = file.read_text(encoding="utf-8") if file.exists() else config_text
        if before != config_text:
            what = first_difference(yaml.safe_load(before), yaml.safe_load(config_text)) or "written by another version"
            raise UserError(
                f"{self.path} holds a run with another configuration ({what}): choose another --out, or delete it"
            )
        write_text(file, config_text)

    def note_data(self, data: Mapping[str, str]) -> None:
        """Write down what the run learns from, or check that it is still the same: a configuration only says where it lies.

        What a folder of an earlier version did not note is noted now.

        Args:
            data: what it is -> fingerprint of its content.

        Raises:
            UserError: the run learned from something else so far, or the folder cannot be written.
        """
        file, now = self.path / "data.json", dict(data)
        before = {**now, **(read_json(file) if file.exists() else {})}
        if what := first_difference(before, now):
            raise UserError(
                f"{self.path} holds a run on data that have changed since ({what}): bring them back as they were, dates of files "
                "included, or choose another --out"
            )
        write_json(file, now)

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints; may not exist yet."""
        return self.path / "checkpoints"

    def newest(self) -> Path | None:
        """Return the checkpoint with the highest step, if there is one."""
        kept = list_checkpoints(self.checkpoints)
        return kept[-1] if kept else None

    def last_good(self) -> str:
        """Say in words, for a message, where training can continue from."""
        newest = self.newest()
        return f"the last good checkpoint is {newest}" if newest else "there is no checkpoint yet"

    def append(self, step: int, values: Mapping[str, Any]) -> None:
        """Add one line of JSON-serialisable ``values`` after ``step`` optimiser steps to ``metrics.jsonl``."""
        try:
            with open(self._metrics_file, "a", encoding="utf-8") as file:
                file.write(json.dumps({"step": step, **values}) + "\n")
        except OSError as error:
            raise UserError(f"cannot write {self._metrics_file}: {error.strerror or error}; free space") from error

    def metrics(self) -> list[dict[str, Any]]:
        """Return the lines of ``metrics.jsonl`` in order; a line cut off by a kill is left out."""
        if not self._metrics_file.exists():
            return []
        parsed = (_parse(line) for line in self._metrics_file.read_text(encoding="utf-8").splitlines())
        return [line for line in parsed if line is not None]

    def forget_after(self, step: int) -> None:
        """Drop lines of steps that will be taken again, and a line cut off by a kill."""
        if self._metrics_file.exists():
            kept = [line for line in self.metrics() if line["step"] <= step]
            write_text(self._metrics_file, "".join(json.dumps(line) + "\n" for line in kept))

    @property
    def _metrics_file(self) -> Path:
        return self.path / "metrics.jsonl"


def _parse(line: str) -> dict[str, Any] | None:
    try:
        values = json.loads(line)
    except ValueError:
        return None
    return values if isinstance(values, dict) and isinstance(values.get("step"), int) else None


class StopSignal:
    """Becomes true when the process is asked to stop."""

    asked = False

    def __bool__(self) -> bool:
        return self.asked


@contextmanager
def stop_signal() -> Iterator[StopSignal]:
    """Turn the first SIGTERM or SIGINT into a flag, so that the step in progress is finished and saved.

    The second one raises KeyboardInterrupt. Python hands signals to the main thread only: in others nothing is changed.
    """
    stop = StopSignal()
    if current_thread() is not main_thread():
        yield stop
        return

    def handle(number: int, frame: FrameType | None) -> None:
        if stop.asked:
            raise KeyboardInterrupt
        stop.asked = True

    before = {number: signal.signal(number, handle) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stop
    finally:
        for number, handler in before.items():  # None: one that was not installed from Python
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


def write_grid(path: Path, images: Tensor, columns: int) -> None:
    """Write ``images`` [n,3,H,W] in [-1,1] as one PNG with ``columns`` images a row, atomically."""
    from torchvision.utils import make_grid  # takes as long to import as torch itself

    grid = make_grid(images, nrow=columns, value_range=(-1, 1), normalize=True)
    with atomic_path(path) as temporary:
        Image.fromarray((grid * 255).round().byte().permute(1, 2, 0).cpu().numpy()).save(temporary, format="png")
