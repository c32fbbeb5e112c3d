"""Irreducible velocity variance of each class of latents by itself: fit its Gaussian, apply the closed forms."""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from analyses.class_latents import CACHE_BYTES
from analyses.full_covariance import fit_full
from analyses.irreducible import integrated_variance, velocity_variance
from analyses.kronecker import KroneckerCovariance, fit_kronecker
from analyses.marginal import Component
from analyses.threads import map_in_threads
from latentlab.errors import UserError
from latentlab.latents import Latents

SPECTRUM_RANKS = 512
"""At most this many eigenvalues per class are reported, evenly spaced in rank."""


@dataclass(frozen=True)
class ClassVariance:
    """Irreducible variance of one class, summed over dimensions.

    Attributes:
        n: images.
        integral: over flow time from 0 to 1.
        curve: at the times asked for, [T].
        spectrum: eigenvalues at `reported_ranks`.
        gaussian: the class in its eigenbasis, where asked for.
    """

    n: int
    integral: float
    curve: np.ndarray
    spectrum: np.ndarray
    gaussian: Component | None


def class_variances(
    latents: Latents,
    classes: dict[int, np.ndarray],
    times: np.ndarray,
    *,
    normalize: bool,
    covariance: Literal["kronecker", "full"],
    shrinkage: float | None,
    iterations: int,
    gaussians: bool,
    every_rank: bool = False,
) -> dict[int, ClassVariance]:
    """Return the variance of every class.

    Args:
        latents: checked to be finite.
        classes: label -> indices of its images, at least 2.
        times: flow times of the curves, [T].
        normalize: standardise the channels over the whole set first.
        covariance: ``kronecker`` or ``full``.
        shrinkage: see `fit_kronecker` and `fit_full`.
        iterations: see `fit_kronecker`.
        gaussians: whether to return the Gaussians too; their weights are the shares of the images.
        every_rank: whether spectra have all d eigenvalues instead of those at `reported_ranks`.

    Raises:
        UserError: naming the class, if its covariance cannot be estimated.
    """
    moments = latents.moments  # also refuses latents that are not finite
    numbers = latents.channels * latents.cells
    ranks = np.arange(1, numbers + 1) if every_rank else reported_ranks(numbers)
    total = sum(map(len, classes.values()))
    sample = latents.take(slice(0, 1))

    def fit(images: np.ndarray) -> KroneckerCovariance:
        if covariance == "full":
            return fit_full(latents, images, moments if normalize else None, shrinkage=shrinkage)
        return fit_kronecker(
            latents, images, moments if normalize else None, iterations=iterations, shrinkage=shrinkage
        )

    def measure(item: tuple[int, np.ndarray]) -> ClassVariance:
        label, images = item
        try:
            fitted = fit(images)
        except UserError as error:
            raise UserError(f"class {label}: {error}") from error
        eigenvalues = fitted.eigenvalues().numpy()
        return ClassVariance(
            n=len(images),
            integral=integrated_variance(eigenvalues),
            curve=velocity_variance(eigenvalues, times),
            spectrum=eigenvalues[ranks - 1],
            gaussian=Component.of(fitted, len(images) / total, sample.dtype) if gaussians else None,
        )

    largest = max(map(len, classes.values())) * numbers * sample.element_size()
    fitted = map_in_threads(measure, classes.items(), most=CACHE_BYTES // largest)
    return dict(zip(classes, fitted, strict=True))


def reported_ranks(d: int) -> np.ndarray:
    """Return which of the eigenvalues 1 (largest) to ``d`` are reported."""
    return np.unique(np.linspace(1, d, min(d, SPECTRUM_RANKS)).round().astype(int))
