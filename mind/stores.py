"""The stores a generator is trained on: encoded now, found in the cache, or given; made by the tokenizer that decodes."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from latentlab.data import ImageSet, open_data
from latentlab.data.mirrored import MirroredImages
from latentlab.encoding import cached_store_path, encode_batch, encode_images, open_tokenizer, weights_digest
from latentlab.errors import UserError
from latentlab.latents import TokenizerSpec, tokenizer_layout
from latentlab.pixels import to_unit_range
from latentlab.ranks import Ranks
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
        fingerprints: name of a setting -> content of what it names: training images, stores that were given, the tokenizer.
    """

    train: list[LatentStore]
    validation: LatentStore | None
    tokenizer: Tokenizer
    images: ImageSet | None
    fingerprints: Mapping[str, str]


def open_stores(
    data: DataConfig,
    tokenizer: Tokenizer,
    device: torch.device,
    dtype: str,
    held_out: int | None = None,
    ranks: Ranks = Ranks(),
) -> Stores:
    """Encode what is not in the cache yet, and open everything.

    Args:
        data: which images or stores.
        tokenizer: encodes them.
        device: where.
        dtype: precision of the latents on disk.
        held_out: images of validation, at most.
        ranks: share the encoding; all of them must call this.

    Raises:
        UserError: images that cannot be opened, or a store that another tokenizer made.
    """

    def store(images: ImageSet | None, path: Path | None) -> LatentStore:
        """Return the store at ``path``, or the cached one of ``images``, encoded now if need be."""
        if path is not None:
            return _given_store(path, tokenizer)
        assert images is not None
        cached = cached_store_path(tokenizer, images, dtype)
        return encode_images(tokenizer, images, cached, device=device, dtype=dtype, ranks=ranks)

    images = None if data.train is None else open_data(data.train, image_size=data.image_size, limit=data.limit)
    train = [store(images, data.store)]
    if data.mirrored_store is not None or (data.mirror and images is not None):
        mirrored = None if images is None else MirroredImages(images)
        train.append(store(mirrored, data.mirrored_store))
    elif data.mirror and train[0].has_mirrored:  # encoded with --flip
        train.append(train[0].mirrored())
    validation = None
    if data.validation is not None or data.validation_store is not None:
        others = None
        if data.validation is not None:
            others = open_data(data.validation, image_size=data.image_size, limit=held_out)
        validation = store(others, data.validation_store)
    opened = {"store": train[0], "mirrored_store": train[-1], "validation_store": validation}
    given = {key: one for key, one in opened.items() if getattr(data, key) is not None and one is not None}
    told = {f"data.{key}": one.fingerprint for key, one in given.items()}
    told["data.tokenizer"] = weights_digest(tokenizer)
    if images is not None:
        told["data.train"] = images.fingerprint
    return Stores(train, validation, tokenizer, images, told)


def chosen_tokenizer(data: DataConfig, device: torch.device) -> Tokenizer:
    """Return the tokenizer that the configuration names, with the weights that suit its images."""
    source = data.train or "fashion" * (data.release is None and data.weights is None)
    return open_tokenizer(data.tokenizer, source, weights=data.weights, release=data.release, device=device)


def latent_shape(data: DataConfig, tokenizer: Tokenizer, device: torch.device) -> tuple[int, ...]:
    """Return the shape (c,h,w) or (l,c) of the latents that are learned; one image is encoded where none is given.

    Raises:
        UserError: an image that cannot be read, or a store that another tokenizer made.
    """
    if data.store is not None:
        return tuple(tokenizer_layout(_given_store(data.store, tokenizer).take(slice(0, 1))).shape[1:])
    assert data.train is not None
    pixels = open_data(data.train, image_size=data.image_size, limit=1).images(np.arange(1))
    with torch.inference_mode():
        latents, _ = encode_batch(tokenizer.to(device).eval(), to_unit_range(pixels.to(device)))
    return tuple(latents.shape[1:])


def _given_store(path: Path, tokenizer: Tokenizer) -> LatentStore:
    store = LatentStore(path)
    check_tokenizer(store, tokenizer.spec, weights_digest(tokenizer))
    return store


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
