"""Exact k nearest neighbours by cosine or Euclidean distance, without ever holding an n x n matrix.

Scores of a block of queries against the whole gallery are computed in float32, with a bound on their rounding error. The
k-th largest maximum over disjoint groups of columns is a lower bound of the k-th largest score; only columns that reach it,
less twice the error, can be among the k nearest. Those few are scored again in float64 and ranked, equal scores by index.
The result is therefore that of a float64 computation over all pairs, at the price of a float32 one.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from latentlab.errors import UserError, unknown_name

Metric = Literal["cosine", "l2"]
METRICS = ("cosine", "l2")

_GROUP = 64
"""Columns per group: large enough that few maxima are sorted, small enough that few scores are looked at again."""

_BLOCK_BYTES = 16 << 20
"""Size of a block of scores: it stays in the last cache, and is large enough for fast products."""

_CHUNK_BYTES = 4 << 20
"""Size of a float64 copy of some vectors."""


def nearest(
    queries: np.ndarray | Tensor,
    gallery: np.ndarray | Tensor,
    k: int,
    metric: Metric = "cosine",
    exclude_self: bool = False,
) -> np.ndarray:  # [n,d], [m,d] => [n,k], int64
    """Return for every query the indices of its k nearest gallery vectors, the nearest first.

    Cosine distance is ``1 - q.g / (|q||g|)``; a zero vector has similarity 0 to every vector (also to another zero
    vector). Vectors at exactly equal distance come in the order of their index. Memory: one float32 copy of both sets,
    blocks of scores, and the result.

    Args:
        queries: [n,d], float32 or float64.
        gallery: [m,d].
        k: number of neighbours, 1 <= k <= m (m - 1 without the query itself).
        metric: ``cosine`` or ``l2``.
        exclude_self: queries and gallery are the same set, and no vector counts as its own neighbour.

    Raises:
        UserError: shapes that do not fit, too few gallery vectors for k, NaN or infinity.
    """
    queries, gallery = (torch.as_tensor(x).detach().cpu() for x in (queries, gallery))
    _check(queries, gallery, k, metric, exclude_self)
    pairs = _Pairs(queries, gallery, metric)
    fast = _fast_scores(pairs)
    n, m = len(queries), len(gallery)
    # At least k + 1 groups, so that k of them keep a finite maximum when the query itself is struck out.
    group = max(1, min(_GROUP, m // (4 * (k + 1))))
    scores = torch.empty(min(n, max(32, _BLOCK_BYTES // (4 * m))), -(-m // group) * group, dtype=fast.queries.dtype)
    scores[:, m:] = -torch.inf
    found = np.empty((n, k), dtype=np.int64)
    for start in range(0, n, len(scores)):
        rows = slice(start, min(start + len(scores), n))
        block = scores[: rows.stop - start]
        torch.mm(fast.queries[rows], fast.gallery.T, out=block[:, :m])
        if exclude_self:
            block.diagonal(start).fill_(-torch.inf)
        row, column = _candidates(block, k, 2 * fast.error[rows], group)
        found[rows] = best_of_rows(pairs.scores(row + start, column), row, column, len(block), k).numpy()
    return found


def _check(queries: Tensor, gallery: Tensor, k: int, metric: str, exclude_self: bool) -> None:
    if metric not in METRICS:
        raise unknown_name("metric", metric, METRICS)
    if queries.ndim != 2 or gallery.ndim != 2 or queries.shape[1] != gallery.shape[1]:
        raise UserError(
            f"queries and gallery must be [n,d] and [m,d], got shapes {list(queries.shape)} and {list(gallery.shape)}"
        )
    if exclude_self and len(queries) != len(gallery):
        raise UserError(
            f"exclude_self needs the same set as queries and gallery, got {len(queries)} and {len(gallery)} vectors"
        )
    available = len(gallery) - exclude_self
    if not 1 <= k <= available:
        raise UserError(f"k must be between 1 and the {available} vectors to choose from, got k={k}")


class _Pairs:
    """The scores that decide: float64, larger is nearer, pair by pair (so equal vectors get equal scores)."""

    def __init__(self, queries: Tensor, gallery: Tensor, metric: Metric) -> None:
        self.queries, self.gallery, self.metric = queries, gallery, metric
        self.query_norms, self.gallery_norms = _norms(queries), _norms(gallery)
        if not (torch.isfinite(self.query_norms).all() and torch.isfinite(self.gallery_norms).all()):
            raise UserError("vectors with NaN or infinity have no neighbours: leave them out")

    def scores(self, rows: Tensor, columns: Tensor) -> Tensor:
        """Return the scores of the pairs (rows, columns), [p]."""
        step = max(1, _CHUNK_BYTES // (8 * self.queries.shape[1]))
        parts = [self._score(r, c) for r, c in zip(rows.split(step), columns.split(step), strict=True)]
        return torch.cat(parts)

    def _score(self, rows: Tensor, columns: Tensor) -> Tensor:
        query, other = self.queries.index_select(0, rows).double(), self.gallery.index_select(0, columns).double()
        if self.metric == "l2":
            return -(query - other).square().sum(1)
        norms = self.query_norms[rows] * self.gallery_norms[columns]
        return (query * other).sum(1) / torch.where(norms > 0, norms, 1.0)


@dataclass(frozen=True)
class _FastScores:
    """Factors whose product approximates the scores (up to a rising function per query), and the error of the product."""

    queries: Tensor
    gallery: Tensor
    error: Tensor  # [n,1]


def _fast_scores(pairs: _Pairs) -> _FastScores:
    # A float32 product is only trusted when torch has not been told to round its inputs to bfloat16 or TF32.
    dtype = torch.float32 if torch.get_float32_matmul_precision() == "highest" else torch.float64
    return _cosine_factors(pairs, dtype) if pairs.metric == "cosine" else _euclidean_factors(pairs, dtype)


def _cosine_factors(pairs: _Pairs, dtype: torch.dtype) -> _FastScores:
    """Return unit vectors: their product is the cosine."""
    sides = []
    for vectors, norms in ((pairs.queries, pairs.query_norms), (pairs.gallery, pairs.gallery_norms)):
        inverse = torch.where(norms > 0, 1 / torch.where(norms > 0, norms, 1.0), 0.0)[:, None]
        unit = torch.empty(vectors.shape, dtype=dtype)
        for part in _parts(vectors):
            unit[part] = (vectors[part] * inverse[part]).to(dtype)
        sides.append(unit)
    error = torch.full((len(pairs.queries), 1), unit_error(sides[0]), dtype=dtype)
    return _FastScores(sides[0], sides[1], error)


def _euclidean_factors(pairs: _Pairs, dtype: torch.dtype) -> _FastScores:
    """Return (q, 1) and (g, -|g|^2/2) about the gallery's mean: |q-g|^2 = |q|^2 - 2 (q.g - |g|^2/2)."""
    centre = pairs.gallery.mean(0, dtype=torch.float64)
    d = len(centre)
    gallery = torch.empty(len(pairs.gallery), d + 1, dtype=dtype)
    queries = torch.ones(len(pairs.queries), d + 1, dtype=dtype)
    norms = torch.cat([(pairs.gallery[part] - centre).norm(dim=1) for part in _parts(pairs.gallery)])
    scale = float(norms.max()) or 1.0  # so that the largest gallery vector has length 1, whatever the unit of the data
    gallery[:, d] = (norms / scale).square().div(-2).to(dtype)
    for part in _parts(pairs.gallery):
        gallery[part, :d] = ((pairs.gallery[part] - centre) / scale).to(dtype)
    lengths = torch.empty(len(queries), 1, dtype=torch.float64)
    for part in _parts(pairs.queries):
        centred = (pairs.queries[part] - centre) / scale
        lengths[part], queries[part, :d] = centred.norm(dim=1, keepdim=True), centred.to(dtype)
    return _FastScores(queries, gallery, ((lengths + 1) * unit_error(gallery)).to(dtype))


def unit_error(factor: Tensor) -> float:
    """Return a bound on the error of a product of two rounded vectors [d] of at most unit length.

    The sum of d products in any order errs by at most d u / (1 - d u) (Higham, Accuracy and Stability of Numerical
    Algorithms, 2nd ed., section 3.1; u is half the machine epsilon), rounding both vectors adds 2 u; the rest is slack
    for the arithmetic on the bound itself.
    """
    return (factor.shape[1] + 8) * torch.finfo(factor.dtype).eps / 2 * 1.01


def _candidates(scores: Tensor, k: int, window: Tensor, group: int) -> tuple[Tensor, Tensor]:
    """Return (rows, columns), in order, of all scores that may belong to the k largest of their row."""
    best = scores.view(len(scores), -1, group).amax(2)
    # numpy's partition is several times faster here than torch's topk, and cheap enough for one thread.
    floor = torch.from_numpy(np.partition(best.numpy(), -k, axis=1)[:, -k, None]) - window
    row, index = torch.nonzero(best >= floor, as_tuple=True)
    members = scores.view(-1, group).index_select(0, row * best.shape[1] + index)
    pair, member = torch.nonzero(members >= floor[row], as_tuple=True)
    return row[pair], index[pair] * group + member


def best_of_rows(scores: Tensor, rows: Tensor, columns: Tensor, n: int, k: int) -> Tensor:
    """Return the columns of the k largest scores of each of n rows, [n,k]; rows and columns come in order."""
    counts = torch.bincount(rows, minlength=n)
    first = counts.cumsum(0) - counts
    table = torch.full((n, int(counts.max())), -torch.inf, dtype=scores.dtype)
    table[rows, torch.arange(len(rows)) - first[rows]] = scores
    order = table.sort(dim=1, descending=True, stable=True).indices[:, :k]
    return columns[first[:, None] + order]


def _norms(vectors: Tensor) -> Tensor:
    return torch.cat([vectors[part].double().norm(dim=1) for part in _parts(vectors)])


def _parts(vectors: Tensor) -> Iterator[slice]:
    """Yield ranges of rows whose float64 copy is small."""
    step = max(1, _CHUNK_BYTES // (8 * vectors.shape[1]))
    for start in range(0, len(vectors), step):
        yield slice(start, min(start + step, len(vectors)))
