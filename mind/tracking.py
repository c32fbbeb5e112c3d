"""Curves and pictures of a run in TensorBoard or Weights & Biases, beside the ``metrics.jsonl`` that is always written."""

import importlib
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

import numpy as np
from PIL import Image

from latentlab.errors import UserError, unknown_name
from latentlab.files import write_text

_WANDB_ID = "wandb_id.txt"


class _Tracker(Protocol):
    def log(self, step: int, values: Mapping[str, float]) -> None: ...
    def image(self, step: int, name: str, path: Path) -> None: ...
    def close(self) -> None: ...


class Trackers:
    """Every tracker the user asked for, as one; without names all methods do nothing."""

    def __init__(self, names: Sequence[str], folder: Path, config: Mapping[str, Any], step: int = 0) -> None:
        """Start or continue the trackers of one run; their packages are imported here. For rank 0 only.

        Args:
            names: ``tensorboard`` (event files in ``folder/tensorboard``) and ``wandb`` (project latentlab; its own environment
                variables apply, for example WANDB_MODE=offline).
            folder: of the run.
            config: JSON values of the run's configuration.
            step: optimiser steps done before. What an interrupted run logged after it TensorBoard shows anew; wandb keeps what it
                has and ignores steps until the last one it knows.

        Raises:
            UserError: unknown name, the package is not installed, or wandb cannot start.
        """
        for name in names:
            if name not in _KINDS:
                raise unknown_name("tracker", name, _KINDS)
        self._trackers = [_KINDS[name](folder, config, step) for name in names]

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Add one point to the curve of every name in ``values``."""
        for tracker in self._trackers:
            tracker.log(step, values)

    def image(self, step: int, name: str, path: Path) -> None:
        """Show the RGB picture in ``path`` under ``name``."""
        for tracker in self._trackers:
            tracker.image(step, name, path)

    def close(self) -> None:
        """Write what is still buffered."""
        for tracker in self._trackers:
            tracker.close()


class _TensorBoard:
    def __init__(self, folder: Path, config: Mapping[str, Any], step: int) -> None:
        _imported("tensorboard")
        from torch.utils.tensorboard import SummaryWriter

        # A run killed after its last checkpoint takes some steps again: the curves show them once.
        self._writer = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)
        self._writer.add_text("config", "\n".join(f"    {key}: {value}" for key, value in config.items()), step)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def image(self, step: int, name: str, path: Path) -> None:
        self._writer.add_image(name, np.asarray(Image.open(path).convert("RGB")), step, dataformats="HWC")

    def close(self) -> None:
        self._writer.close()


class _WandB:
    def __init__(self, folder: Path, config: Mapping[str, Any], step: int) -> None:
        self._wandb = _imported("wandb")
        try:
            self._run = self._wandb.init(
                project="latentlab",
                name=folder.name,
                dir=str(folder),
                config=dict(config),
                id=_wandb_id(folder),
                resume="allow",
            )
        except self._wandb.Error as error:
            raise UserError(f"wandb cannot start ({error}): run 'wandb login', or set WANDB_MODE=offline") from error

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def image(self, step: int, name: str, path: Path) -> None:
        self._run.log({name: self._wandb.Image(str(path))}, step=step)

    def close(self) -> None:
        self._run.finish()


_KINDS: dict[str, Any] = {"tensorboard": _TensorBoard, "wandb": _WandB}


def _imported(package: str) -> ModuleType:
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise UserError(
            f"{package} is not installed: pip install 'latentlab[track]', or leave it out of track"
        ) from error


def _wandb_id(folder: Path) -> str:
    """Return the id under which wandb knows this run; made once per folder, so that a continued run is the same run."""
    file = folder / _WANDB_ID
    if not file.exists():
        write_text(file, secrets.token_hex(4))
    return file.read_text(encoding="utf-8").strip()
