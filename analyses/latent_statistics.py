"""What the numbers in the latents are like: norms, moments of the channels, their covariance, and where they vary.

All sums are of standardised channels, that is about the mean and in units of the standard deviation (a first pass finds both),
in float64 over images, so that neither an offset nor a scale costs digits.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from analyses.intervals import GROUPS, bootstrap_means, percentile_interval, random_groups
from latentlab.latents import Latents
from latentlab.measurement import Estimate, Measurement, MetricCard
from latentlab.registry import measurement


@measurement(
    MetricCard(
        name="latent_statistics",
        title="Latent statistics",
        summary="mean length of a cell's vector, with moments of every channel, covariance spectrum and share within images",
        formula="mean over images and cells of |z|, z in R^c as encoded (not normalised)",
        unit="latent units",
        range="above 0; sqrt(c) for standardised independent channels of Gaussian kind, a little less than that",
        better="none",
        source="descriptive statistics; participation ratio (sum l)^2 / sum l^2 of the eigenvalues l of the channel covariance",
        confounds="the tokenizer's own scale, which a generator divides out",
        variants={},
        invariances="batch size, order of the images, permutations of the cells; rotations of the channels (norms, spectrum); "
        "kurtosis and skewness: per-channel shift and positive scale",
        known_values={
            "standard Gaussian, c channels": "sqrt(2) gamma((c+1)/2) / gamma(c/2); 2.7416 for c = 8, 5.6128 for c = 32",
            "independent channels of equal variance": "participation ratio c, condition number 1",
            "excess kurtosis": "Gaussian 0, uniform -1.2, Laplace 3",
            "white noise over s cells": "share within images (s-1)/s",
        },
        test="tests/analyses/test_latent_statistics.py::test_gaussian_closed_forms",
    )
)
def latent_statistics(latents: Latents, *, seed: int = 0) -> Measurement:
    """Describe the latents as they are, in two passes; memory: two numbers per image.

    Args:
        latents: any.
        seed: of the bootstrap over images.

    Returns:
        Mean norm of a cell's vector. Intervals of the norms and of the kurtosis: bootstrap over images. ``companions``: norm of
        a whole latent; excess kurtosis and absolute skewness, mean over channels; participation ratio and condition number of the
        channel covariance (ddof=1; infinite if singular); share of the variance within images, mean over channels. ``details``:
        ``mean``, ``std`` (ddof=1), ``skewness``, ``excess_kurtosis`` (biased, as `scipy.stats.kurtosis`), ``share_within_images``
        per channel [c]; ``eigenvalues`` [c], falling.

    Raises:
        UserError: NaN or infinity, or a single number per channel.
    """
    sums = _add_up(latents, seed)
    moments, groups = latents.moments, sums.powers
    kurtosis = _excess_kurtosis(groups.sum(0))
    several = latents.n > 1
    norms = bootstrap_means(sums.norms, seed) if several else None
    kurtoses = _kurtosis_replicates(groups, seed) if several else None
    eigenvalues = sums.eigenvalues(moments.std)
    varying = (moments.std > 0).numpy()
    skewness = _skewness(groups.sum(0))
    within = sums.share_within()
    return Measurement(
        name="latent_statistics",
        variant="mean norm of a cell, as encoded",
        value=float(sums.norms[:, 0].mean()),
        interval=None if norms is None else percentile_interval(norms[:, 0], latents.n),
        direction="none",
        unit="latent units",
        n=latents.n,
        parameters={"seed": seed},
        companions={
            "mean_image_norm": _estimate(sums.norms[:, 1].mean(), None if norms is None else norms[:, 1], latents.n),
            "mean_excess_kurtosis": _estimate(_mean(kurtosis[varying]), kurtoses, latents.n),
            "mean_absolute_skewness": Estimate(_mean(abs(skewness[varying]))),
            "participation_ratio": Estimate(_participation(eigenvalues)),
            "condition_number": Estimate(_condition(eigenvalues)),
            "share_within_images": Estimate(_mean(within[varying])),
        },
        warnings=_cautions(latents.n, int((~varying).sum())),
        details={
            "mean": moments.mean.numpy(),
            "std": moments.std.numpy(),
            "skewness": skewness,
            "excess_kurtosis": kurtosis,
            "share_within_images": within,
            "eigenvalues": eigenvalues,
        },
        replicates=None if norms is None else norms[:, 0],
    )


@dataclass
class _Sums:
    """What one pass adds up of standardised channels x.

    Attributes:
        norms: mean norm of a cell and norm of the whole latent, as encoded, [n,2].
        powers: sums of 1, x, x^2, x^3, x^4 of every random group of images, [g,5,c].
        products: sum of x x^T over cells, [c,c].
        image_means: sum over images of the squared mean of an image, [c].
    """

    norms: np.ndarray
    powers: np.ndarray
    products: Tensor
    image_means: np.ndarray

    def eigenvalues(self, std: Tensor) -> np.ndarray:
        """Return those of the channel covariance (ddof=1) in the latents' own units, falling, [c]."""
        count, first = self.powers.sum(0)[:2]
        mean = torch.from_numpy(first / count)
        covariance = (self.products - count[0] * mean.outer(mean)) / (count[0] - 1)
        values = torch.linalg.eigvalsh(covariance * std.outer(std)).clamp_min(0)
        return values.flip(0).numpy()

    def share_within(self) -> np.ndarray:
        """Return the share of every channel's variance that lies between the cells of an image, [c]; 0 for constant channels."""
        count, first, second, *_ = self.powers.sum(0)
        n = len(self.norms)
        total = second - first**2 / count
        between = count / n * (self.image_means - n * (first / count) ** 2)
        return np.where(total > 0, 1 - between / np.where(total > 0, total, 1), 0).clip(0, 1)


def _add_up(latents: Latents, seed: int) -> _Sums:
    moments, (c, s) = latents.moments, (latents.channels, latents.cells)
    group = torch.from_numpy(random_groups(latents.n, seed))
    sums = _Sums(
        np.empty((latents.n, 2)),
        np.zeros((min(latents.n, GROUPS), 5, c)),
        torch.zeros(c, c, dtype=torch.float64),
        np.zeros(c),
    )
    powers = torch.from_numpy(sums.powers)
    for part in latents.slices():
        cells = latents.take(part).flatten(2)
        lengths = cells.norm(dim=1).double()
        sums.norms[part] = torch.stack([lengths.mean(1), lengths.square().sum(1).sqrt()], dim=1)
        x = moments.standardise(cells)
        squares = x.square()
        of_image = [x.sum(2), squares.sum(2), (squares * x).sum(2), squares.square().sum(2)]
        table = torch.stack([torch.full((len(x), c), s, dtype=torch.float64), *(t.double() for t in of_image)], dim=1)
        powers.index_add_(0, group[part], table)
        sums.image_means += (of_image[0].double() / s).square().sum(0).numpy()
        rows = x.transpose(1, 2).flatten(0, 1).double()
        sums.products += rows.T @ rows
    return sums


def _central(powers: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the central moments 2, 3 and 4 of sums of powers [...,5,c]."""
    count = powers[..., 0, :]
    m1, m2, m3, m4 = (powers[..., i, :] / count for i in range(1, 5))
    return m2 - m1**2, m3 - 3 * m1 * m2 + 2 * m1**3, m4 - 4 * m1 * m3 + 6 * m1**2 * m2 - 3 * m1**4


def _excess_kurtosis(powers: np.ndarray) -> np.ndarray:
    """Return m4 / m2^2 - 3 of every channel; 0 for constant ones."""
    m2, _, m4 = _central(powers)
    return np.where(m2 > 0, m4 / np.where(m2 > 0, m2, 1) ** 2 - 3, 0)


def _skewness(powers: np.ndarray) -> np.ndarray:
    """Return m3 / m2^(3/2) of every channel; 0 for constant ones."""
    m2, m3, _ = _central(powers)
    return np.where(m2 > 0, m3 / np.where(m2 > 0, m2, 1) ** 1.5, 0)


def _kurtosis_replicates(groups: np.ndarray, seed: int) -> np.ndarray:
    """Return bootstrap replicates of the mean excess kurtosis over channels that vary, [r]."""
    resampled = bootstrap_means(groups.reshape(len(groups), -1), seed).reshape(-1, *groups.shape[1:])
    varying = _central(groups.sum(0))[0] > 0
    return np.array([_mean(_excess_kurtosis(powers)[varying]) for powers in resampled])


def _participation(eigenvalues: np.ndarray) -> float:
    squares = float((eigenvalues**2).sum())
    return float(eigenvalues.sum() ** 2) / squares if squares > 0 else 0.0


def _condition(eigenvalues: np.ndarray) -> float:
    """Return the largest over the smallest eigenvalue, infinity when that is no more than rounding."""
    most, least = float(eigenvalues[0]), float(eigenvalues[-1])
    return most / least if least > len(eigenvalues) * np.finfo(np.float64).eps * most else np.inf


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if values.size else 0.0


def _estimate(value: float, replicates: np.ndarray | None, n: int) -> Estimate:
    return Estimate(float(value), None if replicates is None else percentile_interval(replicates, n))


def _cautions(n: int, constant: int) -> tuple[str, ...]:
    said = []
    if constant:
        said.append(f"{constant} channels are constant: they count for norms and spectrum only")
    if n < 2:
        said.append("one image only: an interval over images is not possible")
    return tuple(said)
