"""Number of modes of a latent distribution: Gaussian mixtures of growing size, judged by BIC and held-out likelihood.

Source: MAETok (Chen et al., "Masked Autoencoders Are Effective Tokenizers for Diffusion Models", ICML 2025, appendix B.3):
latents -> flatten -> PCA to more than 90 % of the variance -> standardise -> mixtures of growing size; the fewer
components reach a given negative log-likelihood (NLL), the easier the latent space is for a diffusion model. No code was
published and no scalar is defined there. Settled here: exact EM, full covariances, NLL on held-out images, and as the
headline the number of components with the lowest BIC, because it needs no threshold and, unlike a likelihood, is a number
of the same kind in every dimension.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from analyses.gaussians import SHAPES, Covariance
from analyses.intervals import bootstrap_means, mean_interval
from analyses.mixture import Fit, bic, fit_mixture, score_samples
from analyses.pca import Pca, pca
from analyses.points import LatentRows, MappedPoints, Points, in_memory
from latentlab.errors import UserError, unknown_name
from latentlab.latents import Latents
from latentlab.measurement import Estimate, Interval, Measurement, MetricCard
from latentlab.registry import measurement

COMPONENTS = (1, 2, 5, 10, 20, 50)

CACHE_BYTES = 256 << 20
"""Projected latents are kept in memory up to this size, else projected again in every pass over the store."""

NUMBERS_PER_PARAMETER = 10
"""A fit with fewer training numbers (images x dims) per parameter is flagged: it follows the sample, not the distribution."""

CARD = MetricCard(
    name="gmm",
    title="Gaussian-mixture mode count",
    summary="How many Gaussian components the latent distribution needs.",
    formula="argmin_K BIC(K), BIC(K) = -2 sum_i log sum_k w_k N(z_i; mu_k, Sigma_k) + (number of parameters) log n",
    unit="components",
    range="the numbers of components tried",
    better="lower",
    source=(
        "MAETok (ICML 2025), appendix B.3: flatten, PCA > 90 %, standardise, fit. Settled here: exact EM with full covariances, "
        "held-out NLL, and the BIC count as headline (the paper defines no scalar)"
    ),
    confounds=(
        "NLL is in nats per image and comparable only between results with the same dims: fix dims when tokenizers are "
        "compared. BIC favours fewer components when there are fewer images or more dims, so compare equal n."
    ),
)


@dataclass(frozen=True)
class _Sweep:
    """Fits of all K; log-likelihoods per image as columns, [n_train,K] and [n_heldout,K]."""

    components: tuple[int, ...]
    fits: list[Fit]
    train: np.ndarray
    heldout: np.ndarray

    @property
    def n_parameters(self) -> list[int]:
        return [fit.mixture.n_parameters for fit in self.fits]

    @property
    def bic(self) -> list[float]:
        return [bic(m, p, len(self.train)) for m, p in zip(self.train.mean(0), self.n_parameters, strict=True)]


@measurement(CARD)
def gmm(
    latents: Latents,
    *,
    components: Sequence[int] = COMPONENTS,
    covariance: Covariance = "full",
    dims: int | None = None,
    explained: float = 0.9,
    heldout: float = 0.2,
    threshold: float | None = None,
    n_init: int = 3,
    tol: float = 1e-3,
    max_iter: int = 100,
    seed: int = 0,
) -> Measurement:
    """Count the modes of a latent distribution.

    PCA, standardisation (ddof=0) and mixtures are fitted to the training images only; each K starts from the split of the
    previous K and from ``n_init`` random starts. Latents are streamed; the projected latents are kept in memory up to
    256 MiB, and projected anew in every pass beyond that.

    Companions: ``held-out NLL@K`` for the smallest, the largest and the BIC-best K, ``train NLL@K`` of the latter (nats per
    image), ``K at lowest held-out NLL``, and with a ``threshold`` also ``K at threshold``, the smallest K whose held-out
    NLL is not above it.

    Intervals: bootstrap over images of the log-likelihoods under the fitted mixtures, without fitting again. They hold the
    uncertainty of the evaluation, not of PCA and EM; that of the mode count often is a single K, because the same images
    favour or disfavour all K together. ``K at threshold`` has none when a resampling does not reach the threshold.

    Args:
        latents: [n,...].
        components: numbers of components K to try.
        covariance: ``full``, ``diag`` or ``tied``. A diagonal needs several components for one tilted mode.
        dims: PCA dimension; None takes the fewest with more than ``explained`` of the variance. Fix it to compare NLLs.
        explained: share of the variance to exceed, in (0,1).
        heldout: share of the images kept from fitting, in (0,1).
        threshold: NLL for ``K at threshold``, nats per image.
        n_init: random starts per K.
        tol: EM has converged when the mean log-likelihood changes by less (nats per image).
        max_iter: most EM iterations per K.
        seed: of the split, the starts and the bootstrap.

    Returns:
        Headline: the K with the lowest BIC on the training images (lower is better). Details, one entry per K: ``components``,
        ``train_nll``, ``heldout_nll`` (nats per image), ``bic``, ``converged``, ``iterations``, ``n_parameters``; and
        ``dims``, ``explained``, ``n_train``, ``n_heldout``.

    Raises:
        UserError: non-finite latents, a parameter out of range, more components than training images, latents that vary in
            fewer than ``dims`` directions, or a K at which every start degenerates.
    """
    ks = _check(components, covariance, heldout, n_init)
    latents.moments  # noqa: B018  refuses NaN and infinity by image number
    training = _split(latents.n, heldout, seed)
    if ks[-1] > training.sum():
        raise UserError(
            f"components asks for {ks[-1]} components, but only {training.sum()} of {latents.n} images are for training: "
            "give more images or fewer components"
        )
    rows = LatentRows(latents, training)
    axes = pca(rows, explained=explained, dims=dims, seed=seed)
    kept = len(axes.variances)
    train, held = (_project(r, axes) for r in (rows, LatentRows(latents, ~training)))
    sweep = _sweep(train, held, ks, covariance, n_init=n_init, tol=tol, max_iter=max_iter, seed=seed)
    best = int(np.argmin(sweep.bic))
    companions, unreached = _companions(sweep, best, threshold, seed)
    return Measurement(
        name=CARD.name,
        variant=f"{covariance} covariances, {kept} PCA dimensions, argmin BIC",
        value=float(ks[best]),
        interval=_count_interval(sweep, seed),
        direction=CARD.better,
        unit=CARD.unit,
        n=latents.n,
        parameters={
            "components": list(ks),
            "covariance": covariance,
            "dims": kept,
            "explained": explained,
            "heldout": heldout,
            "threshold": threshold,
            "n_init": n_init,
            "tol": tol,
            "max_iter": max_iter,
            "seed": seed,
        },
        companions=companions,
        warnings=(*_warnings(sweep, best, kept), *_pca_warnings(axes, explained, dims), *unreached),
        details={
            "components": list(ks),
            "train_nll": (-sweep.train.mean(0)).tolist(),
            "heldout_nll": (-sweep.heldout.mean(0)).tolist(),
            "bic": sweep.bic,
            "converged": [fit.converged for fit in sweep.fits],
            "iterations": [len(fit.log_likelihoods) for fit in sweep.fits],
            "n_parameters": sweep.n_parameters,
            "dims": kept,
            "explained": axes.explained,
            "n_train": train.n,
            "n_heldout": held.n,
        },
    )


def _check(components: Sequence[int], covariance: str, heldout: float, n_init: int) -> tuple[int, ...]:
    """Return the numbers of components in ascending order, each once."""
    if covariance not in SHAPES:
        raise unknown_name("covariance", covariance, SHAPES)
    if not components or any(k != int(k) or k < 1 for k in components):
        raise UserError(f"components must be positive integers, at least one, got {list(components)}")
    if not 0 < heldout < 1:
        raise UserError(f"heldout must lie between 0 and 1, got {heldout}")
    if n_init < 1:
        raise UserError(f"n_init must be at least 1, got {n_init}")
    return tuple(sorted({int(k) for k in components}))


def _split(n: int, heldout: float, seed: int) -> np.ndarray:
    """Return which images are for training, bool [n]; a function of (n, heldout, seed)."""
    held = round(n * heldout)
    if not 1 <= held <= n - 2:
        raise UserError(
            f"heldout={heldout} of {n} images leaves {held} to test and {n - held} to fit: give more images"
        )
    training = np.ones(n, dtype=bool)
    training[np.random.default_rng([seed, 1]).permutation(n)[:held]] = False
    return training


def _project(rows: Points, axes: Pca) -> Points:
    return in_memory(MappedPoints(rows, axes.standardise, len(axes.variances)), CACHE_BYTES)


def _sweep(
    train: Points,
    held: Points,
    ks: tuple[int, ...],
    covariance: Covariance,
    *,
    n_init: int,
    tol: float,
    max_iter: int,
    seed: int,
) -> _Sweep:
    fits: list[Fit] = []
    for k in ks:
        previous = fits[-1].mixture if fits else None
        # A single component of standardised data is a sphere: it has no widest axis to split.
        warm = previous if previous is not None and len(previous.weights) > 1 else None
        fits.append(fit_mixture(train, k, covariance, n_init=n_init, warm=warm, tol=tol, max_iter=max_iter, seed=seed))
    return _Sweep(ks, fits, _scores(train, fits), _scores(held, fits))


def _scores(points: Points, fits: Sequence[Fit]) -> np.ndarray:
    scores: list[Tensor] = [score_samples(points, fit.mixture) for fit in fits]
    return torch.stack(scores, dim=1).numpy()


def _count_interval(sweep: _Sweep, seed: int) -> Interval:
    """Return the interval of the mode count: argmin BIC of resampled training log-likelihoods."""
    n = len(sweep.train)
    penalty = np.array([bic(0.0, p, n) for p in sweep.n_parameters])
    criteria = penalty - 2 * n * bootstrap_means(sweep.train, seed)
    return _component_interval(np.array(sweep.components)[criteria.argmin(1)])


def _component_interval(counts: np.ndarray) -> Interval:
    """Return the 2.5 and 97.5 percentiles of numbers of components [r], each a number that was tried."""
    low, high = np.percentile(counts, (2.5, 97.5), method="inverted_cdf")
    return float(low), float(high)


def _companions(
    sweep: _Sweep, best: int, threshold: float | None, seed: int
) -> tuple[dict[str, Estimate], tuple[str, ...]]:
    """Return the numbers beside the headline, and a warning when the threshold is not reached."""
    ks, nll = np.array(sweep.components), -sweep.heldout
    found = {
        f"held-out NLL@{ks[i]}": Estimate(float(nll[:, i].mean()), mean_interval(nll[:, i], seed))
        for i in sorted({0, best, len(ks) - 1})
    }
    train = -sweep.train[:, best]
    found[f"train NLL@{ks[best]}"] = Estimate(float(train.mean()), mean_interval(train, seed))
    means = bootstrap_means(nll, seed)
    found["K at lowest held-out NLL"] = Estimate(
        float(ks[nll.mean(0).argmin()]), _component_interval(ks[means.argmin(1)]) if len(nll) > 1 else None
    )
    if threshold is None:
        return found, ()
    if nll.mean(0).min() > threshold:
        return found, (f"no number of components reaches the threshold: lowest held-out NLL {nll.mean(0).min():.4g}",)
    reached = means <= threshold
    interval = _component_interval(ks[reached.argmax(1)]) if len(nll) > 1 and reached.any(1).all() else None
    found["K at threshold"] = Estimate(float(ks[(nll.mean(0) <= threshold).argmax()]), interval)
    return found, ()


def _warnings(sweep: _Sweep, best: int, dims: int) -> list[str]:
    """Return what to know about these fits."""
    ks, n, found = sweep.components, len(sweep.train), []
    stopped = [k for k, fit in zip(ks, sweep.fits, strict=True) if not fit.converged]
    if stopped:
        found.append(f"EM did not converge for {_listed(stopped)} components: raise max_iter or tol")
    scarce = [k for k, p in zip(ks, sweep.n_parameters, strict=True) if n * dims < NUMBERS_PER_PARAMETER * p]
    if scarce:
        found.append(
            f"{_listed(scarce)} components have fewer than {NUMBERS_PER_PARAMETER} training numbers per parameter "
            f"({n} images x {dims} dims): their likelihoods follow the sample; use more images, fewer dims or covariance='diag'"
        )
    if best == len(ks) - 1 and len(ks) > 1:
        found.append(
            f"BIC is lowest at the most components tried ({ks[best]}): the count may be larger, extend components"
        )
    return found


def _pca_warnings(axes: Pca, explained: float, dims: int | None) -> list[str]:
    if dims is None and axes.explained <= explained:
        return [
            f"{len(axes.variances)} PCA dimensions explain only {axes.explained:.1%} of the variance, {explained:.0%} were "
            "asked for: the search stops there"
        ]
    return []


def _listed(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers))
