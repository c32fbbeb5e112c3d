"""Exact nearest neighbours among whole latents: thousands of dimensions, streamed, at a fraction of a float32 search.

Almost all pairs are ruled out by 8-bit products, four to five times faster than float32 ones on processors that multiply 8-bit
integers. That is a filter, not an approximation: the rounding of every vector is measured, and by Cauchy and Schwarz

    |q.g - q'.g'| <= |q - q'| |g| + |q'| |g - g'|

bounds what it does to a product. Pairs the bound cannot exclude are scored in float32 at once (which raises the bar for those
that follow), and what float32 cannot decide is scored in float64. The result is that of `analyses.neighbours.nearest`.

Vectors are centred first, since a component that all share carries rounding errors but no order: with q = m + a, g = m + b,
the order of q.g over g is that of a.b + m.b; for Euclidean distance it is that of a.b - |b|^2/2.
"""

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from analyses.neighbours import METRICS, Metric, best_of_rows, unit_error
from analyses.threads import map_in_threads
from latentlab.errors import UserError, unknown_name
from latentlab.latents import Latents

_QUERY_BYTES = 192 << 20
"""Queries in memory at a time, in float32: the gallery is read once for each such block."""

_GALLERY_BYTES = 64 << 20
"""Gallery vectors in memory at a time, in float32."""

_CHUNK_BYTES = 4 << 20
"""Temporaries of pairs and of vectors on their way to 8 bits: they stay in the cache."""

_GROUP = 32
"""Columns per group; only groups whose largest score may matter are looked at again."""

_CENTRE_SAMPLE = 512
"""Gallery vectors whose mean is the centre; any centre is correct, a good one makes the bound tighter."""

_WORTHWHILE = 0.01
"""Above this share of undecided pairs float32 products of all of them cost less than of each alone."""


def nearest_latents(
    queries: Latents, gallery: Latents, k: int, metric: Metric = "cosine", own: np.ndarray | None = None
) -> np.ndarray:  # => int64 [n,k]
    """Return for every query the indices of its k nearest gallery latents, all numbers of a latent as one vector.

    Distances are those of float64; equal ones come in the order of their index, and a zero vector has cosine 0 to all.
    Memory: about 600 MB whatever the sizes of the sets, and the result.

    Args:
        queries: latents.
        gallery: latents of the same shape.
        k: number of neighbours.
        metric: ``cosine`` or ``l2``.
        own: [n], the index of each query in the gallery, which does not count as its neighbour (-1: it is not there).

    Raises:
        UserError: shapes that differ, fewer than k candidates, NaN or infinity.
    """
    if metric not in METRICS:
        raise unknown_name("metric", metric, METRICS)
    if queries.shape != gallery.shape:
        raise UserError(f"gallery must have latents of shape {list(queries.shape)}, got {list(gallery.shape)}")
    available = gallery.n - (own is not None and bool((own >= 0).any()))
    if not 1 <= k <= available:
        raise UserError(f"k must be between 1 and the {available} latents to choose from, got k={k}")
    space = _Space(gallery, metric)
    if queries is gallery and own is not None and np.array_equal(own, np.arange(gallery.n)):
        return _among_themselves(space, k)
    found = np.empty((queries.n, k), dtype=np.int64)
    for rows in queries.slices(max(1, _QUERY_BYTES // space.row_bytes)):
        vectors, search = space.load(queries, rows, "queries"), _Search(rows.stop - rows.start, k)
        for columns in gallery.slices(max(1, _GALLERY_BYTES // space.row_bytes)):
            others = space.load(gallery, columns, "gallery")
            excluded = None if own is None else own[rows] - columns.start
            search.add(vectors, others, _coarse_products(vectors, others), columns.start, excluded)
        found[rows] = space.decide(queries, rows, *search.undecided(), k)
    return found


def _among_themselves(space: "_Space", k: int) -> np.ndarray:
    """Return the k nearest others of every gallery latent: a product of two blocks serves both, so half of them suffice."""
    latents = space.gallery
    blocks = list(latents.slices(max(1, (_QUERY_BYTES + _GALLERY_BYTES) // 2 // space.row_bytes)))
    searches = [_Search(block.stop - block.start, k) for block in blocks]
    for i, rows in enumerate(blocks):
        vectors = space.load(latents, rows, "queries")
        own = np.arange(rows.stop - rows.start)
        searches[i].add(vectors, vectors, _coarse_products(vectors, vectors), rows.start, own)
        for j in range(i + 1, len(blocks)):
            others = space.load(latents, blocks[j], "gallery")
            products = _coarse_products(vectors, others)
            searches[i].add(vectors, others, products, blocks[j].start, None)
            turned = None if products is None else products.T.contiguous()
            searches[j].add(others, vectors, turned, rows.start, None)
    decided = [
        space.decide(latents, rows, *search.undecided(), k) for rows, search in zip(blocks, searches, strict=True)
    ]
    return np.concatenate(decided)


class _Pairs(NamedTuple):
    """Pairs of a query and a gallery vector: indices [p] and an upper bound of their score."""

    row: Tensor
    column: Tensor
    score: Tensor


@dataclass(frozen=True)
class _Vectors:
    """Centred vectors, exact enough for float32, and rounded to 8 bits.

    Attributes:
        values: [b,d] float32.
        offset: [b], what is added to the products with a gallery vector (gallery side only).
        norms: [b] upper bounds of the lengths of ``values``.
        codes: [b,d] int8, None where 8-bit products are not to be used.
        steps: [b], ``codes * steps`` approximates ``values``.
        errors: [b] upper bounds of the lengths of ``values - codes * steps``.
        drift: [b] upper bounds of what the rounding of ``values`` and ``offset`` adds to the error of a product.
    """

    values: Tensor
    offset: Tensor
    norms: Tensor
    codes: Tensor | None
    steps: Tensor
    errors: Tensor
    drift: Tensor


class _Space:
    """How latents become vectors whose products rank the gallery.

    Attributes:
        gallery: what is searched.
        row_bytes: size of one vector in float32.
    """

    def __init__(self, gallery: Latents, metric: Metric) -> None:
        self.gallery, self._metric = gallery, metric
        self._width = gallery.channels * gallery.cells
        self.row_bytes = 4 * self._width
        self._rooms: dict[str, tuple[Tensor, Tensor]] = {}
        self._coded = eight_bit_products_are_exact() and self._width * 127**2 < 2**31
        sample = (
            gallery.take(np.unique(np.linspace(0, gallery.n - 1, _CENTRE_SAMPLE).astype(np.int64))).flatten(1).double()
        )
        if metric == "cosine":
            norms = sample.norm(dim=1, keepdim=True)
            sample /= torch.where(norms > 0, norms, 1.0)
        self._centre = sample.mean(0).float()
        # Euclidean distances are scaled so that lengths are about 1, whatever the unit of the data.
        self._scale = float((sample - self._centre).norm(dim=1).max()) or 1.0

    def load(self, latents: Latents, part: slice, side: str) -> _Vectors:
        """Return the latents of ``part`` as vectors, in the place of those loaded before for the same ``side``."""
        n, d = part.stop - part.start, self._width
        if side not in self._rooms or len(self._rooms[side][0]) < n:  # fresh memory costs as much as the arithmetic
            self._rooms[side] = torch.empty(n, d), torch.empty(n if self._coded else 0, d, dtype=torch.int8)
        values, codes = self._rooms[side][0][:n], self._rooms[side][1][:n] if self._coded else None
        offset, norms, steps, errors = torch.zeros(4, n)

        def fill(piece: slice) -> None:
            rows = self._centred(latents.take(slice(part.start + piece.start, part.start + piece.stop)).flatten(1))
            values[piece], norms[piece] = rows, rows.norm(dim=1)
            offset[piece] = rows @ self._centre if self._metric == "cosine" else norms[piece].square() / -2
            if codes is not None:
                step = (rows.abs().amax(1, keepdim=True) / 127).clamp_min(1e-30)
                rounded = rows.mul(1 / step).round_()
                codes[piece], steps[piece] = rounded, step[:, 0]
                errors[piece] = rounded.mul_(step).sub_(rows).norm(dim=1)

        map_in_threads(fill, self._parts(n), most=n)
        if not torch.isfinite(norms).all():
            raise UserError("latents with NaN or infinity have no neighbours: leave them out")
        slack = 1 + 2 * unit_error(values)  # for the rounding of these bounds themselves
        return _Vectors(values, offset, norms * slack, codes, steps, errors * slack, self._drift(norms * slack))

    def decide(self, queries: Latents, part: slice, row: Tensor, column: Tensor, k: int) -> np.ndarray:
        """Return the k best columns of the queries of ``part``, [b,k], of pairs among which they are."""
        scores = self.exact(queries, row + part.start, column)
        return best_of_rows(scores, row, column, part.stop - part.start, k).numpy()

    def exact(self, queries: Latents, rows: Tensor, columns: Tensor) -> Tensor:
        """Return the float64 scores of pairs, [p], larger is nearer; equal vectors get equal scores."""
        order = torch.argsort(columns, stable=True)  # files are read from front to back
        scores = torch.empty(len(rows), dtype=torch.float64)

        def fill(piece: slice) -> None:
            pairs = order[piece]
            q, g = (
                latents.take(index[pairs].numpy()).flatten(1).double()
                for latents, index in ((queries, rows), (self.gallery, columns))
            )
            if self._metric == "l2":
                scores[pairs] = -(q - g).square().sum(1)
            else:
                norms = q.norm(dim=1) * g.norm(dim=1)
                scores[pairs] = (q * g).sum(1) / torch.where(norms > 0, norms, 1.0)

        map_in_threads(fill, self._parts(len(rows)), most=len(rows))
        return scores

    def _centred(self, batch: Tensor) -> Tensor:
        """Return the vectors of flattened latents [b,d], float32."""
        if self._metric == "l2":
            return ((batch - self._centre.to(batch)) * (1 / self._scale)).float()
        norms = torch.linalg.vector_norm(batch, dim=1, keepdim=True, dtype=torch.float64)
        inverse = torch.where(norms > 0, 1 / torch.where(norms > 0, norms, 1.0), 0.0)
        return torch.addcmul(-self._centre.to(batch), batch, inverse.to(batch)).float()

    def _drift(self, norms: Tensor) -> Tensor:
        """Return bounds on what `_centred` and offsets, computed in float32, add to the error of a product, per vector.

        Unit vectors are rounded before they are centred, so that the error is relative to their length 1, not to what is
        left; Euclidean differences are rounded after it. Offsets are sums of as many products as the vectors' own.
        """
        if self._metric == "l2":
            return torch.zeros_like(norms)
        centre = float(self._centre.double().norm())
        eps = torch.finfo(torch.float32).eps
        return 4 * eps * (1 + norms) * (1 + centre) + centre * norms * unit_error(self._centre[None])

    def _parts(self, n: int) -> Iterator[slice]:
        step = max(1, _CHUNK_BYTES // (8 * self._width))
        for start in range(0, n, step):
            yield slice(start, min(start + step, n))


class _Search:
    """What is known of the k nearest gallery vectors of each query while the gallery passes by.

    Two lists per query hold lower bounds of the scores of k different pairs, of 8-bit and of float32 scores. The smallest
    bound in a list is a bar that every pair among the k best must reach; the higher of the two bars counts.
    """

    def __init__(self, n: int, k: int) -> None:
        self._k = k
        self._coarse, self._fine = (np.full((n, k), -np.inf, dtype=np.float32) for _ in range(2))
        self._found: list[_Pairs] = []

    def add(
        self, queries: _Vectors, gallery: _Vectors, products: Tensor | None, start: int, own: np.ndarray | None
    ) -> None:
        """Compare with gallery vectors ``start``, ``start + 1``, ...

        Args:
            queries: always the same ones.
            gallery: others.
            products: [b,m] of their codes, if there are any.
            start: index of the first gallery vector.
            own: the excluded column of each query, [b], counted from ``start``; None when it is not among these.
        """
        pairs = self._by_eight_bits(queries, gallery, products, own) or self._by_float32(queries, gallery, own)
        self._found.append(_Pairs(pairs.row, pairs.column + start, pairs.score))

    def undecided(self) -> tuple[Tensor, Tensor]:
        """Return (rows, columns), sorted, of all pairs that may be among the k best."""
        row, column, upper = (torch.cat(parts) for parts in zip(*self._found, strict=True))
        kept = upper >= self._bar()[row]
        order = np.lexsort((column[kept].numpy(), row[kept].numpy()))
        return row[kept][order], column[kept][order]

    def _by_eight_bits(
        self, queries: _Vectors, gallery: _Vectors, products: Tensor | None, own: np.ndarray | None
    ) -> _Pairs | None:
        """Return the pairs that may reach the bar, with upper bounds; None where 8 bits leave too many undecided."""
        if products is None:
            return None
        scores = products + gallery.offset
        fine = _float32_error(queries, gallery)
        error = queries.errors * gallery.norms.max() + (queries.norms + queries.errors) * gallery.errors.max() + fine
        groups = _Groups(_without(scores, own), self._k)
        self._coarse = _largest(self._coarse, groups.best(self._k) - error[:, None], self._k)
        row, column, score = groups.members(self._bar() - error)
        before = self._fine
        leads = _places(row, score) < self._k  # the best so far, scored first: most others cannot reach their bar
        parts = [self._rescored(queries, gallery, row[leads], column[leads], fine)]
        rest = ~leads & (score + error[row] >= self._bar()[row])
        if rest.sum() > _WORTHWHILE * scores.numel():
            self._fine = before  # each pair has one bound in it, and float32 brings that of the leads again
            return None
        parts.append(self._rescored(queries, gallery, row[rest], column[rest], fine))
        return _Pairs(*(torch.cat(columns) for columns in zip(*parts, strict=True)))

    def _rescored(self, queries: _Vectors, gallery: _Vectors, row: Tensor, column: Tensor, error: Tensor) -> _Pairs:
        """Score pairs in float32, raise the bar by them and return them with upper bounds."""
        score = _products(queries, gallery, row, column)
        lower = torch.full(self._fine.shape, -torch.inf)
        place = _places(row, score)
        kept = place < self._k
        lower[row[kept], place[kept]] = (score - error[row])[kept]
        self._fine = _largest(self._fine, lower, self._k)
        return _Pairs(row, column, score + error[row])

    def _by_float32(self, queries: _Vectors, gallery: _Vectors, own: np.ndarray | None) -> _Pairs:
        scores = torch.addmm(gallery.offset, queries.values, gallery.values.T)
        error = _float32_error(queries, gallery)
        groups = _Groups(_without(scores, own), self._k)
        self._fine = _largest(self._fine, groups.best(self._k) - error[:, None], self._k)
        row, column, score = groups.members(self._bar() - error)
        return _Pairs(row, column, score + error[row])

    def _bar(self) -> Tensor:
        return torch.from_numpy(np.maximum(self._coarse.min(1), self._fine.min(1)))


def _coarse_products(queries: _Vectors, gallery: _Vectors) -> Tensor | None:
    """Return the products [b,m] of the vectors as rounded to 8 bits, None where there are no codes."""
    if queries.codes is None or gallery.codes is None:
        return None
    return (torch._int_mm(queries.codes, gallery.codes.T) * gallery.steps).mul_(queries.steps[:, None])


def _products(queries: _Vectors, gallery: _Vectors, row: Tensor, column: Tensor) -> Tensor:
    """Return float32 scores of pairs; rows ascend, and so do the columns of one row."""
    b, m = len(queries.values), len(gallery.values)
    ends = torch.zeros(b + 1, dtype=torch.int64)
    ends[1:] = torch.bincount(row, minlength=b).cumsum(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # sparse tensors are called a beta feature
        wanted = torch.sparse_csr_tensor(ends, column, torch.zeros(len(row)), (b, m))
        found = torch.sparse.sampled_addmm(wanted, queries.values, gallery.values.T, beta=0.0)
    return found.values() + gallery.offset[column]


def _float32_error(queries: _Vectors, gallery: _Vectors) -> Tensor:
    """Return the largest error of the float32 scores of each query, [b]."""
    largest = queries.norms * gallery.norms.max() + gallery.offset.abs().max()
    return largest * unit_error(queries.values) + queries.drift + gallery.drift.max()


class _Groups:
    """Scores [b,m] in groups of columns: one pass finds their largest, and most groups need no second look."""

    def __init__(self, scores: Tensor, k: int) -> None:
        m = scores.shape[1]
        self.size = max(1, min(_GROUP, m // (4 * k)))
        self._scores = scores
        whole = m - m % self.size
        self._best = scores[:, :whole].unflatten(1, (-1, self.size)).amax(2)
        if whole < m:
            self._best = torch.cat([self._best, scores[:, whole:].amax(1, keepdim=True)], 1)

    def best(self, k: int) -> Tensor:
        """Return the largest scores of k groups, [b,k], or of all where there are fewer."""
        kept = min(k, self._best.shape[1])
        return torch.from_numpy(np.partition(self._best.numpy(), -kept, axis=1)[:, -kept:])

    def members(self, floor: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return rows (ascending), columns and scores of all pairs of at least ``floor`` [b]; struck out ones never are."""
        row, group = torch.nonzero(self._best >= floor[:, None], as_tuple=True)
        column = group[:, None] * self.size + torch.arange(self.size)
        last = self._scores.shape[1] - 1
        score = torch.where(column <= last, self._scores[row[:, None], column.clamp_max(last)], -torch.inf)
        pair, member = torch.nonzero((score >= floor[row, None]) & (score > -torch.inf), as_tuple=True)
        return row[pair], column[pair, member], score[pair, member]


def _without(scores: Tensor, own: np.ndarray | None) -> Tensor:
    """Strike out column ``own`` [b] of every row, where it is one of these columns."""
    if own is not None:
        rows = np.flatnonzero((own >= 0) & (own < scores.shape[1]))
        scores[rows, own[rows]] = -torch.inf
    return scores


def _largest(first: np.ndarray, second: Tensor, k: int) -> np.ndarray:
    """Return the k largest of both in every row, [b,k]."""
    return np.partition(np.concatenate([first, second.numpy()], 1), -k, axis=1)[:, -k:]


def _places(row: Tensor, values: Tensor) -> Tensor:
    """Return the rank of every value among those of its row, the largest first: [p], from 0; ``row`` is ascending."""
    order = np.lexsort((-values.numpy(), row.numpy()))
    ranks = np.empty(len(order), dtype=np.int64)
    ranks[order] = np.arange(len(order)) - np.searchsorted(row.numpy(), row.numpy())
    return torch.from_numpy(ranks)


@cache
def eight_bit_products_are_exact() -> bool:
    """Return whether this processor multiplies 8-bit matrices fast, and torch adds up the products without saturating."""
    if not getattr(torch.cpu, "_is_vnni_supported", bool)() or not hasattr(torch, "_int_mm"):
        return False
    extreme = torch.full((32, 512), 127, dtype=torch.int8)
    extreme[::2] = -127
    try:
        found = torch._int_mm(extreme, extreme.T)
    except RuntimeError:
        return False
    return torch.equal(found.double(), extreme.double() @ extreme.double().T)
