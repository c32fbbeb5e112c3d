"""The stores a generator is trained on: encoded now, found in the cache, or given; made by the tokenizer that decodes."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from latentlab.data import ImageSet, open_data
from latentlab.data.mirrored import MirroredImages
from latentlab.encoding import cached_store_path, encode_images, open_tokenizer, weights_digest
from latentlab.errors import UserError
from latentlab.latents import TokenizerSpec
from latentlab.store import LatentStore
from latentlab.tokenizers.base import Tokenizer
from mind.run_config import DataConfig


@dataclass(frozen=True)
class Stores:
    """Latents to train on, held-out ones, and what decodes them.

    Attributes:
        train: the training images, and the same mirrored if asked for.
        validation: held-out images.
        tokenizer: made all of them.
        images: the training images, where they are known; what samples are scored against.
    """

    train: list[LatentStore]
    validation: LatentStore | None
    tokenizer: Tokenizer
    images: ImageSet | None


def open_stores(
    data: DataConfig, tokenizer: Tokenizer, device: torch.device, dtype: str, held_out: int | None = None
) -> Stores:
    """Encode what is not in the cache yet, in ``dtype``, and open everything; at most ``held_out`` images of validation.

    Raises:
        UserError: images that cannot be opened, or a store that another tokenizer made.
    """
    images = None if data.train is None else open_data(data.train, image_size=data.image_size, limit=data.limit)
    train = [_store(tokenizer, images, data.store, device, dtype)]
    if data.mirrored_store is not None or (data.mirror and images is not None):
        mirrored = None if images is None else MirroredImages(images)
        train.append(_store(tokenizer, mirrored, data.mirrored_store, device, dtype))
    elif data.mirror and train[0].has_mirrored:  # encoded with --flip
        train.append(train[0].mirrored())
    validation = None
    if data.validation is not None or data.validation_store is not None:
        others = None
        if data.validation is not None:
            others = open_data(data.validation, image_size=data.image_size, limit=held_out)
        validation = _store(tokenizer, others, data.validation_store, device, dtype)
    return Stores(train, validation, tokenizer, images)


def chosen_tokenizer(data: DataConfig, device: torch.device) -> Tokenizer:
    """Return the tokenizer that the configuration names, with the weights that suit its images."""
    source = data.train or "fashion" * (data.release is None and data.weights is None)
    return open_tokenizer(data.tokenizer, source, weights=data.weights, release=data.release, device=device)


def _store(
    tokenizer: Tokenizer, images: ImageSet | None, path: Path | None, device: torch.device, dtype: str
) -> LatentStore:
    """Return the store at ``path``, or the cached one of ``images``, encoded now if need be."""
    if path is not None:
        store = LatentStore(path)
        check_tokenizer(store, tokenizer.spec, weights_digest(tokenizer))
        return store
    assert images is not None
    return encode_images(tokenizer, images, cached_store_path(tokenizer, images, dtype), device=device, dtype=dtype)


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
