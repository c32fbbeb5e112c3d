"""The file of a predictor of generation quality: names and numbers as JSON, read without torch, and without running anything."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import ConfigDict, Field, JsonValue, PositiveFloat, model_validator

from latentlab.configuration import Strict
from latentlab.errors import UserError
from latentlab.files import read_json, read_json_as, write_json
from latentlab.study.predictor.domain import Domain

SCHEMA_VERSION = 1
"""Version of the form of the file; raised when a key changes its meaning or disappears."""

SHIPPED = Path(__file__).parents[2] / "predictors"
"""Folder of the predictors that come with the package; it need not exist."""

Scale = Literal["linear", "log"]
"""What is predicted: the target or, for distances, whose noise grows with them, its logarithm."""


@dataclass(frozen=True)
class Setting:
    """How a measurement was made.

    Attributes:
        parameters: all of them, defaults included, but for seeds and devices.
        biased: whether its value depends on the number of images.
    """

    parameters: Mapping[str, Any]
    biased: bool


class _Part(Strict):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Target(_Part):
    """What is predicted: a column of the study under one generator and guidance scale."""

    name: str
    meaning: str
    unit: str
    better: Literal["lower", "higher", "none"]
    scale: Scale
    generator: str
    guidance: float

    @property
    def title(self) -> str:
        """In words: ``gfd_fashion_classifier (sit, guidance 1.5)``."""
        return f"{self.name} ({self.generator}, guidance {self.guidance:g})"

    def scaled(self, values: np.ndarray) -> np.ndarray:
        """Return ``values`` of the target as the model sees them."""
        return np.log(values) if self.scale == "log" else values

    def unscaled(self, value: float) -> float:
        """Return the target from what the model predicts."""
        if self.scale == "linear":
            return value
        return math.exp(value) if value < math.log(np.finfo(np.float64).max) else math.inf


class DataSet(_Part):
    """The images that were measured.

    Attributes:
        name: source as a user writes it (``fashion:test``).
        n: number of them.
        fingerprint: of their content, None where it is not known.
    """

    name: str
    n: int
    fingerprint: str | None


class Measured(_Part):
    """One measurement that the predictor reads.

    Attributes:
        name: registered name.
        parameters: all of them, defaults included, but for seeds and devices.
        biased: whether its value depends on the number of images.
        mean: over the tokenizers of the study.
        deviation: their standard deviation (ddof=0).
        low: least value among them.
        high: largest value.
    """

    name: str
    parameters: dict[str, JsonValue]
    biased: bool
    mean: float
    deviation: float = Field(gt=0)
    low: float
    high: float

    @model_validator(mode="after")
    def _check_range(self) -> "Measured":
        if self.low >= self.high:
            raise ValueError("low must be below high")
        return self

    def overshoot(self, value: float) -> float:
        """Return how far ``value`` lies outside the range, in widths of it: above 0 over it, below 0 under it, else 0."""
        beyond = max(value - self.high, 0.0) + min(value - self.low, 0.0)
        return beyond / (self.high - self.low) if beyond else 0.0


class Fit(_Part):
    """A linear model: prediction = intercept + slopes . measurements, on the target's scale.

    Attributes:
        without: cluster that was left out, None for the fit to all.
    """

    without: str | None
    intercept: float
    slopes: tuple[float, ...]
    penalty: float
    degrees_of_freedom: float

    def at(self, x: np.ndarray) -> float:  # [p]
        """Return the prediction at ``x`` on the target's scale."""
        return self.intercept + float(x @ np.array(self.slopes))


class Tokenizer(_Part):
    """A tokenizer that was fitted, with the prediction by the fit without its cluster."""

    label: str
    cluster: str
    observed: float
    left_out: float


class Check(_Part):
    """A tokenizer that was not fitted, predicted all the same.

    Attributes:
        factor: its distance from the study over the limit; above 1 the predictor refuses it.
    """

    label: str
    cluster: str
    control: str
    observed: float
    predicted: float
    low: float
    high: float
    factor: float


class Score(_Part):
    """How well a way of predicting does on left-out clusters.

    Attributes:
        model: ``mean``, ``single best`` or ``ridge``.
        rmse: root mean squared error, in the unit of the target.
        r2: 1 - squared errors over squared deviations from the mean of all; 0 or less is no better than the mean.
        spearman: rank correlation of predicted and observed; None for the mean, which ranks nothing.
        note: which measurement, for ``single best``.
    """

    model: Literal["mean", "single best", "ridge"]
    rmse: float
    r2: float
    spearman: float | None
    note: str = ""


class Reach(_Part):
    """Inverse covariance of the standardised measurements, [p,p], and left-out distances of the study's tokenizers, [n]."""

    precision: tuple[tuple[float, ...], ...]
    distances: tuple[PositiveFloat, ...] = Field(min_length=1)


class Origin(_Part):
    """Where the numbers come from.

    Attributes:
        study: title of the study, or its folder.
        table_sha256: of its ``results.csv``, None where there is none.
        left_out: tokenizer or measurement -> why it is not used.
        command: that made the predictor.
    """

    study: str
    table_sha256: str | None
    left_out: dict[str, str]
    command: str | None
    created: str
    latentlab: str


class Predictor(_Part):
    """A fitted predictor; the attributes are the keys of its file."""

    schema_version: Literal[1]
    target: Target
    data: DataSet
    measurements: tuple[Measured, ...] = Field(min_length=1)
    fit: Fit
    fits: tuple[Fit, ...]
    tokenizers: tuple[Tokenizer, ...]
    level: float = Field(gt=0, lt=1)
    reach: Reach
    scores: tuple[Score, ...]
    held_out: tuple[Check, ...]
    controls: tuple[Check, ...]
    origin: Origin

    @model_validator(mode="after")
    def _check_sizes(self) -> "Predictor":
        p = len(self.measurements)
        if any(len(fit.slopes) != p for fit in (self.fit, *self.fits)):
            raise ValueError(f"every fit needs {p} slopes, one per measurement")
        if [len(row) for row in self.reach.precision] != [p] * p:
            raise ValueError(f"reach.precision must be {p} x {p}")
        if not {one.cluster for one in self.tokenizers} == {fit.without for fit in self.fits}:
            raise ValueError("fits must leave out each cluster of the tokenizers")
        if {"mean", "ridge"} - {score.model for score in self.scores}:
            raise ValueError("scores must hold those of mean and ridge")
        return self

    def score(self, model: str) -> Score:
        """Return the score of ``mean``, ``single best`` or ``ridge``."""
        return next(score for score in self.scores if score.model == model)

    @cached_property
    def domain(self) -> Domain:
        """Where the study lies."""
        mean, deviation = (np.array([getattr(m, name) for m in self.measurements]) for name in ("mean", "deviation"))
        return Domain(mean, deviation, np.array(self.reach.precision), np.array(self.reach.distances))


def write_predictor(predictor: Predictor, file: Path) -> None:
    """Write a predictor as JSON, atomically."""
    write_json(file, predictor.model_dump(mode="json"))


def read_predictor(file: Path) -> Predictor:
    """Read what `write_predictor` wrote.

    Raises:
        UserError: no such file, not a predictor, one of another version, or a damaged one; says which field.
    """
    content = read_json(file)
    version = content.get("schema_version") if isinstance(content, dict) else None
    if version is None:
        raise UserError(f"{file} is not a predictor: make one with `latentlab study predictor RESULTS --out FILE`")
    if version != SCHEMA_VERSION:
        raise UserError(
            f"{file} is a predictor of version {version}, this latentlab reads version {SCHEMA_VERSION}: make it again with "
            "`latentlab study predictor`"
        )
    return read_json_as(Predictor, file)


def shipped_predictors() -> tuple[Predictor, ...]:
    """Return the predictors that come with the package, by name of their files."""
    return tuple(read_predictor(file) for file in sorted(SHIPPED.glob("*.json")))
