"""VIV, velocity irreducible variance: how much of the flow-matching velocity no model can predict.

Definition: Zhong et al., "Diffusing in the Right Space" (DRS, arXiv 2606.03578), eq. 3-6. The latents of a class are taken as
Gaussian with a Kronecker-factored covariance, of eigenvalues l_i, i = 1..d; then

    VIV = mean over classes of  int_0^1 I_k(t) dt = (pi/2) sum_i sqrt(l_i)

The paper sums over the d dimensions; published ports of its code take their mean, which fits the axes of the paper's figures,
and standardise the channels first. Both are the defaults here, and options.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np

from analyses.class_latents import images_by_class
from analyses.class_variance import ClassVariance, class_variances, reported_ranks
from analyses.intervals import bootstrap_means, percentile_band, percentile_interval, rough_interval
from analyses.irreducible import velocity_variance
from analyses.marginal import sampled_variance
from latentlab.errors import UserError, unknown_name
from latentlab.latents import Latents
from latentlab.measurement import Estimate, Measurement, MetricCard
from latentlab.registry import measurement

__all__ = ["velocity_variance", "viv"]

NOTABLE_BIAS = 0.01
"""A downward bias of white latents above this share is worth a warning."""

_SAMPLED_NUMBERS = 1_000_000
"""Default size of the Monte Carlo sample of the marginal: pairs times dimensions."""

_NODES = 32

_CHOICES = {
    "reduce": ("mean", "sum"),
    "covariance": ("kronecker", "full"),
    "condition": ("class", "marginal"),
    "estimator": ("rao-blackwell", "direct"),
}


@dataclass(frozen=True)
class _Settings:
    """The arguments of `viv`, checked."""

    reduce: Literal["mean", "sum"]
    normalize: bool
    covariance: Literal["kronecker", "full"]
    condition: Literal["class", "marginal"]
    shrinkage: float | None
    iterations: int
    times: int | tuple[float, ...]
    estimator: Literal["rao-blackwell", "direct"]
    samples: int | None
    eigenvalues: bool
    seed: int

    def __post_init__(self) -> None:
        for name, known in _CHOICES.items():
            if getattr(self, name) not in known:
                raise unknown_name(name, str(getattr(self, name)), known)
        if self.shrinkage is not None and not 0 < self.shrinkage <= 1:
            raise UserError(f"shrinkage must lie in (0, 1] or be None, got {self.shrinkage}")
        for name, least in (("iterations", 1), ("times", 2), ("samples", 2)):
            value = getattr(self, name)
            if isinstance(value, int) and value < least:
                raise UserError(f"{name} must be at least {least}, got {value}")
        if isinstance(self.times, tuple) and not (self.times and all(0 <= t <= 1 for t in self.times)):
            raise UserError(f"times must lie in [0, 1], 0 for noise and 1 for data, got {list(self.times)}")


@dataclass(frozen=True)
class _Result:
    """Headline and curve, summed over dimensions; replicates of the headline over ``units`` classes or Monte Carlo pairs."""

    value: float
    replicates: np.ndarray | None
    units: int
    curve: np.ndarray
    low: np.ndarray
    high: np.ndarray
    warnings: list[str] = field(default_factory=list)
    companions: dict[str, float] = field(default_factory=dict)


@measurement(
    MetricCard(
        name="viv",
        title="Velocity irreducible variance",
        summary="the part of the flow-matching velocity that no model can predict, given the class",
        formula="mean_k (1/d) int_0^1 sum_i l_ki / ((1-t)^2 + t^2 l_ki) dt = mean_k (pi/2) mean_i sqrt(l_ki),  l_k = "
        "eigenvalues of the covariance of class k",
        unit="variance per dimension",
        range="0 to about pi/2 = 1.571 for normalised latents (white noise); unbounded for raw ones",
        better="lower",
        source="Zhong et al., Diffusing in the Right Space, arXiv 2606.03578, eq. 3-6; mean over dimensions and per-channel "
        "normalisation follow ports of its code, the paper sums; the marginal estimator is our choice, and so is the interval: "
        "bootstrap percentiles over classes, widened to Student's t below 30 of them, as those of other means of few are",
        uses="labels, for everything but one Gaussian of all images (condition='marginal' without them)",
        confounds="images per class (few bias it down), number of classes, and latent scale when not normalised",
        variants={
            "reduce='sum'": "eq. 5 as printed: the sum over dimensions",
            "normalize=False": "raw latents; then VIV(c z) = |c| VIV(z)",
            "condition='marginal'": "velocity of the mixture of all classes, by Rao-Blackwell Monte Carlo; its interval is that "
            "of the Monte Carlo error alone, so differences cannot be tested",
            "estimator='direct'": "of the marginal: the mean squared error of the best velocity itself; varies more",
            "covariance='full'": "no Kronecker structure; needs more images per class than dimensions",
            "times=(0, 0.5, 1)": "the curve I(t) at these flow times",
            "eigenvalues=True": "all eigenvalues of every class in the details",
            "shrinkage=0.1": "the only way to measure classes with too few images",
        },
        invariances="batch size, order of the images, class means, permutations of channels or of cells, per-channel shift "
        "and scale when normalised",
        bias="too low for few images per class: white latents of 32 x 16 x 16 measure 1.523 at 50 and 1.364 at 13 per class "
        "instead of 1.571",
        known_values={
            "all eigenvalues 0.49": "0.7 pi/2 = 1.0995574288",
            "I(0), I(1)": "trace and rank of the covariance",
            "1-D mixture pi=(0.3,0.7), mu=(-1.5,0.8), l=(0.2,0.5), marginal": "1.87059647",
            "published": "Pearson |r| = 0.87 with gFID over 43 tokenizers (SiT-B)",
        },
        test="tests/analyses/test_irreducible.py::test_mean_form_of_equal_eigenvalues",
    )
)
def viv(
    latents: Latents,
    *,
    reduce: Literal["mean", "sum"] = "mean",
    normalize: bool = True,
    covariance: Literal["kronecker", "full"] = "kronecker",
    condition: Literal["class", "marginal"] = "class",
    shrinkage: float | None = None,
    iterations: int = 5,
    times: int | Sequence[float] = 32,
    estimator: Literal["rao-blackwell", "direct"] = "rao-blackwell",
    samples: int | None = None,
    eigenvalues: bool = False,
    seed: int = 0,
) -> Measurement:
    """Measure the irreducible variance of the velocity x1 - x0 between noise x0 and latents x1, over flow time 0 to 1.

    Args:
        latents: with labels; without them only ``condition="marginal"`` is possible, as a single Gaussian.
        reduce: ``mean`` over the d dimensions of a latent, or their ``sum`` (eq. 5 as printed).
        normalize: standardise each channel over the whole set first.
        covariance: ``kronecker`` (eq. 3), or ``full``: no structure, needs more images per class than dimensions.
        condition: ``class``: given the class, unweighted mean over classes. ``marginal``: of the mixture of the classes'
            Gaussians, weighted by their sizes; not knowing the class adds to it.
        shrinkage: in (0, 1]: replace this share of every factor by a multiple of the identity with the same trace, in
            float64: the only way to measure classes with too few images. None for none.
        iterations: flip-flop iterations of the Kronecker factors.
        times: flow times of the curve in [0, 1], or their number: then even from 0 to 1; for the marginal, nodes of a Gauss
            rule, on which its integral always rests.
        estimator: of the marginal: ``rao-blackwell``, or ``direct``, the mean squared error of the best velocity.
        samples: Monte Carlo pairs (x0, x1) of the marginal. None: a million numbers' worth, 64 to 100,000 pairs: in many
            dimensions few pairs are as exact.
        eigenvalues: report all d eigenvalues of every class in ``details``, as ``class_eigenvalues`` {label: [d]}.
        seed: of the bootstrap and of the pairs.

    Returns:
        Variance of the velocity, averaged over flow time. Interval: bootstrap over classes; for the marginal of a mixture
        over Monte Carlo pairs. ``details``: ``t``, ``curve``, ``curve_low``, ``curve_high`` [T]; ``eigenvalues`` of the mean
        class spectrum at ``ranks`` (at most 512 of 1..d); ``per_class`` and ``n_per_class`` {label: number}.

    Raises:
        UserError: an unknown option or one out of range, no labels, no class with 2 images, too few images for a covariance
            of full rank without shrinkage, or non-finite latents.
    """
    settings = _Settings(
        reduce,
        normalize,
        covariance,
        condition,
        shrinkage,
        iterations,
        times if isinstance(times, int) else tuple(float(t) for t in times),
        estimator,
        samples,
        eigenvalues,
        seed,
    )
    classes, skipped = _classes(latents, settings)
    t = _flow_times(settings)
    fitted = class_variances(
        latents,
        classes,
        t,
        normalize=normalize,
        covariance=covariance,
        shrinkage=shrinkage,
        iterations=iterations,
        gaussians=condition == "marginal",
        every_rank=eigenvalues,
    )
    variances = list(fitted.values())
    result = _given_class(variances, seed) if condition == "class" else _marginal(variances, t, settings)
    scale = 1 / (latents.channels * latents.cells) if reduce == "mean" else 1.0
    resampled = None if result.replicates is None else result.replicates * scale
    return Measurement(
        name="viv",
        variant=_variant(settings, len(classes)),
        value=result.value * scale,
        interval=None if resampled is None else percentile_interval(resampled, result.units),
        direction="lower",
        unit="variance per dimension" if reduce == "mean" else "variance",
        n=sum(f.n for f in variances),
        parameters=asdict(settings),
        companions={name: Estimate(value * scale) for name, value in result.companions.items()},
        warnings=(*result.warnings, *_cautions(latents, settings, variances, skipped)),
        details={
            "t": t,
            "curve": result.curve * scale,
            "curve_low": result.low * scale,
            "curve_high": result.high * scale,
            **_class_details(latents, fitted, scale, eigenvalues),
        },
        # Monte Carlo pairs say nothing of how the value would differ on other images: no replicates to compare spaces with.
        replicates=resampled if condition == "class" else None,
        units=len(variances) if condition == "class" else None,
    )


def _class_details(
    latents: Latents, fitted: dict[int, ClassVariance], scale: float, every_rank: bool
) -> dict[str, Any]:
    d = latents.channels * latents.cells
    return {
        "eigenvalues": np.mean([f.spectrum for f in fitted.values()], axis=0),
        "ranks": np.arange(1, d + 1) if every_rank else reported_ranks(d),
        **({"class_eigenvalues": {label: f.spectrum for label, f in fitted.items()}} if every_rank else {}),
        "per_class": {label: f.integral * scale for label, f in fitted.items()},
        "n_per_class": {label: f.n for label, f in fitted.items()},
    }


def _classes(latents: Latents, settings: _Settings) -> tuple[dict[int, np.ndarray], int]:
    """Return label -> images of the classes with at least 2, and how many classes have fewer."""
    if latents.labels is None:
        if settings.condition == "class":
            raise UserError(
                "viv given the class needs labels, and these latents have none: give labels, or set condition='marginal'"
            )
        return {0: np.arange(latents.n)}, 0
    every = images_by_class(latents.labels)
    classes = {label: images for label, images in every.items() if len(images) >= 2}
    if not classes:
        raise UserError(f"viv needs a class with at least 2 images: all {len(every)} classes have one")
    return classes, len(every) - len(classes)


def _flow_times(settings: _Settings) -> np.ndarray:
    """Return the flow times of the curve, [T]."""
    if not isinstance(settings.times, int):
        return np.array(settings.times)
    return np.linspace(0, 1, settings.times) if settings.condition == "class" else _gauss_rule(settings.times)[0]


def _gauss_rule(nodes: int) -> tuple[np.ndarray, np.ndarray]:
    """Return flow times and weights of an integral over them.

    What not knowing the class adds is concentrated near t = 0, so this is Gauss-Legendre over sqrt(t).
    """
    points, weights = np.polynomial.legendre.leggauss(nodes)
    root = (points + 1) / 2
    return root**2, weights * root  # dt = 2 root d(root), d(root) = d(point) / 2


def _samples(settings: _Settings, d: int) -> int:
    """Return the number of Monte Carlo pairs."""
    return settings.samples or int(np.clip(_SAMPLED_NUMBERS // d, 64, 100_000))


def _given_class(variances: Sequence[ClassVariance], seed: int) -> _Result:
    """Return the unweighted mean over classes."""
    integrals, curves = (np.array([getattr(f, name) for f in variances]) for name in ("integral", "curve"))
    value, curve = float(integrals.mean()), curves.mean(0)
    n = len(variances)
    if n == 1:
        return _Result(
            value, None, n, curve, curve, curve, ["one class only: an interval over classes is not possible"]
        )
    low, high = percentile_band(bootstrap_means(curves, seed), n)
    return _Result(value, bootstrap_means(integrals, seed), n, curve, low, high, rough_interval(n, "classes"))


def _marginal(variances: Sequence[ClassVariance], t: np.ndarray, settings: _Settings) -> _Result:
    """Return the variance of the mixture; the part of it that is known given the class is integrated in closed form."""
    share = np.array([f.n for f in variances]) / sum(f.n for f in variances)
    known = float(share @ [f.integral for f in variances])
    if len(variances) == 1:
        curve = variances[0].curve
        warnings = ["a single Gaussian has a closed form: there is no Monte Carlo error to give an interval for"]
        return _Result(known, None, 1, curve, curve, curve, warnings)
    mixture = [f.gaussian for f in variances if f.gaussian is not None]
    samples, direct = _samples(settings, mixture[0].eigenvalues.numel()), settings.estimator == "direct"
    nodes, weights = _gauss_rule(settings.times if isinstance(settings.times, int) else _NODES)
    sampled = sampled_variance(mixture, nodes, samples, settings.seed, direct=direct)
    if direct:
        integrals = sampled @ weights
    else:
        given_class = sum(k.weight * velocity_variance(k.eigenvalues.flatten(), nodes) for k in mixture)
        integrals = known + (sampled - given_class) @ weights
    curves = sampled
    if not np.array_equal(nodes, t):  # at t = 1 a direction without variance has no density
        curves = sampled_variance(mixture, t.clip(max=1 - 1e-9), samples, settings.seed, direct=direct)
    low, high = percentile_band(bootstrap_means(curves, settings.seed), samples)
    return _Result(
        float(integrals.mean()),
        bootstrap_means(integrals, settings.seed),
        samples,
        curves.mean(0),
        low,
        high,
        ["the interval covers the Monte Carlo error, not which images were measured"],
        {"given the class, weighted by class size": known},
    )


def _variant(settings: _Settings, classes: int) -> str:
    """Return the definition used, in words."""
    what = "class-conditional"
    if settings.condition == "marginal":
        what = (
            f"marginal over {classes} classes ({settings.estimator})" if classes > 1 else "one Gaussian for all images"
        )
    parts = [
        what,
        f"{settings.reduce} over dimensions",
        f"{'Kronecker' if settings.covariance == 'kronecker' else 'full'} covariance",
        "per-channel normalised" if settings.normalize else "raw",
    ]
    return ", ".join(parts + ([f"shrinkage {settings.shrinkage}"] if settings.shrinkage else []))


def _cautions(latents: Latents, settings: _Settings, variances: Sequence[ClassVariance], skipped: int) -> list[str]:
    """Return what limits this very result."""
    said = []
    if skipped:
        said.append(f"{skipped} of {skipped + len(variances)} classes have fewer than 2 images and were left out")
    if constant := int((latents.moments.std == 0).sum()):
        said.append(
            f"{constant} of {latents.channels} channels are constant: they lower viv without telling a model anything"
        )
    if collapsed := sum(f.integral == 0 for f in variances):
        said.append(
            f"the latents of {collapsed} of {len(variances)} classes do not vary: a collapse, which viv counts as easy"
        )
    sizes = np.array([f.n for f in variances])
    if settings.shrinkage is not None:
        said.append("shrinkage flattens the spectrum: compare only values with the same shrinkage and class sizes")
    elif (bias := float(_white_bias(latents, settings.covariance, sizes).mean())) > NOTABLE_BIAS:
        said.append(
            f"with {_range(sizes)} images per class white latents would measure {bias:.1%} too low: compare only values at "
            "the same number"
        )
    return said


def _white_bias(latents: Latents, covariance: str, sizes: np.ndarray) -> np.ndarray:
    """Return by which share white latents would come out low, to first order, per class.

    The mean root of the eigenvalues of a sample covariance of m vectors of side k falls short by k / (8 m)
    (Marchenko-Pastur); the variance itself, with ddof=0, by 1/n.
    """
    c, s, m = latents.channels, latents.cells, sizes - 1
    short = c * s / (8 * m) if covariance == "full" else s / (8 * m * c) + c / (8 * m * s)
    return 1 - np.maximum(1 - short, 0) * np.sqrt(m / sizes)


def _range(sizes: np.ndarray) -> str:
    return str(sizes[0]) if (sizes == sizes[0]).all() else f"{sizes.min()} to {sizes.max()}"
