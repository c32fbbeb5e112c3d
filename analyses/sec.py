"""SEC, spectral energy concentration: the share of a latent grid's energy at high spatial frequencies.

Definition: Zhong et al., "Diffusing in the Right Space" (arXiv 2606.03578), eq. 7-9, with the orthonormal 2-D DCT-II of every
channel, E_uv its squared coefficients averaged over images and channels, and frequencies u, v counted from 0:

    SEC_rho = sum_{d(u,v) > tau} E_uv / sum E_uv,    d = u + v,    tau = rho (h + w - 2)
    euclidean variant (one of the ports of the paper's code): d = sqrt(u^2 + v^2),    tau = rho sqrt((h-1)^2 + (w-1)^2)

Mind the name: a larger "concentration" means more high-frequency energy, a rougher latent space.
"""

from typing import Literal

import numpy as np

from analyses.intervals import SHARE, bootstrap_means, percentile_interval
from analyses.spectrum import Spectrum, measure_spectrum
from latentlab.errors import UserError, unknown_name
from latentlab.latents import Latents, on_grid
from latentlab.measurement import Estimate, Measurement, MetricCard
from latentlab.registry import measurement

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
        variants={
            "rho=0.25": "a threshold at a quarter of the highest frequency (always reported beside the headline)",
            "thresholds=(0.25, 0.5, 0.75)": "further thresholds beside the headline",
            "distance='euclidean'": "frequencies are counted by sqrt(u^2 + v^2) instead of u + v, as in a port of the code",
            "normalize=False": "raw latents: offsets of the channels are DC energy",
            "grid=(8, 16)": "lays 1-D tokens out on a grid, row by row; their order need not have a place in the image",
        },
        invariances="batch size, order of the images and channels, a scale of all latents, mirrored or transposed grids; "
        "per-channel shift and scale when normalised",
        known_values={
            "white noise on 16x16": "0.46875 (rho 0.5), 0.859375 (rho 0.25) in expectation",
            "four channels of one DCT mode each, (0,0) of amplitude 3, (7,8) 1, (8,8) 1, (15,15) 2, raw": "5/15 (rho 0.5), "
            "6/15 (rho 0.25)",
            "white noise with an offset of 5, raw": "0.018, normalised 0.467 (rho 0.5)",
        },
        test="tests/analyses/test_sec.py::test_single_modes_are_exact",
    )
)
def sec(
    latents: Latents,
    *,
    rho: float = 0.5,
    thresholds: tuple[float, ...] = (0.25, 0.5),
    distance: Literal["manhattan", "euclidean"] = "manhattan",
    normalize: bool = True,
    grid: tuple[int, int] | None = None,
    seed: int = 0,
) -> Measurement:
    """Measure spectral energy concentration, in one pass over the latents.

    Args:
        latents: with a grid; 1-D tokens have no frequencies.
        rho: threshold of the headline as a share of the highest frequency, in [0, 1]. The threshold itself does not count as
            above, so rho = 1 gives 0 and rho = 0 all but DC.
        thresholds: further ones, reported beside the headline.
        distance: of a frequency from DC: ``manhattan`` (u + v), or ``euclidean``.
        normalize: standardise each channel over the whole set first.
        grid: (rows, columns) on which 1-D tokens are laid out; None for latents that have a grid.
        seed: of the bootstrap over images.

    Returns:
        Fraction in [0, 1]; 0 where there is no energy. Interval: bootstrap over images, with the normalisation held fixed.
        ``details``: ``energy`` [h,w], share per frequency, DC first; ``threshold`` tau of the headline; the radial spectrum:
        ``frequency`` [D], Manhattan distances u + v, or r of the Euclidean rings r <= sqrt(u^2 + v^2) < r + 1,
        ``radial_energy`` share of energy and ``radial_white`` share of the frequencies there, which white noise would have.

    Raises:
        UserError: 1-D tokens without a grid, rho or a threshold outside [0, 1], an unknown distance, or non-finite latents.
    """
    latents = on_grid(latents, grid, "sec")
    assert latents.grid is not None
    if distance not in _DISTANCES:
        raise unknown_name("distance", str(distance), _DISTANCES)
    for name, value in (("rho", rho), *(("thresholds", value) for value in thresholds)):
        if not 0 <= value <= 1:
            raise UserError(f"{name} must lie in [0, 1], got {value}")
    every = list(dict.fromkeys(map(float, (rho, *thresholds))))  # the headline first
    bands = np.stack([_above(latents.grid, distance, threshold) for threshold in every])
    spectrum = measure_spectrum(latents, bands, normalize=normalize, seed=seed)
    shares, replicates = _shares(spectrum, seed)
    estimates = dict(zip(every, shares, strict=True))
    total = spectrum.energy.sum()
    energy = spectrum.energy / total if total > 0 else spectrum.energy
    return Measurement(
        name="sec",
        variant=_variant(latents, rho, distance, normalize),
        value=estimates[rho].value,
        interval=estimates[rho].interval,
        direction="lower",
        unit="fraction",
        n=latents.n,
        parameters={
            "rho": rho,
            "thresholds": thresholds,
            "distance": distance,
            "normalize": normalize,
            "grid": grid,
            "seed": seed,
        },
        companions={f"SEC@{threshold:g}": estimates[threshold] for threshold in thresholds},
        warnings=_cautions(latents, total),
        details={
            "energy": energy,
            "threshold": rho * _distances(latents.grid, distance).max(),
            **_radial(energy, distance),
        },
        replicates=replicates,
    )


def _radial(energy: np.ndarray, distance: str) -> dict[str, np.ndarray]:
    """Return the share of energy [h,w], and of frequencies, per distance from DC."""
    h, w = energy.shape
    ring = _distances((h, w), distance).astype(int).ravel()  # Euclidean distances are rounded down
    inside = np.bincount(ring)
    return {
        "frequency": np.arange(len(inside)),
        "radial_energy": np.bincount(ring, weights=energy.ravel()),
        "radial_white": inside / (h * w),
    }


def _variant(latents: Latents, rho: float, distance: str, normalize: bool) -> str:
    """Return the definition used, in words; shares of frequencies depend on the grid, so it is part of it."""
    assert latents.grid is not None
    h, w = latents.grid
    return f"rho {rho:g}, {distance} distance, {h}x{w} grid, {'per-channel normalised' if normalize else 'raw'}"


def _distances(grid: tuple[int, int], distance: str) -> np.ndarray:
    """Return the distance of every frequency from DC, [h,w]."""
    u, v = np.arange(grid[0])[:, None], np.arange(grid[1])
    return np.hypot(u, v) if distance == "euclidean" else (u + v).astype(np.float64)


def _above(grid: tuple[int, int], distance: str, rho: float) -> np.ndarray:
    """Return which frequencies lie above the threshold, bool [h,w]."""
    distances = _distances(grid, distance)
    return distances > rho * distances.max() + _TIE


def _shares(spectrum: Spectrum, seed: int) -> tuple[list[Estimate], np.ndarray | None]:
    """Return the share of energy in every band, with its interval, and the bootstrap replicates of the first."""
    total = spectrum.totals.sum()
    if not total > 0:
        return [Estimate(0.0)] * len(spectrum.bands), None
    values = spectrum.bands.sum(1) / total
    if len(spectrum.totals) < 2:
        return [Estimate(float(value)) for value in values], None
    means = bootstrap_means(np.stack([spectrum.totals, *spectrum.bands], axis=1), seed)
    with np.errstate(invalid="ignore", divide="ignore"):  # resamplings without energy
        replicates = (means[:, 1:] / means[:, :1]).T
    n = len(spectrum.totals)
    shares = [
        Estimate(float(value), percentile_interval(r, n, SHARE)) for value, r in zip(values, replicates, strict=True)
    ]
    return shares, replicates[0]


def _cautions(latents: Latents, total: float) -> tuple[str, ...]:
    if not total > 0:
        return ("the latents do not vary at all: there is no energy, and SEC is 0 by definition",)
    if latents.n < 2:
        return ("one image only: an interval over images is not possible",)
    return ()
