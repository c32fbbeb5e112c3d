"""The stages of a study: what kinds of cells there are, which function does each, and about how long it takes.

A function takes a `latentlab.study.cells.process.CellRun` and returns its results as JSON values; the module is imported in
the process of the cell only. ``version`` is part of every key: raise it when what a finished cell holds changes its meaning.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

Settings = Mapping[str, Any]


@dataclass(frozen=True)
class Stage:
    """One kind of cell.

    Attributes:
        function: ``module:function``.
        seconds: what a unit of work takes on one CPU, as long as no finished cell tells.
        work: units of work of a cell with these settings.
        sort: settings that tell cells of one stage apart that take unlike times.
        version: of what its results mean.
    """

    function: str
    seconds: float
    work: Callable[[Settings], float] = lambda settings: 1.0
    sort: Callable[[Settings], str] = lambda settings: ""
    version: int = 1


def _training_images(settings: Settings) -> float:
    optimiser = settings["config"]["optimiser"]
    return float(optimiser["steps"] * optimiser["batch_size"])


def _passes(settings: Settings) -> float:
    sampler = settings["sampler"]
    guided = 1 if sampler.get("cfg_scale", 1) == 1 else 2
    return float(settings["n"] * sampler.get("steps", 50) * guided)


_HERE = "latentlab.study.stages"

STAGES = {
    "train_tokenizer": Stage(f"{_HERE}.tokenizers:train_tokenizer", 3e-3, _training_images),
    "tokenizer_at_hand": Stage(f"{_HERE}.tokenizers:tokenizer_at_hand", 4),
    "control": Stage(f"{_HERE}.tokenizers:control", 15, sort=lambda s: s["control"]),
    "encode": Stage(f"{_HERE}.tokenizers:encode", 20, sort=lambda s: str(s["images"])),
    "measure": Stage(f"{_HERE}.latents:measure", 8, sort=lambda s: s["measurement"]),
    "latent_map": Stage(f"{_HERE}.latents:latent_map", 20),
    "reconstruct": Stage(f"{_HERE}.decoding:reconstruct", 40),
    "reconstruct_training": Stage(f"{_HERE}.decoding:reconstruct_training", 8),
    "reconstruction_distance": Stage(f"{_HERE}.decoding:reconstruction_distance", 15, sort=lambda s: s["judge"]),
    "decoder": Stage(f"{_HERE}.decoding:decoder", 20),
    "floor": Stage(f"{_HERE}.samples:floor", 30, sort=lambda s: s["judge"]),
    "train_generator": Stage(f"{_HERE}.generators:train_generator", 1.5e-3, _training_images, lambda s: s["kind"]),
    "sample": Stage(f"{_HERE}.generators:sample", 2.5e-4, _passes, lambda s: s["kind"]),
    "evaluate": Stage(f"{_HERE}.samples:evaluate", 20, sort=lambda s: s["judge"]),
    "latent_distance": Stage(f"{_HERE}.samples:latent_distance", 8),
    "trajectories": Stage(f"{_HERE}.generators:trajectories", 15, lambda s: float(s["n"]) / 256),
}
"""Stages by name, in the order of the work."""
