"""Random numbers as a function of (seed, stream, step): resuming needs no saved generator, any sample can be drawn alone."""

import hashlib
from functools import lru_cache

import torch


def generator(seed: int, *stream: str | int) -> torch.Generator:
    """Return a CPU generator that depends only on ``seed`` and the ``stream`` names and numbers.

    Example: ``generator(seed, "flip", step)`` gives the flips of one training step, whatever was drawn before.
    """
    name = "/".join(map(str, (seed, *stream)))
    value = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little")
    return torch.Generator().manual_seed(value >> 1)  # torch seeds are signed


def batch_indices(n: int, batch_size: int, step: int, seed: int) -> torch.Tensor:
    """Return which of ``n`` images make up training batch number ``step`` (from 0), int64 [batch_size].

    Every epoch is a new permutation; batches run on across epochs, so that no image is left out.
    """
    first = step * batch_size
    epochs = range(first // n, (first + batch_size - 1) // n + 1)
    order = torch.cat([_order(n, seed, epoch) for epoch in epochs])
    start = first - epochs[0] * n
    return order[start : start + batch_size]


@lru_cache(2)  # a step may reach into the next epoch
def _order(n: int, seed: int, epoch: int) -> torch.Tensor:
    """Return the order of the images in one epoch; kept, because a permutation of a million takes as long as a step."""
    return torch.randperm(n, generator=generator(seed, "order", epoch))
