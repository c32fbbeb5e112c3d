"""One extractor's view of generated and real images, and the values that follow from it.

Every function returns measurements without provenance; `latentlab.quality.evaluation` adds what images, reference and
extractor were.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from pydantic import BaseModel, ConfigDict, PositiveInt

from analyses.frechet import Moments, frechet_distance, sample_cautions
from analyses.intervals import bootstrap_means, mean_interval, share_interval
from latentlab.errors import UserError
from latentlab.measurement import Direction, Estimate, Interval, Measurement
from latentlab.quality import inception
from latentlab.quality.features import FeatureExtractor
from latentlab.quality.generation import frechet_of_features, moments_of
from latentlab.quality.inception_score import inception_score
from latentlab.quality.kernel_distance import kernel_distance
from latentlab.quality.manifold import manifold_scores

_MANY, _MANY_IN_MANIFOLDS = 50_000, 10_000
"""Images that published values are of; those of fewer get a caution."""


class QualitySettings(BaseModel):
    """What may be set about the metrics; the defaults are those of the publications."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    pr_k: PositiveInt = 3
    """Neighbours of precision and recall."""
    dc_k: PositiveInt = 5
    """Neighbours of density and coverage."""
    kid_subsets: PositiveInt = 100
    kid_subset_size: PositiveInt = 1000
    is_splits: PositiveInt = 10
    """Parts of torch-fidelity's Inception score."""
    fidelity_seed: int = 2020
    """torch-fidelity's seed of subsets and shuffling."""


@dataclass(frozen=True)
class Judged:
    """Features of one extractor.

    Attributes:
        judge: the extractor.
        made: of the generated images, float32 [n,d].
        real: of the reference images, [m,d]; None where there are none.
        published: moments of the reference that came with it; they stand in for those of its images.
        validation: of further real images, [v,d]; None where there are none.
        seed: of bootstraps.
    """

    judge: FeatureExtractor
    made: np.ndarray
    real: np.ndarray | None = None
    published: Moments | None = None
    validation: np.ndarray | None = None
    seed: int = 0

    @property
    def real_features(self) -> np.ndarray:
        """Features of the reference images.

        Raises:
            UserError: the reference has none.
        """
        if self.real is None:
            raise UserError(
                "the reference holds statistics of Inception's features and no images: of it only fid and sfid can be made, "
                "with Inception's weights (--extractor inception says what is missing); give a reference with images"
            )
        return self.real

    @cached_property
    def distance(self) -> Estimate:
        """Frechet distance of the generated images from the reference.

        Raises:
            UserError: the reference has nothing to compare these features with.
        """
        return self.distance_to(self.made)

    def distance_to(self, features: np.ndarray) -> Estimate:
        """Return the Frechet distance of ``features`` from those of the reference.

        Raises:
            UserError: published statistics of another width.
        """
        if self.published is None:
            return frechet_of_features(features, self.real_features, self.seed)
        if len(self.published.mean) != features.shape[1]:
            raise UserError(
                f"the reference's statistics have {len(self.published.mean)} dimensions, features of {self.judge.name} "
                f"{features.shape[1]}: they are of another network"
            )
        return Estimate(frechet_distance(*moments_of(features), *self.published))


def distance(judged: Judged) -> list[Measurement]:
    """Return the Frechet distance: FID, sFID or FD, as its features are."""
    estimate = judged.distance
    if judged.published is None:
        fewest, against = min(len(judged.made), len(judged.real_features)), "the reference images"
    else:
        fewest, against = len(judged.made), "statistics that came with the reference"
    singular = sample_cautions(fewest, judged.made.shape[1], judged.judge.name)
    warnings = [*(singular or _few_images(fewest, "it falls", "that bias"))]
    if judged.published is not None:
        warnings.append("no interval: the images that the reference's statistics are of are not here")
    variant = f"Gaussians of {judged.judge.name} features, against {against}"
    return [_measured(judged, judged.judge.distance, variant, estimate, "lower", "squared feature distance", warnings)]


def kernel(judged: Judged, settings: QualitySettings) -> list[Measurement]:
    """Return the kernel distance: KID on the features of Inception, KD on others."""
    found = kernel_distance(
        judged.made, judged.real_features, subsets=settings.kid_subsets,
        subset_size=settings.kid_subset_size, seed=settings.fidelity_seed,
    )  # fmt: skip
    name = "kid" if judged.judge.distance == "fid" else f"kd_{judged.judge.plain}"
    variant = (
        f"torch-fidelity: unbiased, cubic kernel, {settings.kid_subsets} subsets of {settings.kid_subset_size}, "
        f"seed {settings.fidelity_seed}"
    )
    companions = {"standard deviation over subsets": Estimate(found.spread)}
    return [_measured(judged, name, variant, Estimate(found.value), "lower", "squared kernel distance", (), companions)]


def manifolds(judged: Judged, settings: QualitySettings, wanted: tuple[str, ...]) -> list[Measurement]:
    """Return precision and recall (``pr``), density and coverage (``dc``), or both, of one pass over all pairs.

    Intervals are over the images that are judged; the balls are held fixed.
    """
    nearest = {"pr": settings.pr_k, "dc": settings.dc_k}
    k, density_k = (
        nearest[metric] if metric in wanted else nearest[wanted[0]] for metric in nearest
    )  # of what is wanted
    scores = manifold_scores(judged.made, judged.real_features, k=k, density_k=density_k)
    n, m = len(judged.made), len(judged.real_features)
    caution = f"{n} generated and {m} real images: balls shrink as sets grow, so values of other numbers do not compare"
    cautions = () if n == m >= _MANY_IN_MANIFOLDS else (caution,)
    found = []
    for metric, name, values, unit in (
        ("pr", "precision", scores.precision, "share of generated images"),
        ("pr", "recall", scores.recall, "share of real images"),
        ("dc", "density", scores.density, "balls of real images per k"),
        ("dc", "coverage", scores.coverage, "share of real images"),
    ):
        if metric in wanted:
            whose = _published_form(judged.judge, metric, settings)
            estimate = Estimate(float(values.mean()), _interval(name, values.astype(np.float64), judged.seed))
            variant = f"k={nearest[metric]}, {whose}"
            plain = f"{name}_{judged.judge.plain}"
            found.append(_measured(judged, plain, variant, estimate, "higher", unit, cautions))
    return found


def _interval(name: str, values: np.ndarray, seed: int) -> Interval | None:
    """Return the interval of a mean over images: of shares, but for the density."""
    if name == "density" or len(values) < 2:
        return mean_interval(values, seed)
    return share_interval(bootstrap_means(values, seed), len(values))


def _published_form(judge: FeatureExtractor, metric: str, settings: QualitySettings) -> str:
    """Return whose definition a value is, features included."""
    if metric == "dc":
        return "Naeem et al. 2020"
    form = {"inception": "as the ADM suite (Inception pool3)", "vgg16": "as torch-fidelity (VGG16 fc2_relu)"}
    return form.get(judge.name, "Kynkaanniemi et al. 2019") if settings.pr_k == 3 else "Kynkaanniemi et al. 2019"


def sureness(judged: Judged, settings: QualitySettings) -> list[Measurement]:
    """Return the Inception score, of features of Inception's pool3."""
    if judged.judge.name != "inception":
        raise UserError(f"the Inception score is of Inception's class scores, not of {judged.judge.name}")
    classify = inception.classifier()
    found = inception_score(judged.made, classify, splits=settings.is_splits, seed=settings.fidelity_seed)
    variant = f"torch-fidelity: {settings.is_splits} parts, shuffled with seed {settings.fidelity_seed}"
    companions = {
        "standard deviation over parts": Estimate(found.spread),
        "as the ADM suite (parts of 5000 in order)": Estimate(found.adm),
    }
    few = _few_images(len(judged.made), "it rises", "the part of it that comes of the number")
    return [_measured(judged, "inception_score", variant, Estimate(found.value), "higher", "classes", few, companions)]


def _few_images(n: int, moves: str, bias: str) -> tuple[str, ...]:
    """Say how the number of images moves a value, where there are fewer than published values are of."""
    if n >= _MANY:
        return ()
    return (
        f"{n:,} images: {moves} as their number grows (published values are of {_MANY:,}) and no interval shows {bias}; compare "
        "values of equal numbers only",
    )


def _measured(
    judged: Judged, name: str, variant: str, estimate: Estimate, direction: Direction, unit: str,
    warnings: tuple[str, ...] | list[str] = (), companions: dict[str, Estimate] | None = None,
) -> Measurement:  # fmt: skip
    return Measurement(
        name=name, variant=variant, value=estimate.value, interval=estimate.interval, direction=direction, unit=unit,
        n=len(judged.made), warnings=tuple(warnings), companions=companions or {},
    )  # fmt: skip
