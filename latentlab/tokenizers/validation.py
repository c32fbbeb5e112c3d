"""What a tokenizer's training run shows on the way: scores on held-out images, and a grid of their reconstructions."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from latentlab.data import ImageSet, open_data
from latentlab.pixels import SetPixels, to_unit_range
from latentlab.quality.features import check_extractor, feature_extractor
from latentlab.quality.fidelity import to_uint8
from latentlab.quality.generation import generation_distance
from latentlab.quality.reconstruction import reconstruction_scores
from latentlab.run_folder import write_grid
from latentlab.runtime import say
from latentlab.tokenizers.base import Tokenizer
from latentlab.tokenizers.config import TrainConfig

_SHOWN = 16


class Validation:
    """Held-out images and what is measured on them; one rank does it."""

    def __init__(self, config: TrainConfig, out: Path, device: torch.device) -> None:
        """Open the images and check what will be needed, so that it does not fail hours later.

        Raises:
            UserError: no such images; an unknown vision network, or its weights are not on this machine.
        """
        self._config, self._out, self._device = config, out, device
        data = config.data
        limit, seed = config.validation_images, config.seed
        self._images = open_data(data.validation, image_size=data.image_size, limit=limit, seed=seed)
        if config.rfd is not None:
            check_extractor(config.rfd)
            feature_extractor(config.rfd)

    @torch.no_grad()
    def take(self, tokenizer: Tokenizer, step: int) -> dict[str, float]:
        """Score ``tokenizer`` after ``step`` steps and write the grid; return the scores by name."""
        scores = reconstruction_scores(tokenizer, self._images, device=self._device)
        found = {f"validation_{name}": estimate.value for name, estimate in scores.items()}
        if self._config.rfd is not None:
            made = torch.cat([to_uint8(self._reconstructed(tokenizer, part)).cpu() for part in self._batches()])
            reference = SetPixels(self._images)
            distance = generation_distance(made, reference, self._config.rfd, str(self._device), self._config.seed)
            found[f"validation_r{distance.name}"] = distance.value
        say(
            "held out  " + "  ".join(f"{name.removeprefix('validation_')} {value:.4f}" for name, value in found.items())
        )
        self._draw(tokenizer, self._images, step)
        return found

    def _batches(self) -> list[Tensor]:
        return [images for _, images in self._images.batches(64)]

    def _reconstructed(self, tokenizer: Tokenizer, images: Tensor) -> Tensor:
        """Return the reconstructions [n,3,H,W] in [-1,1] of uint8 images."""
        return tokenizer.decode(tokenizer.encode(to_unit_range(images).to(self._device)))

    def _draw(self, tokenizer: Tokenizer, images: ImageSet, step: int) -> None:
        originals = images.images(np.arange(min(_SHOWN, images.n)))
        rows = torch.cat([to_unit_range(originals).to(self._device), self._reconstructed(tokenizer, originals)])
        write_grid(self._out / "reconstructions" / f"step_{step:08d}.png", rows, len(originals))
