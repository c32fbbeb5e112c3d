"""What a token table has learned: norms, how far codes are apart, how many directions they use, and which are neighbours.

Shapes: v vocabulary, d embedding width, g sub-vector size, S = d/g sub-vectors, k neighbours. Angles are in degrees.
Everything is compared with points drawn uniformly from the same product of spheres: a table that keeps its codes further
apart than chance has a separation above 1, a collapsing one falls below.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from latentlab.errors import UserError
from latentlab.randomness import generator
from mind.geometry import TokenTable

NEIGHBOURS = 8
"""Nearest codes that are listed and compared with the tokenizer's own."""

_BLOCK_SCORES = 1 << 22
"""Pairs of codes compared at a time: 16 MB in float32."""

_UNIFORM_POINTS = 4096
"""At least so many uniform points stand for the expectation, in as many tables of v codes as that takes."""


def nearest_codes(points: Tensor, k: int = 1) -> tuple[Tensor, Tensor]:
    """Return for every point its k nearest other points (Euclidean), nearest first.

    Args:
        points: [v,d].
        k: 1 <= k < v.

    Returns:
        Their numbers, int64 [v,k], and distances [v,k] computed from the differences (so that small ones are exact).

    Raises:
        UserError: too few points for k.
    """
    v = len(points)
    if not 1 <= k < v:
        raise UserError(f"k must be between 1 and the {v - 1} other codes, got {k}")
    half_squares = points.square().sum(1) / 2
    rows = max(1, _BLOCK_SCORES // v)
    numbers, distances = [], []
    for start in range(0, v, rows):
        block = points[start : start + rows]
        scores = block @ points.T - half_squares  # |x-y|^2 = |x|^2 - 2 (x.y - |y|^2/2)
        scores.diagonal(start).fill_(-torch.inf)
        found = scores.topk(k, dim=1).indices
        numbers.append(found)
        distances.append((block[:, None] - points[found]).norm(dim=2))
    return torch.cat(numbers), torch.cat(distances)


def nearest_angles(vectors: Tensor) -> Tensor:
    """Return the angle between every vector [v,d] and the nearest other one in direction, in degrees [v].

    Directions closer than about 0.02 degrees are not told apart in float32.
    """
    _, chords = nearest_codes(functional.normalize(vectors, dim=1))
    return chord_angles(chords[:, 0])


def chord_angles(chords: Tensor) -> Tensor:
    """Return the angles, in degrees, between unit vectors at these distances: 2 arcsin(chord / 2)."""
    return torch.rad2deg(2 * torch.asin((chords / 2).clamp(max=1)))


@torch.no_grad()
def table_statistics(table: TokenTable) -> dict[str, float]:
    """Return what a trainer logs about its token table; about v^2 d operations, and one transfer from the device.

    Returns:
        ``latent_norm`` and ``raw_norm``: mean norm of the rows as the network sees them (sqrt(d/g) on the spheres) and as
        they are stored; ``nearest_angle``: mean angle in degrees to the nearest other code.
    """
    vectors = table.vectors().detach().float()
    raw = table.embedding.detach().float()
    values = (vectors.norm(dim=1).mean(), raw.norm(dim=1).mean(), nearest_angles(vectors).mean())
    names = ("latent_norm", "raw_norm", "nearest_angle")
    return dict(zip(names, torch.stack(values).tolist(), strict=True))


def uniform_directions(points: int, width: int, size: int, seed: int, *stream: str | int) -> Tensor:
    """Draw points [n,width] uniformly from the product of width/size unit spheres in R^size, float64."""
    noise = torch.randn(points, width // size, size, generator=generator(seed, *stream), dtype=torch.float64)
    return functional.normalize(noise, dim=2).flatten(1)


@dataclass(frozen=True)
class Separation:
    """How far the directions of v codes are apart.

    Attributes:
        angles: to the nearest other code, degrees [v].
        uniform: the same for uniform tables of v codes, degrees [m].
        mean_cosine: over all pairs of different codes; 0 is expected of uniform codes.
        rms_cosine: root mean square over all pairs.
        uniform_rms_cosine: 1 / sqrt(width), what is expected of uniform codes.
    """

    angles: Tensor
    uniform: Tensor
    mean_cosine: float
    rms_cosine: float
    uniform_rms_cosine: float

    @property
    def ratio(self) -> float:
        """Mean nearest angle over that of uniform codes."""
        return float(self.angles.mean() / self.uniform.mean())

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values; distributions as quantiles."""
        return {
            "nearest_angle": spread(self.angles),
            "uniform_nearest_angle": spread(self.uniform),
            "ratio": self.ratio,
            "mean_cosine": self.mean_cosine,
            "rms_cosine": self.rms_cosine,
            "uniform_rms_cosine": self.uniform_rms_cosine,
        }


def separation(vectors: Tensor, size: int, seed: int = 0) -> Separation:
    """Return how far vectors [v,d] are apart, against uniform points of the product of d/size spheres.

    Args:
        vectors: at least two, of any norm.
        size: of one sub-vector; d compares with one sphere in R^d.
        seed: of the uniform points.
    """
    vectors = vectors.double()
    v, width = vectors.shape
    tables = range(-(-_UNIFORM_POINTS // v))
    uniform = [nearest_angles(uniform_directions(v, width, size, seed, "uniform codes", i)) for i in tables]
    mean, rms = _pairwise_cosines(functional.normalize(vectors, dim=1))
    return Separation(nearest_angles(vectors), torch.cat(uniform), mean, rms, 1 / math.sqrt(width))


def _pairwise_cosines(units: Tensor) -> tuple[float, float]:
    """Return mean and root mean square of u_i.u_j over i != j, from sums over all codes: |sum u|^2 and |sum u u^T|^2."""
    squares = units.square().sum(1)
    pairs = len(units) * (len(units) - 1)
    total = units.sum(0).square().sum() - squares.sum()
    total_squared = (units.T @ units).square().sum() - squares.square().sum()
    return float(total) / pairs, math.sqrt(max(float(total_squared), 0.0) / pairs)


def effective_rank(vectors: Tensor) -> float:
    """Return exp(entropy of the singular values over their sum) of the table [v,d] (Roy and Vetterli 2007), 1 .. d."""
    values = torch.linalg.svdvals(vectors.double())
    shares = values / values.sum()
    return float(torch.exp(-torch.xlogy(shares, shares).sum()))


def participation_ratio(vectors: Tensor) -> float:
    """Return (sum of eigenvalues)^2 / sum of their squares for the second moments of the table [v,d], 1 .. d.

    The table is not centred: a direction that all codes share is a collapse, not an offset.
    """
    values = torch.linalg.svdvals(vectors.double()).square()
    return float(values.sum() ** 2 / values.square().sum())


def spread(values: Tensor) -> dict[str, float]:
    """Return mean, standard deviation, least, median and greatest of the values [n]."""
    values = values.double()
    quantiles = torch.quantile(values, torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64)).tolist()
    return {
        "mean": float(values.mean()), "std": float(values.std(correction=0)),
        **dict(zip(("least", "median", "greatest"), quantiles, strict=True)),
    }  # fmt: skip


def norm_statistics(raw: Tensor, vectors: Tensor, size: int) -> dict[str, Any]:
    """Return `spread` of the norms of stored rows and used rows [v,d], whole and per sub-vector."""

    def parts(rows: Tensor) -> list[dict[str, float]]:
        return [spread(norms) for norms in rows.unflatten(1, (-1, size)).norm(dim=2).T]

    return {
        "raw_rows": spread(raw.norm(dim=1)),
        "rows": spread(vectors.norm(dim=1)),
        "raw_subvectors": parts(raw),
        "subvectors": parts(vectors),
    }


@dataclass(frozen=True)
class LearnedGeometry:
    """The geometry of one token table.

    Attributes:
        codes: v.
        width: d.
        size: g.
        normalise: whether the rows are used on the spheres.
        norms: from `norm_statistics`.
        whole: separation of whole embeddings.
        subvectors: separation of each sub-vector, on its own sphere.
        effective_rank: of the table as it is used.
        participation_ratio: the same.
        neighbours: nearest codes by direction, int64 [v,k].
        neighbour_angles: degrees [v,k].
    """

    codes: int
    width: int
    size: int
    normalise: bool
    norms: Mapping[str, Any]
    whole: Separation
    subvectors: tuple[Separation, ...]
    effective_rank: float
    participation_ratio: float
    neighbours: Tensor
    neighbour_angles: Tensor

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values, without the lists of neighbours."""
        return {
            "codes": self.codes, "width": self.width, "subvector_size": self.size, "normalise": self.normalise,
            "norms": dict(self.norms),
            "separation": self.whole.to_dict(),
            "subvector_separation": [part.to_dict() for part in self.subvectors],
            "effective_rank": self.effective_rank,
            "participation_ratio": self.participation_ratio,
        }  # fmt: skip


@torch.no_grad()
def learned_geometry(table: TokenTable, seed: int = 0) -> LearnedGeometry:
    """Measure a token table, in float64 on the CPU.

    Args:
        table: of at least two codes with finite, non-zero rows.
        seed: of the uniform points it is compared with.

    Raises:
        UserError: a single code, or rows that are zero or not finite.
    """
    raw = table.embedding.detach().cpu().double()
    vectors = table.vectors().detach().cpu().double()
    v, width = vectors.shape
    _check(vectors)
    numbers, chords = nearest_codes(functional.normalize(vectors, dim=1), min(NEIGHBOURS, v - 1))
    parts = vectors.unflatten(1, (-1, table.size)).unbind(1)
    return LearnedGeometry(
        codes=v,
        width=width,
        size=table.size,
        normalise=table.normalise,
        norms=norm_statistics(raw, vectors, table.size),
        whole=separation(vectors, table.size if table.normalise else width, seed),
        subvectors=tuple(separation(part, table.size, seed) for part in parts),
        effective_rank=effective_rank(vectors),
        participation_ratio=participation_ratio(vectors),
        neighbours=numbers,
        neighbour_angles=chord_angles(chords),
    )


def _check(vectors: Tensor) -> None:
    if len(vectors) < 2:
        raise UserError("a token table of one code has no angles")
    norms = vectors.norm(dim=1)
    bad = torch.nonzero(~(torch.isfinite(norms) & (norms > 0))).flatten()
    if len(bad):
        raise UserError(
            f"{len(bad)} of {len(vectors)} embeddings are zero or not finite, the first of code {int(bad[0])}"
        )


def neighbour_overlap(first: Tensor, second: Tensor) -> float:
    """Return the mean share of neighbours [v,k] that two tables have in common; each row without repetition."""
    if first.shape != second.shape:
        raise UserError(f"neighbours must have one shape, got {list(first.shape)} and {list(second.shape)}")
    return float((first[:, :, None] == second[:, None, :]).any(2).double().mean())


def chance_overlap(codes: int, k: int) -> float:
    """Return the expected overlap of k neighbours drawn at random from the other codes: k / (v - 1)."""
    return k / (codes - 1)


def codebook_agreement(neighbours: Tensor, codebook: Tensor) -> dict[str, dict[str, float]]:
    """Compare nearest codes with those of the tokenizer's own codebook (Euclidean: what its decoder tells apart).

    Args:
        neighbours: [v,k] of a token table, nearest first.
        codebook: [v,c].

    Returns:
        For 1, 2, 4, ... up to k neighbours: ``overlap`` and the level of ``chance``.

    Raises:
        UserError: another number of codes.
    """
    v, most = neighbours.shape
    if len(codebook) != v:
        raise UserError(
            f"the token table has {v} codes and the tokenizer's codebook {len(codebook)}: not the same tokenizer"
        )
    theirs, _ = nearest_codes(codebook.detach().cpu().double(), most)
    sizes = [k for k in (1, 2, 4, 8) if k <= most]
    return {
        str(k): {"overlap": neighbour_overlap(neighbours[:, :k], theirs[:, :k]), "chance": chance_overlap(v, k)}
        for k in sizes
    }
