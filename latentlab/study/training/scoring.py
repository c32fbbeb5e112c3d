"""One point of a study: images drawn from given weights with given settings, judged; computed once and kept."""

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.utils import WeakFileLock

from latentlab import __version__
from latentlab.errors import UserError
from latentlab.files import digest
from latentlab.finished import FinishedSteps
from latentlab.pixels import Pixels
from latentlab.quality.evaluation import Evaluation, evaluate
from latentlab.quality.features import feature_extractor
from latentlab.quality.image_sets import EvaluationSet, open_reference, open_samples
from latentlab.runtime import say
from latentlab.study.training.side_by_side import Outcome, run_side_by_side
from mind.generate import generate
from mind.kinds import open_weights
from mind.open_generator import TokenizerChoice

POINT_VERSION = 1
"""Raised when what a kept point holds changes its meaning."""


@dataclass(frozen=True)
class Judge:
    """What drawn images are compared with, and how.

    Attributes:
        reference: real images, as in ``--data``.
        limit: at most so many of them.
        extractor: features in which they are compared.
        metrics: names of `quality.evaluation.METRICS`.
    """

    reference: str
    limit: int | None = None
    extractor: str = "efficientnet-lite0"
    metrics: tuple[str, ...] = ("fd", "pr")

    @cached_property
    def key(self) -> list[Any]:
        """What its numbers depend on, as JSON values: the content of the reference, not its name."""
        facts = open_reference(self.reference, limit=self.limit).facts
        content = facts.get("sha256") or facts["fingerprint"]
        return [content, self.limit, feature_extractor(self.extractor).version, list(self.metrics)]

    def check(self) -> Pixels:
        """Return the real images, once it is sure that everything can be judged: before hours of training, not after them.

        Raises:
            UserError: a reference without images or that cannot be read, an unknown extractor, or one whose weights are not here.
        """
        feature_extractor(self.extractor)
        return open_reference(self.reference, limit=self.limit).images

    def judge(self, samples: EvaluationSet, device: str) -> dict[str, Any]:
        """Return, by the name of each measurement, its value, interval, n and warnings.

        Raises:
            UserError: images or reference that cannot be read, an unknown extractor, weights of one that are not here, or a
                metric that these images are too few for.
        """
        reference = open_reference(self.reference, like=samples, limit=self.limit)
        asked = Evaluation(samples, reference, self.metrics, (self.extractor,), device=device)
        results = evaluate(asked)
        for metric, reason in results.refused.items():  # else a point without numbers would be kept
            raise UserError(f"{metric}: {reason}")
        return {m.name: _plain(m) for m in results.measurements}


def _plain(measurement: Any) -> dict[str, Any]:
    interval = measurement.interval
    return {
        "value": measurement.value,
        "interval": None if interval is None else list(interval),
        "n": measurement.n,
        "warnings": list(measurement.warnings),
    }


@dataclass(frozen=True)
class Point:
    """Images to be drawn.

    Attributes:
        kind: of generator.
        weights: file to draw from.
        settings: of the sampler, over those the weights recommend.
        samples: number of images.
        seed: of the draws.
        tokenizer: what decodes, where the weights do not say it all.
    """

    kind: str
    weights: Path
    settings: Mapping[str, Any] = field(default_factory=dict)
    samples: int = 1000
    seed: int = 0
    tokenizer: TokenizerChoice = field(default_factory=TokenizerChoice)

    @property
    def name(self) -> tuple[Any, ...]:
        """What tells it from other points of a study."""
        return self.weights, tuple(sorted((key, str(value)) for key, value in self.settings.items())), self.seed

    def open(self, device: str) -> Any:
        """Return the generator, ready to draw.

        Raises:
            UserError: weights, tokenizer or settings that cannot be used.
        """
        return open_weights(self.kind, self.weights, settings=self.settings, tokenizer=self.tokenizer, device=device)

    def measure(self, judge: Judge, kept: Path, device: str = "cpu") -> dict[str, Any]:
        """Return ``quality``, ``sampling`` and the folder of the images, drawn below ``kept`` now or at an earlier time.

        Studies may share ``kept``: of two that want the same point at once the second waits, and finds it done.

        Raises:
            UserError: weights, settings or reference that cannot be used.
        """
        generator = self.open(device)
        # Where a batch decides its images, a device with larger batches draws others.
        batches = [generator.batch_size] if generator.batch_dependent else []
        drawn = digest([__version__, generator.facts(), self.samples, self.seed, *batches])
        key = digest([POINT_VERSION, drawn, judge.key])
        points = kept / "points"
        points.mkdir(parents=True, exist_ok=True)
        finished = FinishedSteps(points)
        with WeakFileLock(points / f".{key}.lock"):
            found = finished.get(key, key)
            if found is None:
                made = generate(generator, kept / "samples" / drawn, n=self.samples, seed=self.seed)
                quality = judge.judge(open_samples(str(made.folder)), device)
                found = {"quality": quality, "sampling": made.record, "images": f"samples/{drawn}"}
                finished.put(key, key, found)
        return dict(found)

    def cost(self, repeats: int, device: str = "cpu") -> dict[str, Any]:
        """Return what one image at a time takes, by the clock: median seconds, of them decoding, and passes through the network.

        Raises:
            UserError: weights or settings that cannot be used.
        """
        generator = self.open(device)
        label = torch.zeros(1, dtype=torch.int64)
        seconds, decoding, evaluations = [], [], 0.0
        for i in range(repeats + 1):  # the first one warms up
            with torch.inference_mode():
                began = time.perf_counter()
                latents, evaluations = generator.sample(label.to(device), label + i, self.seed)
                _wait(device)
                sampled = time.perf_counter()
                generator.decode(latents)
                _wait(device)
            ended = time.perf_counter()
            seconds.append(ended - began)
            decoding.append(ended - sampled)
        median = sorted(range(1, repeats + 1), key=seconds.__getitem__)[repeats // 2]
        return {
            "steps": generator.settings.steps,
            "evaluations_per_image": float(evaluations),
            "seconds_per_image": seconds[median],
            "decoding_seconds": decoding[median],
            "device": str(device),
        }


def measure_points(
    points: Sequence[Point], judge: Judge, kept: Path, out: Path, jobs: int, device: str
) -> list[Outcome]:
    """Return what became of every point, in order: what `Point.measure` returns, or why it failed, which is said at once.

    Args:
        points: of which equal ones are drawn once.
        judge: of all of them.
        kept: where images and numbers are kept.
        out: folder of the study, from which the paths of images lead to them.
        jobs: processes side by side.
        device: where everything is computed.
    """
    distinct = list({point.name: point for point in points}.values())
    tasks = [partial(point.measure, judge, kept, device) for point in distinct]

    def note(number: int, outcome: Outcome) -> None:
        if outcome.error:
            say(f"{distinct[number].weights}, {dict(distinct[number].settings)}, failed: {outcome.error}")

    outcomes = run_side_by_side(tasks, jobs, "points", note)
    by_name = {point.name: _seen_from(out, kept, one) for point, one in zip(distinct, outcomes, strict=True)}
    return [by_name[point.name] for point in points]


def _seen_from(out: Path, kept: Path, outcome: Outcome) -> Outcome:
    """Return the outcome of a point with the path of its images from ``out`` instead of ``kept``."""
    if outcome.value is None:
        return outcome
    images = os.path.relpath((kept / outcome.value["images"]).resolve(), out.resolve())
    return replace(outcome, value={**outcome.value, "images": images})


def _wait(device: str) -> None:
    """Wait for a GPU, whose work goes on after a call has returned."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)
