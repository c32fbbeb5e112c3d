"""The tokens MIND learns: ids of all training images in memory, from the latent store, checked against the model."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from latentlab.data import ImageSet, open_data
from latentlab.data.mirrored import MirroredImages
from latentlab.encoding import cached_store_path, encode_images, open_tokenizer, weights_digest
from latentlab.errors import UserError
from latentlab.latents import TokenizerSpec
from latentlab.store import LatentStore
from latentlab.tokenizers.base import DiscreteTokenizer, Tokenizer
from mind.config import MindConfig
from mind.train_config import DataConfig


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


def open_tokens(data: DataConfig, model: MindConfig, device: torch.device) -> TokenSource:
    """Encode what is not in the cache yet, and return all tokens in memory.

    Raises:
        UserError: the tokenizer is not discrete, a store was made by another one or lacks codes or labels, or tokens do not
            fit the model: vocabulary, number per image, classes.
    """
    tokenizer = _discrete(data, device)
    images = None if data.train is None else open_data(data.train, image_size=data.image_size, limit=data.limit)
    stores = [_store(tokenizer, images, data.store, device)]
    if data.mirrored_store is not None or (data.mirror and images is not None):
        mirrored = None if images is None else MirroredImages(images)
        stores.append(_store(tokenizer, mirrored, data.mirrored_store, device))
    held_out = None
    if data.validation is not None or data.validation_store is not None:
        others = None if data.validation is None else open_data(data.validation, image_size=data.image_size)
        held_out = token_set([_store(tokenizer, others, data.validation_store, device)], model)
    return TokenSource(token_set(stores, model), held_out, tokenizer, images)


def token_set(stores: list[LatentStore], model: MindConfig) -> TokenSet:
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


def _checked_labels(store: LatentStore, model: MindConfig) -> np.ndarray:
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


def _codes(store: LatentStore, part: slice, model: MindConfig) -> Tensor:
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


def _discrete(data: DataConfig, device: torch.device) -> DiscreteTokenizer:
    source = data.train or "fashion" * (data.release is None and data.weights is None)
    tokenizer = open_tokenizer(data.tokenizer, source, weights=data.weights, release=data.release, device=device)
    if not isinstance(tokenizer, DiscreteTokenizer):
        raise UserError(f"tokenizer '{data.tokenizer}' is continuous: MIND learns ids, choose a discrete one (ibq)")
    return tokenizer


def _store(tokenizer: Tokenizer, images: ImageSet | None, path: Path | None, device: torch.device) -> LatentStore:
    """Return the store at ``path``, or the cached one of ``images``, encoded now if need be."""
    if path is not None:
        store = LatentStore(path)
        check_tokenizer(store, tokenizer.spec, weights_digest(tokenizer))
        return store
    assert images is not None
    return encode_images(
        tokenizer, images, cached_store_path(tokenizer, images, "float16"), device=device, dtype="float16"
    )


def check_tokenizer(store: LatentStore, spec: TokenizerSpec, weights: str) -> None:
    """Raise `UserError` unless the store was made by this tokenizer with these weights."""
    if store.spec is None:
        raise UserError(f"{store.path} does not say which tokenizer made it: encode with latentlab encode")
    request: dict[str, Any] = store.manifest.request if store.manifest else {}
    if store.spec.name != spec.name or request.get("weights", weights) != weights:
        raise UserError(
            f"{store.path} was made by {store.spec.name} ({store.spec.release}), the configuration names {spec.name} "
            f"({spec.release}): set data.tokenizer and data.release, or encode again"
        )
