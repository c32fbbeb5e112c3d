"""Precision and recall (Kynkaanniemi et al. 2019, arXiv 1904.06991), density and coverage (Naeem et al. 2020, arXiv 2002.09797).

Both describe a set of features by balls: one about each point, as large as the distance to its k-th nearest other point of
the set.

    precision: share of generated images in at least one ball of a real one;   recall: the reverse
    density:   1/k times the number of balls of real images that hold a generated one, its mean over generated images (1 for
        equal sets)
    coverage:  share of balls of real images that hold at least one generated image

Points on the surface belong to the ball for precision and recall, as in the definition, torch-fidelity and the ADM suite, and
do not for density and coverage, as in the authors' package ``prdc``; that matters only where images occur twice.

Distances are computed in float32, tile by tile, with a bound on their rounding error; every comparison that the bound cannot
decide is made again in float64. The values are those of float64 distances over all pairs, whatever the order of the images;
memory is two float32 copies of the features and a few tiles. A tile of a set with itself serves its rows and its columns, so
half of them suffice.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from analyses.neighbours import unit_error
from latentlab.errors import UserError

_TILE = 1024
"""Rows and columns of a tile of distances: 4 MB in float32."""

_GROUP = 32
"""Columns per group of a tile: only groups whose smallest distance may matter are looked at again."""

_CHUNK_BYTES = 4 << 20
"""Size of float64 copies of some points."""


@dataclass(frozen=True)
class ManifoldScores:
    """What every image contributes; the scores are the means.

    Attributes:
        precision: bool [n], whether a generated image lies in a ball of a real one.
        recall: bool [m], whether a real image lies in a ball of a generated one.
        density: float64 [n], balls of real images about a generated one, divided by k.
        coverage: bool [m], whether the ball of a real image holds a generated one.
    """

    precision: np.ndarray
    recall: np.ndarray
    density: np.ndarray
    coverage: np.ndarray


def manifold_scores(
    made: np.ndarray, real: np.ndarray, *, k: int = 3, density_k: int = 5
) -> ManifoldScores:  # [n,d], [m,d]
    """Compare the features of generated and of real images.

    Args:
        made: features of generated images, [n,d], float32 or float64.
        real: features of real ones, [m,d].
        k: neighbours that the balls of precision and recall reach to.
        density_k: likewise for density and coverage.

    Raises:
        UserError: shapes that do not fit, fewer points than neighbours, NaN or infinity.
    """
    first, second = (torch.from_numpy(np.ascontiguousarray(table)) for table in (made, real))
    _check(first, second, k, density_k)
    generated, true = _points(first, second)
    reach = _reaches(true, (k, density_k))
    return _memberships(generated, true, _reaches(generated, (k,))[:, 0], reach[:, 0], reach[:, 1], density_k)


def _check(made: Tensor, real: Tensor, k: int, density_k: int) -> None:
    if made.ndim != 2 or real.ndim != 2 or made.shape[1] != real.shape[1]:
        raise UserError(f"features must be [n,d] and [m,d], got {list(made.shape)} and {list(real.shape)}")
    for name, value in (("k", k), ("density_k", density_k)):
        if value < 1:
            raise UserError(f"{name} must be at least 1, got {value}")
    for what, table, needed in (("generated", made, k), ("real", real, max(k, density_k))):
        if len(table) <= needed:
            raise UserError(f"{needed} neighbours need at least {needed + 1} {what} images, got {len(table)}")
        if not all(torch.isfinite(table[part]).all() for part in _parts(table)):
            raise UserError(f"features of {what} images contain NaN or infinity")


@dataclass(frozen=True)
class _Points:
    """A set of points, as given and ready for products in float32.

    Attributes:
        exact: [n,d] as given.
        rows: [n,d], centred and scaled so that the longest vector of both sets has length 1.
        squares: [n] squared lengths of ``rows``.
        lengths: [n] lengths of ``rows``.
        unit: what a squared distance of ``rows`` is multiplied by.
    """

    exact: Tensor
    rows: Tensor
    squares: Tensor
    lengths: Tensor
    unit: float

    def tiles(self) -> Iterator[slice]:
        """Yield ranges of points."""
        for start in range(0, len(self.rows), _TILE):
            yield slice(start, min(start + _TILE, len(self.rows)))


def _points(made: Tensor, real: Tensor) -> tuple[_Points, _Points]:
    """Return both sets about the mean of the real ones, which distances do not depend on but their rounding does."""
    # A float32 product is only trusted when torch has not been told to round its inputs to bfloat16 or TF32.
    dtype = torch.float32 if torch.get_float32_matmul_precision() == "highest" else torch.float64
    centre = real.mean(0, dtype=torch.float64)
    lengths = [torch.cat([(table[part] - centre).norm(dim=1) for part in _parts(table)]) for table in (made, real)]
    scale = float(torch.cat(lengths).max()) or 1.0
    sets = []
    for table, length in zip((made, real), lengths, strict=True):
        rows = torch.empty(table.shape, dtype=dtype)
        for part in _parts(table):
            rows[part] = ((table[part] - centre) / scale).to(dtype)
        length = length / scale
        sets.append(_Points(table, rows, length.square().to(dtype), length.to(dtype), scale**2))
    return sets[0], sets[1]


def _squares(first: _Points, rows: slice, second: _Points, columns: slice) -> Tensor:
    """Return squared distances, [b,m]."""
    squares = torch.addmm(second.squares[columns], first.rows[rows], second.rows[columns].T, alpha=-2)
    squares += first.squares[rows, None]
    return squares


def _error(first: _Points, rows: slice, second: _Points, columns: slice) -> Tensor:
    """Return a bound on the error of `_squares`, [b].

    A product errs by at most `unit_error` times the lengths, the sums and the rounded squares by a few units of rounding.
    """
    lengths, longest = first.lengths[rows], second.lengths[columns].max()
    rounding = 4 * torch.finfo(lengths.dtype).eps * (lengths + longest).square()
    return 2 * unit_error(first.rows) * lengths * longest + rounding


def _reaches(points: _Points, neighbours: Sequence[int]) -> Tensor:
    """Return the exact squared distance of every point to its k-th nearest other, float64 [n,len(neighbours)]."""
    search = _Search(len(points.rows), max(neighbours), points.rows.dtype)
    tiles = list(points.tiles())
    for i, rows in enumerate(tiles):
        for columns in tiles[i:]:
            squares = _squares(points, rows, points, columns)
            if columns is rows:
                squares.diagonal().fill_(torch.inf)
            search.add(rows, columns, squares, _error(points, rows, points, columns))
            if columns is not rows:
                search.add(columns, rows, squares.T.contiguous(), _error(points, columns, points, rows))
    return search.reaches(points, neighbours)


@dataclass
class _Search:
    """The nearest others of every point while tiles pass by.

    ``bars`` [n,k] holds, per point, upper bounds of the distances of k different others; the largest of them is a bar that
    the k nearest do not exceed. Pairs that may stay below it are noted.
    """

    n: int
    k: int
    dtype: torch.dtype
    bars: np.ndarray = field(init=False)
    found: list[tuple[Tensor, Tensor, Tensor, Tensor]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.bars = np.full((self.n, self.k), np.inf, dtype=np.float32 if self.dtype == torch.float32 else np.float64)

    def add(self, rows: slice, columns: slice, squares: Tensor, error: Tensor) -> None:
        """Take in the squared distances [b,m] of points ``rows`` from ``columns``, each in error by at most ``error`` [b]."""
        size = max(1, min(_GROUP, squares.shape[1] // (4 * self.k)))
        missing = -squares.shape[1] % size
        grouped = torch.nn.functional.pad(squares, (0, missing), value=torch.inf) if missing else squares
        best = grouped.unflatten(1, (-1, size)).amin(2)
        kept = min(self.k, best.shape[1])
        upper = np.partition(best.numpy(), kept - 1, axis=1)[:, :kept] + error.numpy()[:, None]
        self.bars[rows] = np.partition(np.concatenate([self.bars[rows], upper], 1), self.k - 1, axis=1)[:, : self.k]
        bar = torch.from_numpy(self.bars[rows].max(1)) + error
        row, group = torch.nonzero(best <= bar[:, None], as_tuple=True)
        members = grouped.reshape(-1, size)[row * best.shape[1] + group]
        pair, member = torch.nonzero((members <= bar[row, None]) & (members < torch.inf), as_tuple=True)
        row, column = row[pair], group[pair] * size + member
        self.found.append((row + rows.start, column + columns.start, members[pair, member], error[row]))

    def reaches(self, points: _Points, neighbours: Sequence[int]) -> Tensor:
        """Return the exact squared distances to the k-th nearest, [n,len(neighbours)].

        In the order of the computed distances, a pair further than twice the error from the k-th one is on the same side of
        it in the true order. Only the others are computed again.
        """
        row, column, square, error = (torch.cat(parts) for parts in zip(*self.found, strict=True))
        kept = square - error <= torch.from_numpy(self.bars.max(1))[row]
        row, column, square, error = row[kept], column[kept], square[kept].double(), error[kept].double()
        largest = torch.zeros(self.n, dtype=torch.float64).scatter_reduce_(0, row, error, "amax")
        row, column, square = _in_order(row, column, square)
        first = torch.searchsorted(row, torch.arange(self.n))
        unsure = torch.zeros(len(row), dtype=torch.bool)
        for k in neighbours:
            unsure |= (square - square[first + k - 1][row]).abs() <= 2 * largest[row]
        square *= points.unit
        square[unsure] = _exact(points, row[unsure], points, column[unsure])
        _, _, square = _in_order(row, column, square)
        return torch.stack([square[first + k - 1] for k in neighbours], 1)


def _in_order(row: Tensor, column: Tensor, square: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Sort pairs by row and, in each, by distance."""
    order = torch.from_numpy(np.lexsort((square.numpy(), row.numpy())))
    return row[order], column[order], square[order]


def _memberships(
    made: _Points, real: _Points, made_reach: Tensor, real_reach: Tensor, density_reach: Tensor, density_k: int
) -> ManifoldScores:
    """Return who lies in whose ball; reaches are squared, float64, [n] and [m]."""
    scores = ManifoldScores(
        np.zeros(len(made.rows), bool), np.zeros(len(real.rows), bool),
        np.zeros(len(made.rows)), np.zeros(len(real.rows), bool),
    )  # fmt: skip
    own = torch.maximum(real_reach, density_reach) / real.unit
    others = made_reach / real.unit
    for rows in real.tiles():
        for columns in made.tiles():
            squares, error = _squares(real, rows, made, columns), _error(real, rows, made, columns)
            slack = 1 + 4 * torch.finfo(squares.dtype).eps  # for the rounding of the limits
            limit = torch.maximum(own[rows, None].to(squares) * slack, others[columns].to(squares) * slack)
            row, column = torch.nonzero(squares <= limit.add_(error[:, None]), as_tuple=True)
            square, error = squares[row, column].double() * real.unit, error[row].double() * real.unit
            row, column = row + rows.start, column + columns.start
            limits = (real_reach[row], density_reach[row], made_reach[column])
            unsure = torch.stack([(square - one).abs() <= error for one in limits]).any(0)
            square[unsure] = _exact(real, row[unsure], made, column[unsure])
            _note(scores, row.numpy(), column.numpy(), *(
                (square <= limits[0]).numpy(), (square <= limits[2]).numpy(), (square < limits[1]).numpy()
            ))  # fmt: skip
    scores.density[:] /= density_k
    return scores


def _note(
    scores: ManifoldScores,
    row: np.ndarray,
    column: np.ndarray,
    in_real: np.ndarray,
    in_made: np.ndarray,
    inside: np.ndarray,
) -> None:
    """Enter pairs of a real image (``row``) and a generated one (``column``) that are in each other's balls."""
    scores.precision[column[in_real]] = True
    scores.recall[row[in_made]] = True
    scores.coverage[row[inside]] = True
    scores.density[:] += np.bincount(column[inside], minlength=len(scores.density))


def _exact(first: _Points, rows: Tensor, second: _Points, columns: Tensor) -> Tensor:
    """Return the squared distances of pairs in float64, [p]; equal points get equal ones."""
    squares = torch.empty(len(rows), dtype=torch.float64)
    step = max(1, _CHUNK_BYTES // (8 * first.exact.shape[1]))
    for start in range(0, len(rows), step):
        part = slice(start, start + step)
        x, y = first.exact[rows[part]].double(), second.exact[columns[part]].double()
        squares[part] = (x - y).square().sum(1)
    return squares


def _parts(table: Tensor) -> Iterator[slice]:
    """Yield ranges of rows whose float64 copy is small."""
    step = max(1, _CHUNK_BYTES // (8 * table.shape[1]))
    for start in range(0, len(table), step):
        yield slice(start, start + step)
