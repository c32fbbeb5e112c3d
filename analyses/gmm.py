"""Number of modes of a latent distribution: Gaussian mixtures of growing size, judged by BIC and held-out likelihood.

Source: MAETok (Chen et al., "Masked Autoencoders Are Effective Tokenizers for Diffusion Models", ICML 2025, appendix B.3):
latents -> flatten -> PCA to more than 90 % of the variance -> standardise -> mixtures of growing size; the fewer
components reach a given negative log-likelihood (NLL), the easier the latent space is for a diffusion model. No code was
published and no scalar is defined there. Settled here: exact EM, full covariances, NLL on held-out images, and as the
headline the number of components with the lowest BIC, because it needs no threshold and, unlike a likelihood, is a number
of the same kind in every dimension.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from analyses.gaussians import SHAPES, Covariance, DegenerateMixtureError
from analyses.intervals import bootstrap_means, mean_interval
from analyses.mixture import Fit, bic, count_parameters, fit_mixture, score_samples
from analyses.pca import Pca, pca
from analyses.points import LatentRows, MappedPoints, Points, in_memory
from latentlab.errors import UserError, unknown_name
from latentlab.latents import Latents
from latentlab.measurement import Estimate, Interval, Measurement, MetricCard
from latentlab.registry import measurement
from latentlab.subset import limit_latents

COMPONENTS = (1, 2, 5, 10, 20, 50)
"""Numbers of components tried by default."""

CACHE_BYTES = 256 << 20
"""Projected latents are kept in memory up to this size, else projected again in every pass over the store."""

NUMBERS_PER_PARAMETER = 10
"""A fit with fewer training numbers (images x dims) per parameter follows the sample, not the distribution: it is flagged when
asked for, and left out of the default sweep, where it would also cost most of the time."""


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
        return [bic(float(m), p, len(self.train)) for m, p in zip(self.train.mean(0), self.n_parameters, strict=True)]


@measurement(
    MetricCard(
        name="gmm",
        title="Gaussian-mixture mode count",
        summary="How many Gaussian components the latent distribution needs.",
        formula="argmin_K BIC(K), BIC(K) = -2 sum_i log sum_k w_k N(z_i; mu_k, Sigma_k) + (number of parameters) log n",
        unit="components",
        range="the numbers of components tried",
        better="lower",
        source=(
            "MAETok (ICML 2025), appendix B.3: flatten, PCA > 90 %, standardise, fit. Settled here: exact EM with full "
            "covariances, held-out NLL, and the BIC count as headline (the paper defines no scalar)"
        ),
        confounds=(
            "NLL is in nats per image and comparable only between results with the same dims: fix dims when tokenizers are "
            "compared. BIC favours fewer components when there are fewer images or more dims, so compare equal n."
        ),
        variants={
            "components=[1, 4, 16]": "tries these; by default 1 and those of 2, 5, 10, 20 and 50 that the images suffice for",
            "covariance='diag'": "no tilt within a component: needs several of them for one tilted mode",
            "covariance='tied'": "one matrix for all components",
            "dims=64": "fixed PCA dimension: what makes NLLs of different tokenizers comparable",
            "most_dims=1024": "largest dimension chosen by explained variance; the default, 128, may explain less than 90 %",
            "limit=None": "all images instead of 10,000",
            "threshold=300": "also the smallest K whose held-out NLL is at most this",
        },
        invariances="batch size, rotation of the flattened latents, common scale; the order of the images only through the "
        "split and the starts, and beyond the limit through which are used",
        bias="fewer components for fewer images",
        known_values={
            "K = 1, standardised components": "NLL = d/2 (log 2 pi + 1): 5.67575413 for d = 4, 7.09469267 for d = 5",
            "one Gaussian": "1",
            "six separated modes, d = 4, full": "6 (fewer where modes overlap)",
        },
        test="tests/analyses/test_gmm.py::test_one_component_has_the_closed_form",
    )
)
def gmm(
    latents: Latents,
    *,
    components: Sequence[int] | None = None,
    covariance: Covariance = "full",
    dims: int | None = None,
    explained: float = 0.9,
    most_dims: int = 128,
    limit: int | None = 10_000,
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
        components: numbers of components K to try; None: 1 and of 2, 5, 10, 20, 50 those with 10 training numbers
            (images x dims) per parameter.
        covariance: ``full``, ``diag`` or ``tied``. A diagonal needs several components for one tilted mode.
        dims: PCA dimension; None takes the fewest with more than ``explained`` of the variance. Fix it to compare NLLs.
        explained: share of the variance to exceed, in (0,1).
        most_dims: largest PCA dimension chosen so; where it explains less, a warning says how much. Full covariances in many
            more dimensions would have more parameters than the images have numbers.
        limit: use at most this many images, evenly from the classes; None for all.
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
    if covariance not in SHAPES:
        raise unknown_name("covariance", covariance, SHAPES)
    if n_init < 1:
        raise UserError(f"n_init must be at least 1, got {n_init}")
    if most_dims < 1:
        raise UserError(f"most_dims must be at least 1, got {most_dims}")
    latents.moments  # noqa: B018  refuses NaN and infinity by image number
    latents = limit_latents(latents, limit, seed)
    training = _split(latents.n, heldout, seed)
    rows, unseen = LatentRows(latents, training), LatentRows(latents, ~training)
    if components is not None:
        _check_components(components, rows.n)
    axes = pca(rows, explained=explained, dims=dims, most=most_dims, seed=seed)
    kept = len(axes.variances)
    ks = (
        _default_components(rows.n, kept, covariance)
        if components is None
        else tuple(sorted({int(k) for k in components}))
    )
    fit = partial(fit_mixture, covariance=covariance, n_init=n_init, tol=tol, max_iter=max_iter, seed=seed)
    sweep = _sweep(_project(rows, axes), _project(unseen, axes), ks, fit)
    best = int(np.argmin(sweep.bic))
    counts = _resampled_counts(sweep, seed)
    return Measurement(
        name="gmm",
        variant=f"{covariance} covariances, {kept} PCA dimensions, lowest BIC",
        value=float(ks[best]),
        interval=_component_interval(counts),
        direction="lower",
        unit="components",
        n=latents.n,
        parameters={
            "components": list(ks),
            "covariance": covariance,
            "dims": kept,
            "explained": explained,
            "most_dims": most_dims,
            "limit": limit,
            "heldout": heldout,
            "threshold": threshold,
            "n_init": n_init,
            "tol": tol,
            "max_iter": max_iter,
            "seed": seed,
        },
        companions=_companions(sweep, best, seed) | _at_threshold(sweep, threshold, seed),
        warnings=(
            *(_left_out(ks) if components is None else []),
            *_pca_warnings(axes, explained, dims),
            *_overfitted_axes(sweep, best, rows),
            *_warnings(sweep, best, kept, threshold),
        ),
        details={**_details(sweep), "dims": kept, "explained": axes.explained},
        replicates=counts.astype(np.float64),
    )


def _check_components(asked: Sequence[int], n: int) -> None:
    """Raise `UserError` unless ``asked`` are numbers of components that ``n`` training images can be fitted with."""
    if not asked or any(k != int(k) or k < 1 for k in asked):
        raise UserError(f"components must be positive integers, at least one, got {list(asked)}")
    if max(asked) > n:
        raise UserError(
            f"components asks for {max(asked)} components, but only {n} images are left for training: give more images or "
            "ask for fewer"
        )


def _default_components(n: int, dims: int, covariance: Covariance) -> tuple[int, ...]:
    """Return the K of the default sweep for ``n`` training images in ``dims`` dimensions, ascending."""
    return tuple(
        k for k in COMPONENTS if k == 1 or n * dims >= NUMBERS_PER_PARAMETER * count_parameters(k, dims, covariance)
    )


def _split(n: int, heldout: float, seed: int) -> np.ndarray:
    """Return which images are for training, bool [n]; a function of (n, heldout, seed)."""
    held = round(n * heldout)
    if not 0 < heldout < 1:
        raise UserError(f"heldout must lie between 0 and 1, got {heldout}")
    if not 1 <= held <= n - 2:
        raise UserError(
            f"heldout={heldout} of {n} images leaves {held} to test and {n - held} to fit: give more images"
        )
    training = np.ones(n, dtype=bool)
    training[np.random.default_rng([seed, 1]).permutation(n)[:held]] = False
    return training


def _project(rows: Points, axes: Pca) -> Points:
    return in_memory(MappedPoints(rows, axes.standardise, len(axes.variances)), CACHE_BYTES)


def _sweep(train: Points, held: Points, ks: tuple[int, ...], fit: Callable[..., Fit]) -> _Sweep:
    fits: list[Fit] = []
    for k in ks:
        # A single component of standardised data is a sphere: it has no widest axis to split.
        warm = fits[-1].mixture if fits and len(fits[-1].mixture.weights) > 1 else None
        try:
            fits.append(fit(train, k, warm=warm))
        except DegenerateMixtureError as error:
            raise UserError(f"{k} components cannot be fitted: {error}") from error
    return _Sweep(ks, fits, _scores(train, fits), _scores(held, fits))


def _scores(points: Points, fits: Sequence[Fit]) -> np.ndarray:
    scores: list[Tensor] = [score_samples(points, fit.mixture) for fit in fits]
    return torch.stack(scores, dim=1).numpy()


def _resampled_counts(sweep: _Sweep, seed: int) -> np.ndarray:
    """Return bootstrap replicates of the mode count: argmin BIC of resampled training log-likelihoods, [r]."""
    n = len(sweep.train)
    penalty = np.array([bic(0.0, p, n) for p in sweep.n_parameters])
    criteria = penalty - 2 * n * bootstrap_means(sweep.train, seed)
    return np.array(sweep.components)[criteria.argmin(1)]


def _component_interval(counts: np.ndarray) -> Interval:
    """Return the 2.5 and 97.5 percentiles of numbers of components [r], each a number that was tried."""
    low, high = np.percentile(counts, (2.5, 97.5), method="inverted_cdf")
    return float(low), float(high)


def _companions(sweep: _Sweep, best: int, seed: int) -> dict[str, Estimate]:
    ks, heldout, train = sweep.components, -sweep.heldout, -sweep.train[:, best]
    found = {
        f"held-out NLL@{ks[i]}": Estimate(float(heldout[:, i].mean()), mean_interval(heldout[:, i], seed))
        for i in sorted({0, best, len(ks) - 1})
    }
    found[f"train NLL@{ks[best]}"] = Estimate(float(train.mean()), mean_interval(train, seed))
    counts = np.array(ks)[bootstrap_means(heldout, seed).argmin(1)]
    found["K at lowest held-out NLL"] = Estimate(float(ks[heldout.mean(0).argmin()]), _component_interval(counts))
    return found


def _at_threshold(sweep: _Sweep, threshold: float | None, seed: int) -> dict[str, Estimate]:
    """Return the smallest K whose held-out NLL is at most ``threshold``; nothing where none is."""
    ks, heldout = np.array(sweep.components), -sweep.heldout
    if threshold is None or heldout.mean(0).min() > threshold:
        return {}
    reached = bootstrap_means(heldout, seed) <= threshold
    interval = _component_interval(ks[reached.argmax(1)]) if reached.any(1).all() else None
    return {"K at threshold": Estimate(float(ks[(heldout.mean(0) <= threshold).argmax()]), interval)}


def _details(sweep: _Sweep) -> dict[str, Any]:
    return {
        "components": list(sweep.components),
        "train_nll": (-sweep.train.mean(0)).tolist(),
        "heldout_nll": (-sweep.heldout.mean(0)).tolist(),
        "bic": sweep.bic,
        "converged": [fit.converged for fit in sweep.fits],
        "iterations": [len(fit.log_likelihoods) for fit in sweep.fits],
        "n_parameters": sweep.n_parameters,
        "n_train": len(sweep.train),
        "n_heldout": len(sweep.heldout),
    }


def _overfitted_axes(sweep: _Sweep, best: int, rows: Points) -> list[str]:
    """Return a warning where the principal components follow the training images more than the latent space.

    Along such axes training images vary more than others do: these lie nearer to the middle, and score better.
    """
    train, held = (-scores[:, best].mean() for scores in (sweep.train, sweep.heldout))
    if rows.n >= rows.d or held >= train:
        return []
    return [
        f"held-out NLL {held:.4g} is below the training NLL {train:.4g}: the principal components of {rows.n} images of {rows.d} "
        "dims follow these images, so likelihoods and counts say little about the latent space. Use more images"
    ]


def _warnings(sweep: _Sweep, best: int, dims: int, threshold: float | None) -> list[str]:
    """Return what to know about these fits."""
    ks, n, found = sweep.components, len(sweep.train), []
    if stopped := [k for k, fit in zip(ks, sweep.fits, strict=True) if not fit.converged]:
        found.append(f"EM did not converge for {_counted(stopped)}: raise max_iter or tol")
    if scarce := [k for k, p in zip(ks, sweep.n_parameters, strict=True) if n * dims < NUMBERS_PER_PARAMETER * p]:
        found.append(
            f"fewer than {NUMBERS_PER_PARAMETER} training numbers per parameter for {_counted(scarce)} ({n} images x {dims} "
            "dims), which therefore follow the sample: use more images, fewer dims or covariance='diag'"
        )
    if best == len(ks) - 1 and best > 0:
        found.append(
            f"BIC is lowest at the most components tried ({ks[best]}): the count may be larger, extend components"
        )
    lowest = -sweep.heldout.mean(0).max()
    if threshold is not None and lowest > threshold:
        found.append(
            f"no number of components reaches the threshold {threshold:g}: the lowest held-out NLL is {lowest:.4g}"
        )
    return found


def _left_out(ks: tuple[int, ...]) -> list[str]:
    left_out = [k for k in COMPONENTS if k not in ks]
    if not left_out:
        return []
    return [
        f"{_counted(left_out)} were not tried, as they would have fewer than {NUMBERS_PER_PARAMETER} training numbers "
        "(images x dims) per parameter: use more images, fewer dims or covariance='diag', or name components"
    ]


def _pca_warnings(axes: Pca, explained: float, dims: int | None) -> list[str]:
    if dims is None and axes.explained <= explained:
        return [
            f"{len(axes.variances)} PCA dimensions explain only {axes.explained:.1%} of the variance, {explained:.0%} were "
            "asked for: the search stops there"
        ]
    return []


def _counted(ks: Sequence[int]) -> str:
    """Return ``1 component`` or ``1, 2 components``."""
    return f"{', '.join(map(str, ks))} component{'' if list(ks) == [1] else 's'}"
