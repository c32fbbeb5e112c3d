"""What is the best a generator could score: real images of the training set, and the tokenizer's reconstructions of them."""

from pathlib import Path
from typing import Any

import torch

from latentlab import __version__
from latentlab.codec import codec_of
from latentlab.data import open_data
from latentlab.encoding import open_tokenizer, weights_digest
from latentlab.errors import UserError
from latentlab.files import digest
from latentlab.finished import FinishedSteps
from latentlab.pixels import Pixels, SetPixels, as_pixels
from latentlab.quality.image_sets import EvaluationSet
from latentlab.study.training.scoring import POINT_VERSION, Judge
from mind.run_config import DataConfig


def real_floor(data: DataConfig, n: int, judge: Judge, kept: Path, device: str = "cpu") -> dict[str, Any]:
    """Return the quality of ``n`` training images, balanced over classes: what a perfect generator would have.

    Raises:
        UserError: the run was trained on a store, whose images are not known, or they cannot be read.
    """
    return _judged(f"real {data.train}", _training_images(data, n), judge, kept, device)


def reconstruction_floor(data: DataConfig, n: int, judge: Judge, kept: Path, device: str = "cpu") -> dict[str, Any]:
    """Return the quality of the reconstructions of the same images: what a perfect generator of these latents would have.

    Raises:
        UserError: as of `real_floor`, or a tokenizer that cannot be loaded.
    """
    images = _training_images(data, n)
    tokenizer = open_tokenizer(
        data.tokenizer, data.train or "", weights=data.weights, release=data.release, device=device
    )
    codec = codec_of(tokenizer, device)
    parts = [codec.decode(codec.encode(images.take(rows))) for rows in images.slices()]
    name = f"{data.tokenizer} {weights_digest(tokenizer)} of {images.fingerprint}"
    return _judged(name, as_pixels(torch.cat(parts)), judge, kept, device)


def _training_images(data: DataConfig, n: int) -> Pixels:
    images = SetPixels(open_data(data.train or "", image_size=data.image_size, limit=n))
    if images.n < n:
        raise UserError(f"{data.train} has {images.n} images, fewer than the {n} samples: distances would not compare")
    return images


def _judged(name: str, images: Pixels, judge: Judge, kept: Path, device: str) -> dict[str, Any]:
    key = digest([__version__, POINT_VERSION, name, images.fingerprint, judge.key])
    finished = FinishedSteps(kept / "points")
    found = finished.get(key, key)
    if found is None:
        found = judge.judge(EvaluationSet(name, images, {"kind": "images", "path": name, "n": images.n}), device)
        finished.put(key, key, found)
    return dict(found)
