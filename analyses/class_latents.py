"""The latents of one class, centred and linearly mapped, in pieces: kept in memory when they fit, else read on every pass.

Piece layout: [c,b,s] (channels, images, cells), so that a map of the channels and a map of the cells are each one plain
matrix product, without a transposition.
"""

from collections.abc import Iterable, Iterator

import numpy as np
import torch
from torch import Tensor

from latentlab.latents import ChannelMoments, Latents

PIECE_BYTES = 2 << 20
"""A piece and its image under a map fit into the caches of two cores."""

CACHE_BYTES = 128 << 20
"""Classes up to this size stay in memory while they are measured."""


class ClassLatents:
    """Latents x = P z Q^T of one class, with z [c,s] the latents of an image minus their class mean.

    P and Q start as identities and are extended by steps, each applied to the data as it is counted here: rounded to the
    type of the pieces. What is computed from x in float32 is therefore exact in P and Q.

    Attributes:
        n: number of images.
        mean: class mean of every coordinate, [c,s] float64.
        channel_map: P [c,c] float64.
        cell_map: Q [s,s] float64.
    """

    def __init__(
        self,
        latents: Latents,
        indices: np.ndarray,
        moments: ChannelMoments | None,
        dtype: torch.dtype,
        bases: tuple[Tensor, Tensor] | None = None,
    ) -> None:
        """Read the class once.

        Args:
            latents: where it is.
            indices: its images.
            moments: standardise the channels with these, or None.
            dtype: float32 or float64, the type of the pieces.
            bases: replace the latents by their coordinates in orthonormal channel [c,c'] and cell bases [s,s'].
        """
        self._latents, self._indices, self._moments = latents, indices, moments
        self._dtype, self._bases = dtype, bases
        self.n = len(indices)
        item_bytes = latents.channels * latents.cells * dtype.itemsize
        self._step = max(1, PIECE_BYTES // item_bytes)
        self._kept = list(self._read()) if self.n * item_bytes <= CACHE_BYTES else None
        self.mean = self._class_mean()
        for piece in self._kept or ():
            piece.sub_(self.mean.to(dtype)[:, None])
        self.channel_map, self.cell_map = (torch.eye(side, dtype=torch.float64) for side in self.mean.shape)

    def pieces(self, channel_step: Tensor | None = None, cell_step: Tensor | None = None) -> Iterator[Tensor]:
        """Extend P to ``channel_step @ P`` and Q to ``cell_step @ Q``; yield all x, [c,b,s] at a time, to be read only."""
        steps = [None if step is None else step.to(self._dtype) for step in (channel_step, cell_step)]
        self.channel_map, self.cell_map = map(self._extended, (self.channel_map, self.cell_map), steps)
        if self._kept is None:
            mean = self.mean.to(self._dtype)[:, None]
            for piece in self._read():
                yield _mapped(piece.sub_(mean), self.channel_map, self.cell_map)
        else:
            for i, piece in enumerate(self._kept):
                self._kept[i] = _mapped(piece, *steps)
                yield self._kept[i]

    def channel_gram(self, cell_step: Tensor | None = None) -> Tensor:
        """Return sum x x^T over images, float64 [c,c], after extending Q by ``cell_step``."""
        return _total(_gram(piece.flatten(1)) for piece in self.pieces(cell_step=cell_step))

    def cell_gram(self, channel_step: Tensor | None = None) -> Tensor:
        """Return sum x^T x over images, float64 [s,s], after extending P by ``channel_step``."""
        return _total(_gram(piece.flatten(0, 1).T) for piece in self.pieces(channel_step=channel_step))

    def _extended(self, chain: Tensor, step: Tensor | None) -> Tensor:
        if step is None:
            return chain
        longer = step.double() @ chain
        return longer if self._kept is not None else longer.to(self._dtype).double()

    def _class_mean(self) -> Tensor:
        """Return the mean, [c,s] float64, summed relative to the first image: that of equal images is exactly that image."""
        first: Tensor | None = None
        total = torch.zeros((), dtype=torch.float64)
        for piece in self._kept or self._read():
            first = piece[:, :1].clone() if first is None else first
            total = total + (piece - first).sum(1).double()
        assert first is not None
        return first[:, 0].double() + total / self.n

    def _read(self) -> Iterator[Tensor]:
        """Yield the latents as they are (standardised, in ``bases``), [c,b,s] at a time, to be overwritten."""
        for start in range(0, self.n, self._step):
            batch = self._latents.take(self._indices[start : start + self._step]).flatten(2).to(self._dtype)
            if self._moments is not None:
                batch = self._moments.standardise(batch)
            piece = batch.transpose(0, 1).contiguous()
            if self._bases is not None:
                piece = _mapped(piece, *(basis.T for basis in self._bases))
            yield piece


def images_by_class(labels: np.ndarray) -> dict[int, np.ndarray]:
    """Return the indices of every class's images, classes in ascending order."""
    order = np.argsort(labels, kind="stable")
    names, starts = np.unique(labels[order], return_index=True)
    return dict(zip(names.tolist(), np.split(order, starts[1:]), strict=True))


def _mapped(piece: Tensor, channel_map: Tensor | None, cell_map: Tensor | None) -> Tensor:
    if channel_map is not None:
        piece = (channel_map.to(piece) @ piece.flatten(1)).unflatten(1, piece.shape[1:])
    return piece if cell_map is None else piece @ cell_map.to(piece).T


def _gram(rows: Tensor) -> Tensor:
    return rows @ rows.T


def _total(parts: Iterable[Tensor]) -> Tensor:
    """Return the sum of ``parts``, accumulated in float64."""
    parts = iter(parts)
    total = next(parts).double()
    for part in parts:
        total += part
    return total
