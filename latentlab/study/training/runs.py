"""The trained runs of a study: each in a process of its own, several side by side, those that are there not again."""

import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from latentlab import __version__
from latentlab.data import open_data
from latentlab.files import digest, file_sha256, write_text
from latentlab.run_folder import RunFolder, stop_signal
from latentlab.runtime import progress, usable_cpus
from latentlab.store import LatentStore
from mind.run_config import DataConfig, RunConfig
from mind.train_config import TrainConfig
from mind.training import kept_weights

_LAST_SHARE = 0.1
"""The final loss is the mean over this last share of the steps."""

_POLL_SECONDS = 0.2


@dataclass(frozen=True)
class Training:
    """One run; rows that train the same share it.

    Attributes:
        kind: of generator, a name of `mind.kinds`.
        overrides: what the study changes in a training configuration, ``a.b=value``, for the record.
        config: with the changes.
    """

    kind: str
    overrides: tuple[str, ...]
    config: RunConfig

    @cached_property
    def settings(self) -> dict[str, Any]:
        """The configuration as JSON values, MIND's model with every default filled in: spelling one out is no other run.

        The model of a baseline takes its shape from the latents too, and stays as it was written.
        """
        settings = self.config.model_dump(mode="json")
        if isinstance(self.config, TrainConfig):
            settings["model"] = self.config.mind.model_dump(mode="json")
        return settings

    @cached_property
    def name(self) -> str:
        """Name of everything that determines the weights: the configuration, and what is in the files that it names."""
        return digest([__version__, self.settings, *_contents(self.config.data)])

    def folder(self, runs: Path) -> Path:
        """Return the run's folder below the folder ``runs``."""
        return runs / self.name

    def weights(self, runs: Path, step: int | None = None, averaged: bool = False) -> Path:
        """Return where weights are, or will be: those of the end, or those kept after a ``step``."""
        run = self.folder(runs)
        folder = run if step is None or step == self.config.optimiser.steps else kept_weights(run, step)
        return folder / f"{self.kind}{'_ema' if averaged else ''}.safetensors"

    def finished(self, runs: Path) -> bool:
        """Return whether the run is done: averaged weights are written last."""
        return self.weights(runs, averaged=True).is_file()

    def log(self, runs: Path) -> Path:
        """Return the file of what the run says."""
        return runs / f"{self.name}.log"

    def write_settings(self, runs: Path) -> Path:
        """Write and return the file that the run is started with: the same one for whatever is called by the same name.

        A run goes on only under the very configuration that it was begun with.
        """
        file = runs / f"{self.name}.yaml"
        write_text(file, yaml.safe_dump(self.settings))
        return file


def _contents(data: DataConfig) -> list[str]:
    """Return digests of the files that a run reads; of what ships with the package the name says all."""
    stores = [path for path in (data.store, data.mirrored_store, data.validation_store) if path is not None]
    sources = [name for name in (data.train, data.validation) if name is not None and not name.startswith("fashion")]
    return [
        *([] if data.weights is None else [file_sha256(data.weights)]),
        *(LatentStore(path).fingerprint for path in stores),
        *(open_data(name, image_size=data.image_size).fingerprint for name in sources),
    ]


def train_all(trainings: Sequence[Training], runs: Path, jobs: int = 1, device: str = "auto") -> dict[str, str]:
    """Train what is not finished in ``runs``, ``jobs`` at a time; interrupted runs continue. Main thread only.

    SIGTERM and Ctrl-C let every run save a checkpoint, then raise KeyboardInterrupt.

    Returns:
        Name of each run that failed -> its last words.
    """
    missing = {t.name: t for t in trainings if not t.finished(runs)}
    waiting, failed = list(missing.values()), {}
    running: dict[str, tuple[Training, subprocess.Popen[bytes]]] = {}
    try:
        with stop_signal() as stop, progress("training", len(waiting)) as advance:
            while waiting or running:
                while waiting and len(running) < jobs:
                    training = waiting.pop(0)
                    running[training.name] = training, _start(training, runs, jobs, device)
                time.sleep(_POLL_SECONDS)
                if stop:
                    raise KeyboardInterrupt
                for name, (training, process) in list(running.items()):
                    if process.poll() is not None:
                        del running[name]
                        advance(1)
                        if not training.finished(runs):
                            failed[name] = last_words(training.log(runs), process.poll())
    finally:
        for _, process in running.values():  # we are being stopped: let them save a checkpoint
            process.terminate()
        for _, process in running.values():
            process.wait()
    return failed


def _start(training: Training, runs: Path, jobs: int, device: str) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-m", "latentlab", "train", training.kind]
    command += ["--config", str(training.write_settings(runs))]
    command += ["--out", str(training.folder(runs)), "--device", device]
    threads = str(max(1, usable_cpus() // jobs))
    environment = {**os.environ, "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
    with open(training.log(runs), "ab") as log:
        # a session of its own: Ctrl-C of a terminal reaches us only, and a run is asked to stop once, not twice
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )


def last_words(log: Path, code: int | None) -> str:
    """Return the last error in a log, or its last line; and the signal that ended the process.

    Args:
        log: what a process has said.
        code: its exit status, negative for a signal.
    """
    text = log.read_text(encoding="utf-8", errors="replace") if log.exists() else ""
    lines = [line for line in text.splitlines() if line.strip()]
    if code is not None and code < 0:
        return f"ended by signal {-code} after: {lines[-1].strip() if lines else 'nothing'}"
    errors = [line for line in lines if line.startswith(("error:", "internal error:"))]
    return (errors or lines or ["it stopped without a word"])[-1].strip().removeprefix("error: ")


def final_losses(run: Path) -> dict[str, float]:
    """Return the means of ``loss``, ``ce`` and ``mse`` over the last tenth of the steps of a run that are in its metrics."""
    lines = [line for line in RunFolder(run).metrics() if "loss" in line]
    if not lines:
        return {}
    first = lines[-1]["step"] * (1 - _LAST_SHARE)
    last = [line for line in lines if line["step"] > first]
    return {name: sum(line[name] for line in last) / len(last) for name in ("loss", "ce", "mse") if name in lines[-1]}


def held_out_loss(run: Path, averaged: bool) -> float | None:
    """Return the loss on held-out images at the end of a run, None where it was not measured; kinds do not compare."""
    name = "validation_ema_loss" if averaged else "validation_loss"
    losses = [line[name] for line in RunFolder(run).metrics() if name in line]
    return losses[-1] if losses else None


def norm_history(run: Path) -> Mapping[str, list[float]]:
    """Return the columns ``step``, ``latent_norm``, ``raw_norm`` and ``nearest_angle`` of a run's metrics; may be empty."""
    names = ("step", "latent_norm", "raw_norm", "nearest_angle")
    lines = [line for line in RunFolder(run).metrics() if all(name in line for name in names)]
    return {name: [line[name] for line in lines] for name in names}
