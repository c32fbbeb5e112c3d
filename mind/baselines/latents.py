"""Normalised continuous latents to train on: read from stores at random, so that memory does not grow with their number."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from latentlab.errors import UserError
from latentlab.latents import tokenizer_layout
from latentlab.store import LatentStore
from latentlab.tokenizers.base import Tokenizer

Normalisation = Literal["channel", "tokenizer"]


@dataclass(frozen=True)
class Affine:
    """What brings latents to about zero mean and unit deviation, per channel: (latent - shift) * scale."""

    shift: tuple[float, ...]
    scale: tuple[float, ...]

    def normalise(self, latents: Tensor) -> Tensor:
        """Return normalised latents [b,c,h,w] or [b,l,c]."""
        shift, scale = self._shaped(latents)
        return (latents - shift) * scale

    def restore(self, latents: Tensor) -> Tensor:
        """Invert `normalise`."""
        shift, scale = self._shaped(latents)
        return latents / scale + shift

    def _shaped(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        shape = (1, -1, 1, 1) if latents.ndim == 4 else (1, 1, -1)
        shift, scale = (latents.new_tensor(values).view(shape) for values in (self.shift, self.scale))
        return shift, scale


def affine_of(store: LatentStore, tokenizer: Tokenizer, normalisation: Normalisation) -> Affine:
    """Return the normalisation of a data set: by its own channel statistics, or the tokenizer's published shift and scale.

    Raises:
        UserError: a channel that does not vary, or latents that are not finite (`Latents.moments`).
    """
    if normalisation == "tokenizer":
        return Affine(tokenizer.spec.shift, tokenizer.spec.scale)
    moments = store.moments
    if constant := int((moments.std == 0).sum()):
        raise UserError(
            f"{constant} of {store.channels} channels of {store.path} are constant and cannot be normalised: set "
            "normalisation: tokenizer, or train on another tokenizer"
        )
    return Affine(tuple(moments.mean.tolist()), tuple((1 / moments.std).tolist()))


class LatentSet:
    """Latents of n images, and of the same images mirrored where there is a second store.

    Attributes:
        n: number of images.
        labels: class ids, int64 [n].
        affine: their normalisation.
    """

    def __init__(self, stores: list[LatentStore], affine: Affine, num_classes: int) -> None:
        """Check that stores and labels fit.

        Raises:
            UserError: no labels, labels that are not classes of the model, or stores of different images.
        """
        first = stores[0]
        for store in stores:
            if store.labels is None:
                raise UserError(
                    f"{store.path} has no labels: generators are conditioned on classes; encode images with labels"
                )
            if not np.array_equal(store.labels, first.labels if first.labels is not None else []):
                raise UserError(f"{store.path} must hold the images of {first.path}, mirrored: labels or number differ")
        assert first.labels is not None
        if first.labels.min() < 0 or first.labels.max() >= num_classes:
            raise UserError(
                f"{first.path} has labels {first.labels.min()} to {first.labels.max()}, the model {num_classes} classes: set "
                "model.num_classes"
            )
        self._stores, self.affine = stores, affine
        self.n, self.labels = first.n, torch.from_numpy(first.labels)

    def take(self, images: Tensor, mirrored: Tensor) -> tuple[Tensor, Tensor]:
        """Return normalised latents [b,c,h,w] or [b,l,c], float32, and labels [b] of ``images`` [b].

        Raises:
            UserError: latents that are not finite.
        """
        taken = self._of(0, images)
        if len(self._stores) == 2 and mirrored.any():
            taken[mirrored] = self._of(1, images[mirrored])
        return self.affine.normalise(taken), self.labels[images]

    def _of(self, side: int, images: Tensor) -> Tensor:
        taken = tokenizer_layout(self._stores[side].take(images.numpy())).contiguous()
        finite = taken.flatten(1).isfinite().all(1)
        if not finite.all():
            number = int(images[~finite][0])
            copy = " (mirrored)" if side else ""
            raise UserError(
                f"{self._stores[side].path}: the latent of image {number}{copy} is NaN or infinite: encode again in float32"
            )
        return taken
