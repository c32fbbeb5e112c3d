"""Stages that look at what the decoder makes of latents: reconstructions and their scores, and how it takes noise."""

from typing import Any

import numpy as np
import torch

from latentlab.codec import codec_of
from latentlab.measurement import Estimate
from latentlab.pixels import to_unit_range
from latentlab.quality.reconstruction import reconstruction_scores
from latentlab.run_folder import write_grid
from latentlab.store import LatentStore
from latentlab.study import quality_lost
from latentlab.study.cells.process import CellRun
from latentlab.study.decoder_sensitivity import decoder_sensitivity
from latentlab.study.stages.inputs import latents_of, open_own_images, open_own_tokenizer

_PICTURE, _IMAGES, _SHOWN = "reconstructions.png", "reconstructions.npz", 16


def reconstruct(cell: CellRun) -> dict[str, Any]:
    """Compare held-out images with their reconstructions, and draw some of both."""
    tokenizer, images = open_own_tokenizer(cell), open_own_images(cell)
    scores = reconstruction_scores(tokenizer, images, device=cell.device, seed=cell.settings["seed"])
    shown = np.linspace(0, images.n - 1, min(_SHOWN, images.n)).astype(int)
    originals = to_unit_range(images.images(shown))
    codec = codec_of(tokenizer, cell.device)
    rows = torch.cat([originals, codec.decode(codec.encode(originals))])
    write_grid(cell.folder / _PICTURE, rows, len(shown))
    return {"scores": {name: plain(one) for name, one in scores.items()}, "picture": _PICTURE, "n": images.n}


def plain(estimate: Estimate) -> dict[str, Any]:
    """Return a value and its interval as JSON values; infinity and NaN become None."""
    value = float(estimate.value) if np.isfinite(estimate.value) else None
    return {"value": value, "interval": estimate.interval and [float(end) for end in estimate.interval]}


def reconstruct_training(cell: CellRun) -> dict[str, Any]:
    """Write the reconstructions of as many training images as will be drawn: what a perfect generator would make."""
    n = cell.settings["n"]
    quality_lost.reconstruct(open_own_tokenizer(cell), cell.places["images"], n, cell.folder / _IMAGES, cell.device)
    return {"images": _IMAGES, "n": n}


def reconstruction_distance(cell: CellRun) -> dict[str, Any]:
    """Return the Frechet distance of these reconstructions to the training images, by one judge."""
    settings = cell.settings
    reconstructions = cell.needs["reconstructions"].file("images")
    return quality_lost.reconstruction_quality(
        reconstructions, cell.places["images"], [settings["judge"]], cell.device, settings["images"]["limit"]
    )


def decoder(cell: CellRun) -> dict[str, Any]:
    """Measure how decoded images change with noise on latents: a decoder that amplifies it ruins samples."""
    settings = cell.settings
    return decoder_sensitivity(
        open_own_tokenizer(cell),
        LatentStore(latents_of(cell)),
        sigmas=settings["noise"],
        judge=settings["judge"],
        seed=settings["seed"],
        device=cell.device,
    )
