"""A study of real parts as small as they get, and an engine whose processes start at once.

A cell's own process spends seconds on importing torch. Here a server that has imported everything is forked instead; what runs in
the fork is what `python -m latentlab.study.cells.process` runs.
"""

import multiprocessing
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from latentlab.checkpoints import list_checkpoints
from latentlab.study.cells.cell import Graph
from latentlab.study.cells.graph import build_graph
from latentlab.study.cells.state import prepare
from latentlab.study.engine.local import Ended, Job
from latentlab.study.engine.run import run_cells
from latentlab.study.engine.schedule import Schedule
from latentlab.study.plan_file import Resources, StudyFile, load_study

_STAGES = "latentlab.study.stages"
_PRELOADED = [f"{_STAGES}.{name}" for name in ("tokenizers", "latents", "decoding", "generators", "samples")]
_PROGRAM = """
import os, signal
from latentlab.study.cells.process import main
os.environ.update({environment!r})  # the server has that of the moment when it was started
for number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number, signal.SIG_DFL)
os._exit(main({arguments!r}))
"""
JUDGE = "fashion-classifier"

TOKENIZER = [
    "optimiser.steps=4", "optimiser.batch_size=4", "data.limit=64", "validation_images=8", "architecture.ch=8",
    "checkpoint_every=2", "validate_every=4", "loss.perceptual=0",
]  # fmt: skip
GENERATOR = [
    "optimiser.steps=4", "optimiser.batch_size=4", "model.depth=1", "model.width=32", "model.heads=2", "model.patch=4",
    "checkpoint_every=2", "data.mirror=false", "log_every=2", "validation_images=16",
]  # fmt: skip


def tiny_study(**changes: Any) -> dict[str, Any]:
    """Return the content of a study file: a tokenizer and its control, one generator, two guidance scales."""
    whole = {
        "title": "Tiny",
        "images": "fashion:train",
        "limit": 64,
        "held_out_images": "fashion:test",
        "held_out_limit": 64,
        "tokenizers": [
            {"label": "ae", "cluster": "baseline", "family": "conv", "train": "ae", "set": TOKENIZER},
            {"label": "mixed", "control": "orthogonal", "of": "ae"},
        ],
        "measure": {"rmsc": {}, "codebook": {}},
        "decoder_noise": [0.1],
        "generators": [
            {"label": "sit", "kind": "sit", "base": "sit-fashion", "set": GENERATOR, "sample": {"steps": 2},
             "guidance": [1.0, 2.0]}
        ],
        "samples": 12,
        "judges": [JUDGE],
        "trajectories": {"n": 8, "settings": {"steps": 4}},
    }  # fmt: skip
    return {**whole, **changes}


def written(folder: Path, content: dict[str, Any]) -> Path:
    """Write a study file."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "study.yaml"
    file.write_text(yaml.safe_dump(content))
    return file


def opened(folder: Path, content: dict[str, Any]) -> tuple[StudyFile, Graph]:
    """Return a study and its graph."""
    study = load_study(written(folder, content))
    return study, build_graph(study)


def run_study(folder: Path, content: dict[str, Any], engine: "ForkEngine | None" = None) -> tuple[Schedule, list[str]]:
    """Run a study in ``folder/out``; return how it ended, and the titles of the cells that were started, in order."""
    study, graph = opened(folder, content)
    chosen = engine or ForkEngine()
    graph.write(folder / "out")
    schedule = run_cells(study, graph, folder / "out", chosen)
    return schedule, [cell.title for job in chosen.jobs for cell in job.cells]


def training(folder: Path, steps: int = 40) -> Path:
    """Return the folder of a training cell that is ready to run; a checkpoint is saved after every other step."""
    longer = [*TOKENIZER, f"optimiser.steps={steps}", f"validate_every={steps}"]
    tokenizer = {**tiny_study()["tokenizers"][0], "set": longer}
    _, graph = opened(folder, tiny_study(tokenizers=[tokenizer]))
    cell = next(cell for cell in graph.cells if cell.stage == "train_tokenizer")
    return prepare(cell, folder / "out")


def wait_for(what: Callable[[], Any]) -> None:
    """Wait until something is there; two minutes are a failure."""
    deadline = time.monotonic() + 120
    while not what() and time.monotonic() < deadline:
        time.sleep(0.002)
    assert what()


def checkpoints(folder: Path) -> list[Path]:
    """Return the checkpoints of a training cell."""
    return list_checkpoints(folder / "run" / "checkpoints")


class ForkEngine:
    """Processes forked from a server that has everything imported."""

    name = "forks"

    def __init__(self, workers: int = 2) -> None:
        self.workers: float = workers
        self.jobs: list[Job] = []
        self._running: dict[Job, Any] = {}

    def check(self, wants: Resources, stage: str) -> None:
        pass

    def room(self, wants: Resources) -> bool:
        return len(self._running) < self.workers

    def start(self, job: Job) -> None:
        self.jobs.append(job)
        self._running[job] = fork([str(folder) for folder in job.folders])

    def ended(self) -> list[Ended]:
        over = [job for job, process in self._running.items() if process.exitcode is not None]
        return [Ended(job, self._running.pop(job).exitcode) for job in over]

    def stop(self) -> None:
        for process in self._running.values():
            process.terminate()
            process.join()
        self._running.clear()


def fork(arguments: list[str]) -> Any:
    """Start what ``python -m latentlab.study.cells.process`` does with these arguments."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOADED)
    process = context.Process(target=exec, args=(_PROGRAM.format(arguments=arguments, environment=dict(os.environ)),))
    process.start()
    return process
