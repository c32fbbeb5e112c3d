"""A kind of generator as the trainer sees it: what is trained on what, and how the result is kept and sampled."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from latentlab.data import ImageSet
from mind.generate import ImageGenerator
from mind.run_config import RunConfig

Batch = tuple[Any, ...]
"""What the objective takes, on the device."""


class Recipe(ABC):
    """One kind of generator with its data, on one rank.

    Attributes:
        kind: names the exported files.
        config: of the run.
        device: where batches are put.
        n: number of training images.
        images: the training images, where they are known; what samples are scored against.
        fingerprints: of what is learned, by name of the setting that names it.
        sampler: settings that the run's samples are drawn with, and that its weight files recommend.
    """

    kind: str
    config: RunConfig
    device: torch.device
    n: int
    images: ImageSet | None
    fingerprints: Mapping[str, str]
    sampler: dict[str, Any]

    @abstractmethod
    def network(self) -> Any:
        """Return a fresh network on the CPU; its weights depend on torch's seed.

        It has ``blocks`` (a `ModuleList` of its largest parts), ``recompute`` and ``set_precision``.
        """

    @abstractmethod
    def objective(self, network: Any) -> nn.Module:
        """Return the module whose forward pass over a batch gives the terms, ``loss`` among them with a gradient."""

    @abstractmethod
    def batch(self, images: Tensor, places: Tensor, step: int) -> Batch:
        """Return the batch of training images [b].

        Everything random depends on (seed, step, place), so that ranks and accumulated parts do not change it; but the numbers
        of dropout, where a network has it, are drawn for all ``places`` together.

        Args:
            images: numbers of the images.
            places: their places in the whole step.
            step: from 0.
        """

    @abstractmethod
    def held_out(self) -> Iterator[tuple[int, Batch]]:
        """Yield batches of held-out images and how many are in each, with the same random numbers every time."""

    @abstractmethod
    def generator(self, network: Any) -> ImageGenerator:
        """Return what draws images with ``network`` and the run's sampler settings.

        Raises:
            UserError: settings that do not exist.
        """

    @abstractmethod
    def export(self, path: Path, network: Any, header: Mapping[str, str]) -> None:
        """Write a weight file that describes itself; ``header`` entries of the run go into it."""

    def statistics(self, network: Any) -> dict[str, float]:
        """Return what is logged about the weights; every rank must call it, since weights may lie in shards."""
        return {}
