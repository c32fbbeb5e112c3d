"""What a training run shows on the way: a grid of samples, and how far samples are from the training images."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from latentlab.errors import UserError
from latentlab.quality.generation import generation_distance
from latentlab.ranks import Ranks
from latentlab.runtime import say
from mind.generate import sample_images
from mind.labels import class_labels, rank_slice
from mind.network import Mind
from mind.output import write_grid
from mind.pipeline import MindGenerator
from mind.settings import SamplerSettings
from mind.tokens import TokenSource
from mind.tracking import Trackers
from mind.train_config import PreviewConfig

Weights = Callable[[bool], Mind]
"""False for the raw, True for the averaged weights, as a model of its own; every rank must call it."""


class Preview:
    """Samples of a run at the steps its configuration names."""

    def __init__(
        self, config: PreviewConfig, source: TokenSource, out: Path, ranks: Ranks, trackers: Trackers, seed: int
    ) -> None:
        """Check what will be needed, so that it does not fail hours later.

        Raises:
            UserError: sampler settings that do not exist, or scores of tokens whose images are not known.
        """
        self._config, self._source, self._out = config, source, out
        self._ranks, self._trackers, self._seed = ranks, trackers, seed
        self._settings = SamplerSettings(**config.sampler)
        if config.score_every and source.images is None:
            raise UserError(
                "preview.score_every compares samples with the training images: give data.train instead of store"
            )

    def take(self, step: int, last: bool, weights: Weights) -> dict[str, float]:
        """Draw and score what is due after ``step`` steps; return the scores. Every rank must call it."""
        if _due(step, self._config.grid_every, last):
            self._grid(step, weights(True))
        if not _due(step, self._config.score_every, last):
            return {}
        return {**self._score(weights(False), "raw"), **self._score(weights(True), "ema")}

    def _grid(self, step: int, model: Mind) -> None:
        """Write samples of the averaged weights, a row for each class; the first rank does."""
        if not self._ranks.first:
            return
        classes = min(self._config.classes, model.config.num_classes)
        labels = np.repeat(np.arange(classes), self._config.per_class)
        path = self._out / "samples" / f"step_{step:08d}.png"
        write_grid(path, self._images(model, labels, slice(0, len(labels))), self._config.per_class)
        self._trackers.image(step, "samples", path)

    def _score(self, model: Mind, which: str) -> dict[str, float]:
        """Return the distance of class-balanced samples from the training images; ranks share the sampling."""
        n = self._config.score_images
        labels = class_labels(n, model.config.num_classes, "equal", self._seed).numpy()
        own = self._images(model, labels, rank_slice(n, self._ranks.rank, self._ranks.size))
        drawn = self._ranks.gather(own)
        if not self._ranks.first:
            return {}
        images = torch.from_numpy(np.concatenate(drawn)).permute(0, 3, 1, 2)
        device = str(model.table.embedding.device)
        distance = generation_distance(images, self._source.images, self._config.extractor, device, self._seed)
        say(f"{which} weights  {distance.name} {distance.value:.2f} ({n} samples)")
        return {f"{distance.name}_{which}": distance.value, "score_images": n}

    def _images(self, model: Mind, labels: np.ndarray, part: slice) -> np.ndarray:
        """Return samples number part.start .. part.stop-1, uint8 [m,H,W,3]."""
        generator = MindGenerator(model, self._source.tokenizer, self._settings, precision=model.precision)
        return sample_images(generator, labels, seed=self._seed, batch_size=self._config.batch_size, part=part)


def _due(step: int, every: int, last: bool) -> bool:
    return every > 0 and (step % every == 0 or last)
