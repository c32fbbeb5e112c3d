"""Intrinsic dimension: how many coordinates the latents need locally, from the distances to their nearest neighbours.

    TwoNN (Facco et al., Scientific Reports 7, 2017): mu = r_2 / r_1 of every point is Pareto distributed with the dimension d as
        exponent; d is the slope of -log(1 - F(mu)) over log mu through the origin, without the largest tenth of mu.
    MLE (Levina and Bickel, NIPS 2004, averaged as MacKay and Ghahramani proposed): with r_1 <= ... <= r_k of every point,
        1/d = mean over points of 1/(k-1) sum_{j<k} log(r_k / r_j).

The estimators are those of scikit-dimension (Bac et al. 2021, BSD-3); the exact distances come from `analyses.neighbours`.
"""

from typing import Literal

import numpy as np
import torch
from torch import Tensor

from analyses.cells import random_cells
from analyses.intervals import REPLICATES, percentile_interval
from analyses.neighbours import nearest
from latentlab.data.subset import choose_subset
from latentlab.errors import Unmeasurable, UserError, unknown_name
from latentlab.latents import BATCH_BYTES, Latents
from latentlab.measurement import Measurement, MetricCard
from latentlab.registry import measurement

Estimator = Literal["twonn", "mle"]
ESTIMATORS = ("twonn", "mle")
Unit = Literal["image", "cell"]
UNITS = ("image", "cell")

DISCARDED = 0.1
"""Share of the largest ratios that TwoNN leaves out, as its authors do."""

_TIE = 1e-6
"""Logarithms of ratios of distances that differ by less are equal, but for the rounding of float32 points."""


@measurement(
    MetricCard(
        name="intrinsic_dimension",
        title="Intrinsic dimension",
        summary="how many coordinates describe the latents locally, however many they are stored in",
        formula="slope of -log(1 - F(mu)) over log mu, mu = r_2/r_1 (ratio of the distances to the two nearest neighbours)",
        unit="dimensions",
        range="above 0; at most about the number of stored dimensions",
        better="lower",
        source="Facco et al. 2017 (TwoNN), Levina and Bickel 2004 (MLE); estimators of scikit-dimension. Pope et al., arXiv "
        "2104.08894: images of lower intrinsic dimension are learned from fewer samples; the choice of points is ours",
        confounds="noise counts as dimensions; a collapsed latent space has few as well; points on a lattice (codes of signs) "
        "have no such dimension: their distances are a few numbers",
        variants={
            "estimator='mle'": "maximum likelihood over the k nearest neighbours, not two: varies less, more bias",
            "k=10": "neighbours of the MLE",
            "unit='cell'": "points are single cells (one random cell per image) instead of whole latents",
            "limit=10000": "more images: less bias, time grows with the square",
            "normalize=False": "raw channels",
        },
        invariances="batch size, order of the images (of whole latents, while all are used), dtype, common scale, rotations of "
        "the points; per-channel shift and scale when normalised",
        bias="too low for few points in many dimensions: TwoNN finds 8.5 and MLE 7.9 of 10 in a cube of 1000 points; without a "
        "boundary both come closer",
        known_values={
            "uniform square": "2",
            "swiss roll": "2",
            "sphere in R^5": "4",
            "straight line": "1",
        },
        test="tests/analyses/test_intrinsic_dimension.py::test_known_manifolds",
    )
)
def intrinsic_dimension(
    latents: Latents,
    *,
    estimator: Estimator = "twonn",
    unit: Unit = "image",
    k: int = 20,
    limit: int = 4000,
    normalize: bool = True,
    seed: int = 0,
) -> Measurement:
    """Estimate the intrinsic dimension; memory and time grow with ``limit``, not with the number of images.

    Args:
        latents: any.
        estimator: ``twonn``, or ``mle``.
        unit: what a point is: ``image``, a whole flattened latent; or ``cell``, one random cell of an image.
        k: neighbours of ``mle``, at least 3.
        limit: at most so many images, evenly from the classes where there are labels.
        normalize: standardise each channel over the whole set first.
        seed: chooses images and cells, and of the bootstrap.

    Returns:
        Dimensions. Interval: bootstrap over neighbourhoods (a point with its neighbours is drawn as a whole, since their
        distances depend on each other). ``details``: ``log_ratios`` [m], ascending log mu (``twonn``), or ``local`` [m], the
        estimate of every point in the order of the images (``mle``).

    Raises:
        UserError: unknown names, too few different points, most of them as on a lattice, NaN or infinity.
    """
    if estimator not in ESTIMATORS:
        raise unknown_name("estimator", str(estimator), ESTIMATORS)
    if unit not in UNITS:
        raise unknown_name("unit", str(unit), UNITS)
    if k < 3:
        raise UserError(f"k must be at least 3, got {k}")
    neighbours = 2 if estimator == "twonn" else k
    drawn = _points(latents, unit, limit, normalize, seed)
    points = _distinct(drawn)
    least = max(20, neighbours + 2)
    if len(points) < least:
        raise UserError(
            f"intrinsic_dimension needs at least {least} different points, got {len(points)} (of {len(drawn)}): give more images"
        )
    found = nearest(points, points, neighbours, "l2", exclude_self=True)
    distances = _distances(points, found)
    _refuse_ties(distances)
    fit = _twonn if estimator == "twonn" else _mle
    value, local = fit(distances)
    replicates = _replicates(estimator, distances, local, found, seed)
    replicates *= (
        value / replicates.mean()
    )  # points that are neighbours of many are drawn too often: only the spread is used
    return Measurement(
        name="intrinsic_dimension",
        variant=_variant(estimator, unit, k, normalize),
        value=value,
        interval=percentile_interval(replicates, len(points)),
        direction="lower",
        unit="dimensions",
        n=len(drawn),
        parameters={"estimator": estimator, "unit": unit, "k": k, "limit": limit, "normalize": normalize, "seed": seed},
        warnings=_cautions(latents, drawn, points, value),
        details={"log_ratios": np.sort(local)} if estimator == "twonn" else {"local": local},
        replicates=replicates,
    )


def _points(latents: Latents, unit: str, limit: int, normalize: bool, seed: int) -> Tensor:
    """Return the points, [m,d]: flattened latents as they come, or float64 cells."""
    if limit < 1:
        raise UserError(f"limit must be at least 1, got {limit}")
    images = choose_subset(latents.n, latents.labels, limit, seed)
    moments = latents.moments  # refuses NaN
    if unit == "cell":
        return random_cells(latents, images, np.random.default_rng([seed, 1]), normalize=normalize)
    chosen = latents.take(images)
    return (moments.standardise(chosen) if normalize else chosen).flatten(1)


def _distinct(points: Tensor) -> Tensor:
    """Return the points without repetitions, in their order: equal points have no ratio of distances."""
    _, first = np.unique(points.numpy(), axis=0, return_index=True)
    return points if len(first) == len(points) else points[torch.from_numpy(np.sort(first))]


def _distances(points: Tensor, neighbours: np.ndarray) -> np.ndarray:
    """Return the distances of points [m,d] to their neighbours [m,k], float64 [m,k]."""
    distances = torch.empty(neighbours.shape, dtype=torch.float64)
    step = max(1, BATCH_BYTES // (8 * points[0].numel() * neighbours.shape[1]))
    for start in range(0, len(points), step):
        part = slice(start, start + step)
        others = points[torch.from_numpy(neighbours[part])].double()
        distances[part] = (others - points[part, None].double()).norm(dim=2)
    return distances.numpy()


def _refuse_ties(distances: np.ndarray) -> None:
    """Raise `Unmeasurable` where r_k / r_1 of most points, from their distances [m,k], is one number: 1 on an even lattice."""
    ratios = np.log(distances[:, -1] / distances[:, 0])
    tied = int((np.abs(ratios - np.median(ratios)) < _TIE).sum())
    if 2 * tied > len(distances):
        raise Unmeasurable(
            f"{tied} of {len(distances)} points are equally placed among their {distances.shape[1]} nearest neighbours, as on a "
            "lattice: such latents have no intrinsic dimension"
        )


def _twonn(distances: np.ndarray) -> tuple[float, np.ndarray]:
    """Return the TwoNN estimate and log mu of every point, from distances [m,2]."""
    from skdim.id import TwoNN  # with numba, seconds to import

    fitted = TwoNN(discard_fraction=DISCARDED, dist=True).fit(distances)
    return float(fitted.dimension_), np.log(distances[:, 1] / distances[:, 0])


def _mle(distances: np.ndarray) -> tuple[float, np.ndarray]:
    """Return the MLE and that of every point alone, from distances [m,k]."""
    from skdim.id import MLE

    with np.errstate(divide="ignore"):  # infinite where all neighbours are equally far, which counts as 1/d = 0
        fitted = MLE().fit(distances, precomputed_knn_arrays=(distances, None))
    return float(fitted.dimension_), np.asarray(fitted.dimension_pw_)


def _replicates(
    estimator: str, distances: np.ndarray, local: np.ndarray, neighbours: np.ndarray, seed: int
) -> np.ndarray:
    """Return bootstrap replicates of the estimate, [r]: of as many points, drawn with their neighbours."""
    m = len(distances)
    blocks = np.column_stack([np.arange(m), neighbours])
    drawn = np.random.default_rng(seed).integers(0, m, size=(REPLICATES, -(-m // blocks.shape[1])))
    if estimator == "twonn":
        return np.array([_twonn(distances[blocks[rows].ravel()])[0] for rows in drawn])
    return 1 / (1 / local)[blocks].mean(1)[drawn].mean(1)


def _variant(estimator: str, unit: str, k: int, normalize: bool) -> str:
    how = "TwoNN" if estimator == "twonn" else f"MLE over {k} neighbours"
    what = "flattened latents" if unit == "image" else "single cells"
    return f"{how}, {what}, {'per-channel normalised' if normalize else 'raw'}"


def _cautions(latents: Latents, drawn: Tensor, points: Tensor, value: float) -> tuple[str, ...]:
    said = []
    if len(points) < len(drawn):
        said.append(f"{len(drawn) - len(points)} of {len(drawn)} points equal another one and were left out")
    if latents.spec is not None and latents.spec.discrete and drawn.shape[1] == latents.channels:
        said.append("single cells of a discrete tokenizer are the entries of its codebook, not a manifold")
    most = 2 * np.log10(len(points))
    if value > most:
        said.append(
            f"{len(points)} points show about {most:.1f} dimensions reliably (Eckmann and Ruelle 1992): the estimate is too low"
        )
    return tuple(said)
