"""The irreducible variance of the velocity beside sampling paths: are steps short where the velocity is ambiguous?

For the exact flow they are, whatever the data (`analyses.irreducible`); figure 10 of Zhong et al., "Diffusing in the Right Space"
(arXiv 2606.03578), sets eq. 4 of Gaussian classes beside the steps of a trained generator.
"""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from analyses.irreducible import gaussian_length_ratio, integrated_variance, velocity_variance
from analyses.viv import viv
from latentlab.errors import UserError
from latentlab.latents import Latents
from latentlab.measurement import Estimate, Measurement
from mind.paths import PathGenerator

_DISCRETE = (
    "the latents are entries of a codebook, and eq. 4 takes them as Gaussian: at late times they are nearly known, and what it "
    "calls irreducible there is not, so that steps need not be short where it is large"
)


@dataclass(frozen=True)
class Overlay:
    """Latents whose irreducible variance is set beside the paths.

    Attributes:
        latents: as the paths lead to them, with labels.
        path: folder they lie in.
    """

    latents: Latents
    path: Path


def irreducible_variance(generator: PathGenerator, overlay: Overlay, seed: int = 0) -> Measurement:
    """Return ``viv`` of the latents that the paths lead to, with its curve in the middle of every step.

    The latents are taken as they are: what they are scaled by has been decided by the generator.

    Returns:
        ``viv``, with two more ``details``: ``gaussian_length_ratio`` [M], the length ratios of the exact flow from 0 to 1 to
        Gaussian classes of these means and covariances, in the mean over the classes (absent where that flow stands still); and
        ``discrete``, whether the latents are entries of a codebook.

    Raises:
        UserError: latents without labels, or too few of them for the covariance of a class.
    """
    latents = overlay.latents
    if latents.labels is None:
        raise UserError(
            f"{overlay.path} has no labels: the irreducible variance is that given the class; encode with labels"
        )
    times = np.asarray(generator.times)
    middle = (times[1:] + times[:-1]) / 2
    try:
        found = viv(latents, normalize=False, times=middle.tolist(), eigenvalues=True, seed=seed)
    except UserError as error:
        raise UserError(f"irreducible variance of {overlay.path}: {error}") from error
    details = dict(found.details)
    spectra = details.pop("class_eigenvalues")
    with suppress(UserError):
        details["gaussian_length_ratio"] = _gaussian_lengths(latents, spectra, middle)
    details["discrete"] = latents.spec is not None and latents.spec.discrete
    return replace(found, details=details)


def _gaussian_lengths(latents: Latents, spectra: Mapping[int, np.ndarray], times: np.ndarray) -> np.ndarray:
    """Return the length ratios [M] of the flow to Gaussians with these eigenvalues {label: [d]} and the means of the classes."""
    squares = np.concatenate([batch.double().square().flatten(1).sum(1).numpy() for batch in latents.batches()])
    ratios = []
    for label, eigenvalues in spectra.items():
        energy = squares[latents.labels == label].mean() + len(eigenvalues)
        ambiguous = velocity_variance(eigenvalues, times)
        ratios.append(gaussian_length_ratio(energy, ambiguous, integrated_variance(eigenvalues)))
    mean: np.ndarray = np.mean(ratios, axis=0)
    return mean


def with_variance(paths: Measurement, variance: Measurement) -> Measurement:
    """Return the measured paths with the result of `irreducible_variance` beside their length ratios.

    Adds to ``details`` ``irreducible_variance`` [M], per dimension, and ``gaussian_length_ratio`` [M] where it is known. Where
    lengths and variance vary there is a companion ``correlation with irreducible variance`` over the steps; negative: short steps
    where the velocity is ambiguous, as the exact flow has them.
    """
    curve, ratio = np.asarray(variance.details["curve"]), np.asarray(paths.details["length_ratio"])
    details = {**paths.details, "irreducible_variance": curve}
    if "gaussian_length_ratio" in variance.details:
        details["gaussian_length_ratio"] = variance.details["gaussian_length_ratio"]
    companions = dict(paths.companions)
    if curve.std() and ratio.std():
        companions["correlation with irreducible variance"] = Estimate(float(np.corrcoef(ratio, curve)[0, 1]))
    warnings = (*paths.warnings, _DISCRETE) if variance.details["discrete"] else paths.warnings
    return replace(paths, details=details, companions=companions, warnings=warnings)
