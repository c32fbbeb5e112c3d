"""Points [n,d] that are read in chunks, again and again: in memory, rows of flattened latents, or a map of other points.

The fits (`pca`, `mixture`) read their data only through this, so they run over stores that do not fit into memory.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from latentlab.latents import Latents


class Points(ABC):
    """A set of points that can be read any number of times, always in the same order.

    Attributes:
        n: number of points.
        d: dimensions of one point.
    """

    n: int
    d: int

    @abstractmethod
    def chunks(self) -> Iterator[Tensor]:
        """Yield all points, [b,d] at a time; the reader must not write into them."""


class ArrayPoints(Points):
    """Points in memory (or memory-mapped), [n,d], handed out ``size`` rows at a time; not copied."""

    def __init__(self, rows: Tensor, size: int = 1 << 16) -> None:
        self._rows, self._size = rows, size
        self.n, self.d = rows.shape

    def chunks(self) -> Iterator[Tensor]:
        """Yield views of the rows."""
        yield from self._rows.split(self._size)


class LatentRows(Points):
    """Flattened latents [b, c*s] of the images where ``chosen`` [n] is True, read from the store in its own order."""

    def __init__(self, latents: Latents, chosen: np.ndarray) -> None:
        self._latents, self._chosen = latents, chosen
        self.n, self.d = int(chosen.sum()), latents.channels * latents.cells

    def chunks(self) -> Iterator[Tensor]:
        """Yield the chosen rows of each batch of latents."""
        for part in self._latents.slices():
            kept = torch.from_numpy(self._chosen[part])
            if kept.any():
                yield self._latents.take(part).flatten(1)[kept]


class MappedPoints(Points):
    """The image of ``points`` under ``function`` [b,d'] -> [b,d], computed anew in every pass."""

    def __init__(self, points: Points, function: Callable[[Tensor], Tensor], d: int) -> None:
        self._points, self._function = points, function
        self.n, self.d = points.n, d

    def chunks(self) -> Iterator[Tensor]:
        """Yield the mapped chunks."""
        for chunk in self._points.chunks():
            yield self._function(chunk)


def in_memory(points: Points, limit: int) -> Points:
    """Return ``points`` as one float64 array if that takes at most ``limit`` bytes, else as they are."""
    if 8 * points.n * points.d > limit:
        return points
    return ArrayPoints(gather(points, np.ones(points.n, dtype=bool)))


def sample(points: Points, count: int, seed: int) -> Tensor:
    """Return ``min(count, n)`` points drawn without replacement, float64 [count,d], in one pass; a function of (n, seed)."""
    chosen = np.zeros(points.n, dtype=bool)
    chosen[np.random.default_rng(seed).permutation(points.n)[:count]] = True
    return gather(points, chosen)


def gather(points: Points, chosen: np.ndarray) -> Tensor:
    """Return the points where ``chosen`` [n] is True, float64 [m,d], in one pass."""
    rows = torch.empty(int(chosen.sum()), points.d, dtype=torch.float64)
    read = filled = 0
    for chunk in points.chunks():
        kept = chunk[torch.from_numpy(chosen[read : read + len(chunk)])]
        rows[filled : filled + len(kept)] = kept
        read, filled = read + len(chunk), filled + len(kept)
    return rows
