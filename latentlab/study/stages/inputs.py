"""What several stages read: the tokenizer, the images and the latents of a cell."""

from pathlib import Path
from typing import Any

from latentlab.data import ImageSet, open_data
from latentlab.study.cells.process import CellRun, Finished
from latentlab.tokenizers.base import Tokenizer
from latentlab.tokenizers.load import load_tokenizer


def tokenizer_choice(tokenizer: Finished) -> dict[str, Any]:
    """Return ``name``, ``release`` and ``weights`` (None for the release's) of a cell that made or found a tokenizer."""
    told = tokenizer.result
    weights: Path | None = None if told["weights"] is None else tokenizer.file("weights")
    if "weights" in tokenizer.places:  # given ones, which may have moved since
        weights = tokenizer.folder / tokenizer.places["weights"]
    return {"name": told["name"], "release": None if weights else told["release"], "weights": weights}


def open_own_tokenizer(cell: CellRun) -> Tokenizer:
    """Return the tokenizer that a cell needs, on the cell's device.

    Raises:
        UserError: its weights are not there any more, or damaged.
    """
    return load_tokenizer(**tokenizer_choice(cell.needs["tokenizer"]), device=cell.device)


def open_own_images(cell: CellRun) -> ImageSet:
    """Return the images that a cell's settings speak of.

    Raises:
        UserError: they cannot be read.
    """
    return open_data(cell.places["images"], limit=cell.settings["images"]["limit"])


def latents_of(cell: CellRun, role: str = "latents") -> Path:
    """Return the folder of the latents that a cell needs."""
    return cell.needs[role].file("latents")
