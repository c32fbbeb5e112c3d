"""How far generated images are from real ones: the Frechet distance of their features, and how sure that number is.

Both sets are rounded to 8 bits first, as image files are. Beside the images themselves the number of them decides: the distance
of n images is too large by about a constant over n, so only values of equal n may be compared.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from analyses.frechet import Moments, MomentSums, frechet_distance, influence_values, sample_cautions
from analyses.intervals import bootstrap_means, percentile_interval
from latentlab.errors import UserError
from latentlab.measurement import Estimate, Interval
from latentlab.pixels import Pixels, as_pixels
from latentlab.quality.features import feature_extractor, features_of
from latentlab.quality.generated_images import GeneratedImages
from latentlab.quality.sample_file import SampleFile
from latentlab.quality.sample_parts import SampleParts

PARTS = "parts"
"""Folder, in the folder of a sampling run, of the images that are in no ``samples_*.npz`` yet."""


@dataclass(frozen=True)
class GenerationDistance:
    """The distance of generated images from real ones.

    Attributes:
        name: ``fid`` on the features of Inception-v3 only, else ``fd_`` and the extractor.
        value: squared feature distance, 0 for equal moments.
        interval: 95 %, over both sets of images; None where too few images make it worthless.
        n: number of generated images.
        n_reference: number of real ones.
        extractor: what determines the features.
        warnings: what limits this very number.
    """

    name: str
    value: float
    interval: Interval | None
    n: int
    n_reference: int
    extractor: str
    warnings: tuple[str, ...] = ()


def generation_distance(
    images: Any,
    reference: Any,
    extractor: str | Callable[[Tensor], Tensor] = "efficientnet-lite0",
    device: str = "cpu",
    seed: int = 0,
) -> GenerationDistance:
    """Return the Frechet distance between the features of generated and of real images.

    Args:
        images: generated ones: `Pixels` (`generated_images` opens a run's), an `ImageSet`, or an array [n,3,H,W], uint8 or in
            [-1,1]. Their features are not kept.
        reference: real ones, likewise. Features of networks by name are kept by the images' fingerprint, so that a reference is
            described once.
        extractor: name for `feature_extractor`, or a function of images [b,3,H,W] in [-1,1] that returns [b,d].
        device: where the features are computed.
        seed: of the bootstrap.

    Raises:
        UserError: unknown extractor, weights that are not on this machine, fewer than 2 images, or features that are not finite.
    """
    images, reference = as_pixels(images), as_pixels(reference)
    judge = feature_extractor(extractor, device)
    real = features_of(judge, reference, quantize=True)
    made = features_of(judge, images, quantize=True, keep=False)
    value, interval = frechet_of_features(made, real, seed)
    cautions = [
        *sample_cautions(min(len(made), len(real)), made.shape[1], judge.name),
        *size_cautions(images, reference),
    ]
    version = judge.version or judge.name
    return GenerationDistance(judge.distance, value, interval, len(made), len(real), version, tuple(cautions))


def generated_images(path: Path) -> GeneratedImages:
    """Open the images of a sampling run: a ``.npz`` file of the ADM format, or the folder of the run.

    Raises:
        UserError: there are none, the run is unfinished, or a file is damaged.
    """
    if not path.is_dir():
        return SampleFile(path)
    files = sorted(path.glob("samples_*.npz"))
    if len(files) > 1:
        raise UserError(f"{path} holds {len(files)} files samples_*.npz: give one of them")
    return SampleFile(files[0]) if files else SampleParts(path / PARTS).images()


def frechet_of_features(made: np.ndarray, real: np.ndarray, seed: int = 0) -> Estimate:  # [n,d], [m,d]
    """Return the Frechet distance of two feature sets and, where both covariances have full rank, its interval.

    Raises:
        UserError: fewer than 2 features, NaN or infinity.
    """
    if min(len(made), len(real)) <= made.shape[1]:
        return Estimate(frechet_distance(*moments_of(made), *moments_of(real)))
    value, of_made, of_real = influence_values(made, real)
    replicates = value + bootstrap_means(of_made, seed) + bootstrap_means(of_real, seed + 1)
    return Estimate(value, percentile_interval(replicates))


def moments_of(features: np.ndarray) -> Moments:
    """Return mean and covariance of features [n,d].

    Raises:
        UserError: fewer than 2 features, NaN or infinity.
    """
    sums = MomentSums()
    sums.add(features)
    return sums.moments()


def size_cautions(images: Pixels, reference: Pixels) -> tuple[str, ...]:
    """Say so where generated and real images differ in size."""
    if images.shape == reference.shape:
        return ()
    made, real = ("x".join(map(str, pixels.shape[1:])) for pixels in (images, reference))
    return (f"generated images are {made} pixels, real ones {real}: the distance also measures that",)
