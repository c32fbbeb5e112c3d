"""Stages of a generator: it is trained on the latents of a cell, draws images, and its sampling paths are measured."""

import os
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from latentlab.errors import UserError
from latentlab.files import write_json, write_text
from latentlab.finished import FinishedSteps
from latentlab.measurement import Estimate, Measurement
from latentlab.path_variance import Overlay, irreducible_variance, with_variance
from latentlab.store import LatentStore
from latentlab.study.cells.process import CellRun
from latentlab.study.generated_latents import generate_with_latents
from latentlab.study.stages.inputs import latents_of, tokenizer_choice
from latentlab.study.training.runs import final_losses, held_out_loss
from latentlab.trajectories import measure_paths
from mind.kinds import open_recipe, open_weights, read_run
from mind.labels import class_labels
from mind.open_generator import TokenizerChoice
from mind.open_paths import open_paths
from mind.training import train

_CONFIG, _RUN = "run.yaml", Path("run")


def train_generator(cell: CellRun) -> dict[str, Any]:
    """Train a generator, or go on where an earlier attempt stopped; its averaged weights are what counts.

    Paths in the configuration are relative to the cell's folder, so that a study may be moved between two attempts.
    """
    kind = cell.settings["kind"]
    config = {**cell.settings["config"], "data": _data(cell)}
    write_text(cell.folder / _CONFIG, yaml.safe_dump(config, sort_keys=False))
    os.chdir(cell.folder)
    run = read_run(kind, _CONFIG)
    train(run, partial(open_recipe, kind, run), _RUN, device=cell.device)
    return {
        "weights": str(_RUN / f"{kind}_ema.safetensors"),
        "losses": final_losses(_RUN),
        "held_out_loss": held_out_loss(_RUN, averaged=True),
    }


def _data(cell: CellRun) -> dict[str, Any]:
    """Return the data of the run: the latents of other cells, and what decodes them."""
    choice = tokenizer_choice(cell.needs["tokenizer"])
    mirrored = "mirrored" in cell.needs
    places = {
        "store": latents_of(cell),
        "validation_store": latents_of(cell, "held_out"),
        "mirrored_store": latents_of(cell, "mirrored") if mirrored else None,
        "weights": choice["weights"],
    }
    relative = {key: None if path is None else os.path.relpath(path, cell.folder) for key, path in places.items()}
    return {"tokenizer": choice["name"], "release": choice["release"], "mirror": mirrored, **relative}


def sample(cell: CellRun) -> dict[str, Any]:
    """Draw images; their latents are kept too."""
    settings = cell.settings
    generator = open_weights(
        settings["kind"],
        cell.needs["generator"].file("weights"),
        settings=settings["sampler"],
        tokenizer=TokenizerChoice(**tokenizer_choice(cell.needs["tokenizer"])),
        device=cell.device,
    )
    made = generate_with_latents(generator, cell.folder / "samples", n=settings["n"], seed=settings["seed"])
    grid = str(made.grid.relative_to(cell.folder))
    return {"samples": "samples", "grid": grid, "n": settings["n"], "record": made.record}


def trajectories(cell: CellRun) -> dict[str, Any]:
    """Measure sampling paths, beside the irreducible variance of the latents that they lead to."""
    settings = cell.settings
    opened = open_paths(
        cell.needs["generator"].file("weights"),
        settings=settings["sampler"],
        tokenizer=TokenizerChoice(**tokenizer_choice(cell.needs["tokenizer"])),
        device=cell.device,
    )
    labels = class_labels(settings["n"], opened.paths.num_classes, seed=settings["seed"])
    found = measure_paths(opened.paths, labels, seed=settings["seed"], finished=FinishedSteps(cell.folder / "paths"))
    store = LatentStore(latents_of(cell))
    with suppress(UserError):  # too few latents of a class: the paths themselves are no worse for it
        overlay = Overlay(opened.paths.latents(store), store.path)
        found = with_variance(found, irreducible_variance(opened.paths, overlay, settings["seed"]))
    write_json(cell.folder / "straightness.json", found.to_dict()["details"])
    discrete = store.spec is not None and store.spec.discrete
    return {"paths": _path_columns(found, discrete), "details": "straightness.json", "n": found.n}


def _path_columns(paths: Measurement, discrete: bool) -> dict[str, Any]:
    """Return name -> value and interval of what is known of the paths.

    Of codes the correlation with the irreducible variance is left out: their variance is of another kind (see
    `latentlab.path_variance`), and a column must not mix two kinds.
    """
    companions = paths.companions
    columns = {
        "straightness": Estimate(paths.value, paths.interval),
        "efficiency": companions["efficiency"],
        "length_ratio": companions["mean length ratio"],
    }
    correlation = companions.get("correlation with irreducible variance")
    if correlation is not None and not discrete:
        columns["step_variance_correlation"] = correlation
    return {
        name: {"value": one.value, "interval": one.interval and list(one.interval)} for name, one in columns.items()
    }
