"""The tokens MIND learns: ids of all training images in memory, from the latent store, checked against the model."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from latentlab.data import ImageSet
from latentlab.errors import UserError
from latentlab.ranks import Ranks
from latentlab.store import LatentStore
from latentlab.tokenizers.base import DiscreteTokenizer
from mind.config import MindConfig
from mind.run_config import DataConfig
from mind.stores import chosen_tokenizer, open_stores


class CodeLimits(NamedTuple):
    """What ids must fit; a `MindConfig` has these too."""

    vocab_size: int
    tokens: int
    num_classes: int


@dataclass(frozen=True)
class TokenSet:
    """Ids of n images.

    Attributes:
        indices: [n,l], or [2,n,l] with the mirrored images second; int16 where the vocabulary allows, else int32.
        labels: class ids, int64 [n].
    """

    indices: Tensor
    labels: Tensor

    @property
    def n(self) -> int:
        """Number of images."""
        return len(self.labels)

    def take(self, images: Tensor, mirrored: Tensor) -> tuple[Tensor, Tensor]:
        """Return ids [b,l] and labels [b], int64, of ``images`` [b]; the mirrored copy where ``mirrored`` [b] says so."""
        side = mirrored.long() if len(self.indices) == 2 else torch.zeros_like(images)
        return self.indices[side, images].long(), self.labels[images]


@dataclass(frozen=True)
class TokenSource:
    """Tokens to train on, held-out ones, and what decodes them."""

    train: TokenSet
    validation: TokenSet | None
    tokenizer: DiscreteTokenizer
    images: ImageSet | None
    """The training images, where they are known; what samples are scored against."""
    fingerprints: Mapping[str, str]
    """Of what is learned, by name of the setting that names it."""


def open_tokens(
    data: DataConfig,
    model: MindConfig,
    device: torch.device,
    held_out: int | None = None,
    ranks: Ranks = Ranks(),
) -> TokenSource:
    """Encode what is not in the cache yet, and return all tokens in memory; arguments as of `open_stores`.

    Raises:
        UserError: the tokenizer is not discrete, a store was made by another one or lacks codes or labels, or tokens do not
            fit the model: vocabulary, number per image, classes.
    """
    tokenizer = chosen_tokenizer(data, device)
    if not isinstance(tokenizer, DiscreteTokenizer):
        raise UserError(f"tokenizer '{data.tokenizer}' is continuous: MIND learns ids, choose a discrete one (ibq)")
    stores = open_stores(data, tokenizer, device, "float16", held_out, ranks)
    validation = None if stores.validation is None else token_set([stores.validation], model)
    return TokenSource(token_set(stores.train, model), validation, tokenizer, stores.images, stores.fingerprints)


def token_set(stores: list[LatentStore], model: MindConfig | CodeLimits) -> TokenSet:
    """Return the ids of a store, or of two with the same images, the second mirrored.

    Raises:
        UserError: as `open_tokens`.
    """
    labels = [_checked_labels(store, model) for store in stores]
    for store, others in zip(stores, labels, strict=True):
        if not np.array_equal(others, labels[0]):
            raise UserError(f"{store.path} must hold the images of {stores[0].path}, mirrored: labels or number differ")
    dtype = torch.int16 if model.vocab_size <= torch.iinfo(torch.int16).max else torch.int32
    sides = [torch.cat([_codes(store, part, model).to(dtype) for part in store.slices(8192)]) for store in stores]
    return TokenSet(torch.stack(sides), torch.from_numpy(labels[0]))


def _checked_labels(store: LatentStore, model: MindConfig | CodeLimits) -> np.ndarray:
    """Return the labels [n] of a store that has codes and labels in the number that the model expects.

    Raises:
        UserError: it does not.
    """
    if not store.has_codes:
        raise UserError(f"{store.path} has no codes: MIND learns the ids of a discrete tokenizer; encode with one")
    if store.labels is None:
        raise UserError(f"{store.path} has no labels: MIND is conditioned on classes; encode images with labels")
    if store.cells != model.tokens:
        raise UserError(f"{store.path} has {store.cells} tokens per image, the model {model.tokens}: set model.tokens")
    if store.labels.max() >= model.num_classes or store.labels.min() < 0:
        raise UserError(
            f"{store.path} has labels {store.labels.min()} to {store.labels.max()}, the model {model.num_classes} classes "
            f"(0 to {model.num_classes - 1}): set model.num_classes"
        )
    return store.labels


def _codes(store: LatentStore, part: slice, model: MindConfig | CodeLimits) -> Tensor:
    """Return checked ids [b,l] of some images."""
    codes = store.codes(part).flatten(1)
    wrong = (codes < 0) | (codes >= model.vocab_size)
    if wrong.any():
        image, token = (int(i) for i in torch.nonzero(wrong)[0])
        raise UserError(
            f"{store.path}: token {token} of image {part.start + image} is {int(codes[image, token])}, outside the model's "
            f"vocabulary of {model.vocab_size}: set model.vocab_size, or use the store of another tokenizer"
        )
    return codes
