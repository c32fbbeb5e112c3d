"""SEC, spectral energy concentration: the share of a latent grid's energy at high spatial frequencies.

Definition: Zhong et al., "Diffusing in the Right Space" (arXiv 2606.03578), eq. 7-9, with the orthonormal 2-D DCT-II of every
channel, E_uv its squared coefficients averaged over images and channels, and frequencies u, v counted from 0:

    SEC_rho = sum_{d(u,v) > tau} E_uv / sum E_uv,    d = u + v,    tau = rho (h + w - 2)
    euclidean variant (one of the ports of the paper's code): d = sqrt(u^2 + v^2),    tau = rho sqrt((h-1)^2 + (w-1)^2)

Mind the name: a larger "concentration" means more high-frequency energy, a rougher latent space.
"""

from typing import Literal

import numpy as np

from analyses.intervals import bootstrap_means, percentile_interval
from analyses.spectrum import Spectrum, measure_spectrum
from latentlab.errors import UserError, unknown_name
from latentlab.latents import Latents
from latentlab.measurement import Estimate, Measurement, MetricCard
from latentlab.registry import measurement

COMPANIONS = (0.25, 0.5)
"""Thresholds that are always reported, so that results with different headlines can be compared."""

_DISTANCES = ("manhattan", "euclidean")
_TIE = 1e-9
"""A distance this close to the threshold equals it: rho (h+w-2) is rounded, as in 0.35 * 20."""


@measurement(
    MetricCard(
        name="sec",
        title="Spectral energy concentration",
        summary="share of the latents' spatial energy above a frequency threshold: how rough they are",
        formula="SEC_rho = sum_{u+v > rho (h+w-2)} E_uv / sum E_uv,  E = mean squared orthonormal 2-D DCT-II coefficients",
        unit="fraction",
        range="0 (smooth) to 1; white noise: the share of the frequencies above the threshold, about 0.47 at rho = 0.5",
        better="lower",
        source="Zhong et al., Diffusing in the Right Space, arXiv 2606.03578, eq. 7-9; rho = 0.5 as headline and per-channel "
        "normalisation are our choice where the paper is silent",
        needs=("grid",),
        confounds="grid size; channel offsets when not normalised (they are DC energy)",
    )
)
def sec(
    latents: Latents,
    *,
    rho: float = 0.5,
    distance: Literal["manhattan", "euclidean"] = "manhattan",
    normalize: bool = True,
    seed: int = 0,
) -> Measurement:
    """Measure spectral energy concentration, in one pass over the latents.

    Args:
        latents: with a grid; 1-D tokens have no frequencies.
        rho: threshold of the headline as a share of the highest frequency, in [0, 1]; SEC at 0.25 and 0.5 are reported
            beside it. The threshold itself does not count as above, so rho = 1 gives 0 and rho = 0 all but DC.
        distance: of a frequency from DC: ``manhattan`` (u + v), or ``euclidean``.
        normalize: standardise each channel over the whole set first.
        seed: of the bootstrap over images.

    Returns:
        Fraction in [0, 1]; 0 where there is no energy. Interval: bootstrap over images (over 512 random groups of them, where
        there are more), with the normalisation held fixed. ``details``: ``energy`` [h,w], share per frequency, DC first;
        ``threshold`` tau of the headline.

    Raises:
        UserError: 1-D tokens, rho outside [0, 1], an unknown distance, or non-finite latents.
    """
    if latents.grid is None:
        raise UserError("sec needs a grid [n,c,h,w]: 1-D tokens have no spatial frequencies")
    if distance not in _DISTANCES:
        raise unknown_name("distance", str(distance), _DISTANCES)
    if not 0 <= rho <= 1:
        raise UserError(f"rho must lie in [0, 1], got {rho}")
    thresholds = sorted({*COMPANIONS, float(rho)})
    bands = np.stack([_above(latents.grid, distance, threshold) for threshold in thresholds])
    spectrum = measure_spectrum(latents, bands, normalize=normalize, seed=seed)
    estimates = dict(zip(thresholds, _shares(spectrum, seed), strict=True))
    total = spectrum.energy.sum()
    return Measurement(
        name="sec",
        variant=f"rho {rho:g}, {distance} distance, {'per-channel normalised' if normalize else 'raw'}",
        value=estimates[rho].value,
        interval=estimates[rho].interval,
        direction="lower",
        unit="fraction",
        n=latents.n,
        parameters={"rho": rho, "distance": distance, "normalize": normalize, "seed": seed},
        companions={f"SEC@{threshold:g}": estimates[threshold] for threshold in COMPANIONS},
        warnings=_cautions(latents, total),
        details={
            "energy": spectrum.energy / total if total > 0 else spectrum.energy,
            "threshold": rho * _distances(latents.grid, distance).max(),
        },
    )


def _distances(grid: tuple[int, int], distance: str) -> np.ndarray:
    """Return the distance of every frequency from DC, [h,w]."""
    u, v = np.arange(grid[0])[:, None], np.arange(grid[1])
    return np.hypot(u, v) if distance == "euclidean" else (u + v).astype(np.float64)


def _above(grid: tuple[int, int], distance: str, rho: float) -> np.ndarray:
    """Return which frequencies lie above the threshold, bool [h,w]."""
    distances = _distances(grid, distance)
    return distances > rho * distances.max() + _TIE


def _shares(spectrum: Spectrum, seed: int) -> list[Estimate]:
    """Return the share of energy in every band, with its interval."""
    total = spectrum.totals.sum()
    if not total > 0:
        return [Estimate(0.0)] * len(spectrum.bands)
    values = spectrum.bands.sum(1) / total
    if len(spectrum.totals) < 2:
        return [Estimate(float(value)) for value in values]
    means = bootstrap_means(np.stack([spectrum.totals, *spectrum.bands], axis=1), seed)
    with np.errstate(invalid="ignore", divide="ignore"):  # resamplings without energy
        replicates = (means[:, 1:] / means[:, :1]).T
    return [Estimate(float(value), percentile_interval(r)) for value, r in zip(values, replicates, strict=True)]


def _cautions(latents: Latents, total: float) -> tuple[str, ...]:
    if not total > 0:
        return ("the latents do not vary at all: there is no energy, and SEC is 0 by definition",)
    if latents.n < 2:
        return ("one image only: an interval over images is not possible",)
    return ()
