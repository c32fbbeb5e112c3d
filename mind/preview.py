"""What a training run shows on the way: a grid of samples, and how far samples are from the training images."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from latentlab.errors import UserError
from latentlab.quality.features import feature_extractor
from latentlab.quality.generation import generation_distance
from latentlab.ranks import Ranks
from latentlab.runtime import say
from mind.generate import ImageGenerator, sample_images
from mind.labels import class_labels, rank_slice
from mind.output import write_grid
from mind.recipe import Recipe
from mind.tracking import Trackers

GRID = "samples"
"""Name of the grids: of their folder, and in trackers."""

_SCORED = "score_images"

Weights = Callable[[bool], Any]
"""False for the raw, True for the averaged weights, as a network of its own; every rank must call it."""


class Preview:
    """Samples of a run at the steps its configuration names."""

    def __init__(self, recipe: Recipe, out: Path, ranks: Ranks, trackers: Trackers) -> None:
        """Check what will be needed, so that it does not fail hours later.

        Raises:
            UserError: scores of latents whose images are not known.
        """
        self._recipe, self._out, self._ranks, self._trackers = recipe, out, ranks, trackers
        self._config, self._seed = recipe.config.preview, recipe.config.seed
        if self._config.score_every and recipe.images is None:
            raise UserError(
                "preview.score_every compares samples with the training images: give data.train instead of store"
            )
        if self._config.score_every and ranks.first:
            feature_extractor(self._config.extractor)  # its weights may be missing

    def take(self, step: int, last: bool, weights: Weights, seen: frozenset[str] = frozenset()) -> dict[str, float]:
        """Draw and score what is due after ``step`` steps; return the scores. Every rank must call it.

        Args:
            step: of training.
            last: whether it is the last one.
            weights: what is drawn with.
            seen: what there is of this step already, and need not be made again: `GRID`, names of scores.
        """
        if due(step, self._config.grid_every, last) and GRID not in seen:
            self._grid(step, weights(True))
        if not due(step, self._config.score_every, last) or _SCORED in seen:
            return {}
        return {**self._score(weights(False), "raw"), **self._score(weights(True), "ema")}

    def _grid(self, step: int, network: Any) -> None:
        """Write samples of the averaged weights, a row for each class; the first rank does."""
        if not self._ranks.first:
            return
        generator = self._recipe.generator(network)
        labels = np.repeat(np.arange(min(self._config.classes, generator.num_classes)), self._config.per_class)
        path = grid_file(self._out, step)
        write_grid(path, self._images(generator, labels, slice(None)), self._config.per_class)
        self._trackers.image(step, GRID, path)

    def _score(self, network: Any, which: str) -> dict[str, float]:
        """Return the distance of class-balanced samples from the training images; ranks share the sampling."""
        n, generator = self._config.score_images, self._recipe.generator(network)
        labels = class_labels(n, generator.num_classes, "equal", self._seed).numpy()
        drawn = self._ranks.gather(self._images(generator, labels, rank_slice(n, self._ranks.rank, self._ranks.size)))
        if not self._ranks.first:
            return {}
        images = torch.from_numpy(np.concatenate(drawn)).permute(0, 3, 1, 2)
        distance = generation_distance(
            images, self._recipe.images, self._config.extractor, generator.device, self._seed
        )
        say(f"{which} weights  {distance.name} {distance.value:.2f} ({n} samples)")
        return {f"{distance.name}_{which}": distance.value, _SCORED: n}

    def _images(self, generator: ImageGenerator, labels: np.ndarray, part: slice) -> np.ndarray:
        """Return the samples of some of ``labels``, uint8 [m,H,W,3]."""
        return sample_images(generator, labels, seed=self._seed, batch_size=self._config.batch_size, part=part)


def grid_file(run: Path, step: int) -> Path:
    """Return where the grid of a step lies in the folder of a run."""
    return run / GRID / f"step_{step:08d}.png"


def due(step: int, every: int, last: bool) -> bool:
    """Return whether what happens after ``every`` steps (0 for never) and after the last one happens after ``step``."""
    return every > 0 and (step % every == 0 or last)
