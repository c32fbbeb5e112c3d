"""The quality of generated images, as one call: which extractors describe them, and which values follow.

Features are computed extractor by extractor, by all processes; rank 0 measures. An extractor or metric that cannot be had
(weights that are not on this machine, a reference without images) is refused with the reason, and the others are made.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from analyses.intervals import mean_interval
from latentlab.errors import UserError, unknown_name
from latentlab.measurement import Estimate, Measurement
from latentlab.quality import inception, judged
from latentlab.quality.clip_score import DEFAULT_MODEL, ClipModel, clip_scores
from latentlab.quality.features import FeatureExtractor, check_extractor, feature_extractor, features_of
from latentlab.quality.generation import size_cautions
from latentlab.quality.image_sets import EvaluationSet
from latentlab.quality.judged import Judged, QualitySettings
from latentlab.quality.provenance import provenance
from latentlab.quality.quality_results import QualityResults
from latentlab.ranks import Ranks

METRICS = {
    "fd": "Frechet distance: FID on Inception's features, FD on others",
    "kid": "kernel distance",
    "pr": "precision and recall",
    "dc": "density and coverage",
    "is": "Inception score",
    "sfid": "Frechet distance on spatial features of Inception",
    "fdr": "mean over extractors of the Frechet distance, relative to that of a validation set (FDr-k)",
    "clip": "CLIP score of images and texts",
}
_ROUNDING = 1e-6
"""Share of another distance below which one is 0 but for rounding."""

_BY_EXTRACTOR = ("fd", "kid", "pr", "dc", "fdr")
_OF_INCEPTION = {"is": "inception", "sfid": "inception-spatial"}


@dataclass(frozen=True)
class Evaluation:
    """What is to be evaluated, and how.

    Attributes:
        samples: generated images.
        reference: what they are compared with.
        metrics: names of `METRICS`; None for those that can be had: fd, kid, pr and dc, is and sfid where Inception's weights
            are, fdr with a validation set and clip with texts.
        extractors: names for `feature_extractor`, or functions of images.
        validation: further real images, for fdr.
        texts: one per generated image, for clip.
        clip_model: hub id or folder of the model of the CLIP score.
        settings: of the metrics.
        seed: of bootstraps.
        device: where features are computed.
        batch_size: images decoded at a time; changes nothing but the memory.
    """

    samples: EvaluationSet
    reference: EvaluationSet
    metrics: Sequence[str] | None = None
    extractors: Sequence[Any] = ("auto",)
    validation: EvaluationSet | None = None
    texts: Sequence[str] | None = None
    clip_model: str | None = None
    settings: QualitySettings = field(default_factory=QualitySettings)
    seed: int = 0
    device: str = "cpu"
    batch_size: int | None = None

    def chosen_metrics(self) -> tuple[str, ...]:
        """Return the names of the metrics.

        Raises:
            UserError: unknown, none, or without what it needs.
        """
        if self.metrics is None:
            there = {
                "is": inception.is_available(), "sfid": inception.is_available(),
                "fdr": self.validation is not None, "clip": self.texts is not None,
            }  # fmt: skip
            return tuple(name for name in METRICS if there.get(name, True))
        for name in self.metrics:
            if name not in METRICS:
                raise unknown_name("metric", name, METRICS)
        if not self.metrics:
            raise UserError(f"no metric is named. Available: {', '.join(METRICS)}")
        if "fdr" in self.metrics and self.validation is None:
            raise UserError("fdr is relative to real images that are not in the reference: give a validation set")
        if "clip" in self.metrics and self.texts is None:
            raise UserError("the CLIP score needs the text of every image")
        return tuple(dict.fromkeys(self.metrics))

    def plan(self) -> dict[Any, tuple[str, ...]]:
        """Return, by extractor, the metrics that are made of its features.

        Raises:
            UserError: unknown names, or a metric without what it needs.
        """
        names = self.chosen_metrics()
        wanted: dict[Any, list[str]] = {}
        if any(name in _BY_EXTRACTOR for name in names):
            for extractor in dict.fromkeys(self.extractors):
                check_extractor(extractor)
                wanted[_resolved(extractor)] = [name for name in names if name in _BY_EXTRACTOR]
        for name, extractor in _OF_INCEPTION.items():
            if name in names and not (name == "sfid" and "fd" in wanted.get(extractor, ())):  # which is sFID there
                wanted.setdefault(extractor, []).append(name)
        return {extractor: tuple(metrics) for extractor, metrics in wanted.items()}


def evaluate(evaluation: Evaluation, ranks: Ranks = Ranks(), command: str | None = None) -> QualityResults:
    """Measure what is asked for; every process must call this, and rank 0 returns the values.

    Args:
        evaluation: what, and how.
        ranks: processes that share the computation of features.
        command: the command line, for the record.

    Raises:
        UserError: an unknown metric or extractor, a metric without what it needs, or images that cannot be read.
    """
    plan = evaluation.plan()
    _check_texts(evaluation)
    outcome = _Outcome()
    for extractor, metrics in plan.items():
        try:
            judge = feature_extractor(extractor, evaluation.device)
        except UserError as error:
            outcome.refuse(metrics, extractor, str(error))
            continue
        view = _view(evaluation, judge, metrics, ranks)
        if ranks.first:
            outcome.measure(view, metrics, evaluation)
    if "fdr" in evaluation.chosen_metrics() and ranks.first:
        outcome.attempt("fdr", "", lambda: [_relative_distance(outcome.ratios, evaluation)])
    if "clip" in evaluation.chosen_metrics():
        _clip(evaluation, outcome, ranks)
    return QualityResults(
        samples={**evaluation.samples.facts, "sampling": dict(evaluation.samples.sampling) or None},
        reference=evaluation.reference.facts,
        validation=None if evaluation.validation is None else evaluation.validation.facts,
        measurements=tuple(outcome.measurements),
        refused=outcome.refused,
        settings=evaluation.settings.model_dump(),
        seed=evaluation.seed,
        device=evaluation.device,
        command=command,
    )


def _resolved(extractor: Any) -> Any:
    if extractor == "auto":
        return "inception" if inception.is_available() else "efficientnet-lite0"
    return extractor


def _check_texts(evaluation: Evaluation) -> None:
    if evaluation.texts is not None and len(evaluation.texts) != evaluation.samples.n:
        raise UserError(f"{evaluation.samples.n} images need as many texts, got {len(evaluation.texts)}")


def _view(evaluation: Evaluation, judge: FeatureExtractor, metrics: tuple[str, ...], ranks: Ranks) -> Judged:
    """Return the features that the metrics need; on other ranks than the first they are empty."""

    def described(images: EvaluationSet) -> np.ndarray:
        return features_of(judge, images.images, quantize=True, batch=evaluation.batch_size, ranks=ranks)

    published = evaluation.reference.moments.get(judge.name)
    pairs = {"kid", "pr", "dc"} & set(metrics)
    wants_real = pairs or ({"fd", "fdr", "sfid"} & set(metrics) and published is None)
    return Judged(
        judge,
        described(evaluation.samples),
        described(evaluation.reference) if wants_real and evaluation.reference.pixels is not None else None,
        published,
        described(evaluation.validation) if "fdr" in metrics and evaluation.validation is not None else None,
        evaluation.seed,
    )


@dataclass
class _Outcome:
    """What became of the metrics.

    Attributes:
        measurements: the finished ones.
        refused: metric and extractor -> why it could not be made.
        ratios: extractor -> distances of the generated and of the validation images.
    """

    measurements: list[Measurement] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)
    ratios: dict[str, tuple[float, float]] = field(default_factory=dict)

    def refuse(self, metrics: Sequence[str], extractor: Any, reason: str) -> None:
        """Note that metrics cannot be made on an extractor."""
        for metric in metrics:
            self.refused[f"{metric} on {extractor}" if extractor else metric] = reason

    def attempt(self, metric: str, extractor: Any, make: Callable[[], list[Measurement]]) -> None:
        """Make a metric, or note why not."""
        try:
            self.measurements += make()
        except UserError as error:
            self.refuse([metric], extractor, str(error))

    def measure(self, view: Judged, metrics: tuple[str, ...], evaluation: Evaluation) -> None:
        """Make the metrics of one extractor's features."""
        before = len(self.measurements)
        name, settings = view.judge.name, evaluation.settings
        makers: dict[str, Callable[[], list[Measurement]]] = {
            "fd": lambda: judged.distance(view),
            "sfid": lambda: judged.distance(view),
            "kid": lambda: judged.kernel(view, settings),
            "is": lambda: judged.sureness(view, settings),
            "fdr": lambda: self._note_ratio(view),
        }
        for metric, make in makers.items():
            if metric in metrics:
                self.attempt(metric, name, make)
        if pairs := tuple(metric for metric in metrics if metric in ("pr", "dc")):  # one pass over all pairs of images
            self.attempt(",".join(pairs), name, lambda: judged.manifolds(view, settings, pairs))
        self.measurements[before:] = [
            _documented(measurement, evaluation, view) for measurement in self.measurements[before:]
        ]

    def _note_ratio(self, view: Judged) -> list[Measurement]:
        assert view.validation is not None
        self.ratios[view.judge.name] = view.distance.value, view.distance_to(view.validation).value
        return []


def _documented(measurement: Measurement, evaluation: Evaluation, view: Judged) -> Measurement:
    """Return a measurement with its provenance, and what limits a comparison of these images."""
    facts = provenance(evaluation, view.judge)
    reference = evaluation.reference.pixels
    if measurement.name == view.judge.distance and view.published is not None:
        facts |= {
            "n_reference": None,
            "reference_form": "statistics",
        }  # of a number of images that the file does not tell
    elif reference is not None and measurement.name != "inception_score":
        cautions = size_cautions(evaluation.samples.images, reference)
        measurement = replace(measurement, warnings=(*measurement.warnings, *cautions))
    of_sets = (*evaluation.samples.cautions, *evaluation.reference.cautions)
    return replace(measurement, warnings=(*measurement.warnings, *of_sets)).with_provenance(**facts)


def _relative_distance(ratios: Mapping[str, tuple[float, float]], evaluation: Evaluation) -> Measurement:
    """Return FDr-k (Yang et al. 2026, arXiv 2604.28190): 1 for images as far from the reference as the validation set is.

    Raises:
        UserError: no extractor could be used, or a validation set that is the reference.
    """
    assert evaluation.validation is not None
    if not ratios:
        raise UserError("no extractor gave a distance for the validation set: see the reasons above")
    if _is_reference(evaluation) or any(real <= _ROUNDING * made for made, real in ratios.values()):
        raise UserError("the validation set has distance 0 from the reference: give real images that are not in it")
    values = {name: made / real for name, (made, real) in ratios.items()}
    n, v = evaluation.samples.n or 0, evaluation.validation.n or 0
    caution = f"{n} generated and {v} validation images: distances fall with the number of images, give equally many"
    return Measurement(
        name=f"fdr_{len(values)}",
        variant="mean over " + ", ".join(values),
        value=float(np.mean([*values.values()])),
        interval=None,
        direction="lower",
        unit="distances of the validation set",
        n=n,
        companions={f"on {name}": Estimate(value) for name, value in values.items()},
        warnings=() if n == v else (caution,),
        details={f"distances on {name}": list(pair) for name, pair in ratios.items()},
    ).with_provenance(**provenance(evaluation, None), validation=evaluation.validation.name, n_validation=v)


def _is_reference(evaluation: Evaluation) -> bool:
    """Whether the validation set has the images of the reference."""
    validation, reference = evaluation.validation, evaluation.reference.pixels
    return validation is not None and reference is not None and validation.images.fingerprint == reference.fingerprint


def _clip(evaluation: Evaluation, outcome: _Outcome, ranks: Ranks) -> None:
    """Make the CLIP score, with features of its own model."""
    assert evaluation.texts is not None
    try:
        model = ClipModel(evaluation.clip_model or DEFAULT_MODEL, evaluation.device)
    except UserError as error:
        outcome.refuse(["clip"], "", str(error))
        return
    images = features_of(
        model.judge, evaluation.samples.images, quantize=True, batch=evaluation.batch_size, ranks=ranks
    )
    if ranks.first:
        outcome.attempt("clip", "", lambda: [_clip_score(evaluation, model, images)])


def _clip_score(evaluation: Evaluation, model: ClipModel, images: np.ndarray) -> Measurement:
    assert evaluation.texts is not None
    values = clip_scores(images, model.embed(evaluation.texts))
    return Measurement(
        name="clip_score", variant=f"100 max(cos, 0), {model.name}", value=float(values.mean()),
        interval=mean_interval(values, evaluation.seed), direction="higher", unit="100 cosine", n=len(values),
    ).with_provenance(**provenance(evaluation, model.judge))  # fmt: skip
