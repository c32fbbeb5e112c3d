"""Stages that judge what a generator has drawn: its images by one judge, and its latents."""

from typing import Any

from latentlab.quality.image_sets import open_reference
from latentlab.store import LatentStore
from latentlab.study.cells.process import CellRun
from latentlab.study.quality_lost import latent_quality, sample_quality
from latentlab.study.stages.inputs import latents_of
from latentlab.study.training.scoring import Judge


def evaluate(cell: CellRun) -> dict[str, Any]:
    """Compare drawn images with training images, and with the tokenizer's reconstructions of them."""
    settings = cell.settings
    return sample_quality(
        cell.needs["sample"].file("samples"),
        cell.places["images"],
        [settings["judge"]],
        cell.needs["reconstructions"].file("images"),
        cell.device,
        settings["images"]["limit"],
    )


def latent_distance(cell: CellRun) -> dict[str, Any]:
    """Return the distance of drawn latents to those of training images."""
    return latent_quality(cell.needs["sample"].file("samples"), LatentStore(latents_of(cell)), cell.settings["seed"])


def floor(cell: CellRun) -> dict[str, Any]:
    """Return the distance of held-out real images, as many as are drawn, to the training images: the best to hope for."""
    settings = cell.settings
    real = open_reference(
        cell.places["held_out"], limit=min(settings["n"], settings["held_out"]["limit"] or settings["n"])
    )
    judge = Judge(cell.places["images"], settings["images"]["limit"], settings["judge"], ("fd",))
    (found,) = judge.judge(real, cell.device).values()
    return dict(found)
