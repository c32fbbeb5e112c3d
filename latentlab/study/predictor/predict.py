"""What a predictor says of a new tokenizer: quality with an interval, or how far outside the study the tokenizer lies."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from latentlab.errors import UserError
from latentlab.study.predictor.file import Predictor
from latentlab.study.predictor.interval import jackknife_plus

_NAMED = 3
"""Measurements that a refusal names."""


def predict(predictor: Predictor, values: Mapping[str, float]) -> "Prediction":
    """Predict the target of a tokenizer, however far it lies outside: `Prediction.refusal` says whether to believe it.

    Args:
        predictor: the fitted one.
        values: of its measurements, by name.

    Raises:
        UserError: a measurement is missing or not finite.
    """
    x = np.array([_value(m.name, values, predictor) for m in predictor.measurements])
    target, tokenizers = predictor.target, predictor.tokenizers
    without = {fit.without: fit.at(x) for fit in predictor.fits}
    observed = target.scaled(np.array([one.observed for one in tokenizers]))
    left_out = target.scaled(np.array([one.left_out for one in tokenizers]))
    ends = jackknife_plus([without[one.cluster] for one in tokenizers], np.abs(observed - left_out), predictor.level)
    return Prediction(predictor, x, *(target.unscaled(value) for value in (predictor.fit.at(x), *ends)))


def _value(name: str, values: Mapping[str, float], predictor: Predictor) -> float:
    if name not in values:
        needed = ", ".join(m.name for m in predictor.measurements)
        raise UserError(f"{name} was not measured: the predictor needs {needed}")
    if not math.isfinite(values[name]):
        raise UserError(f"{name} is {values[name]}")
    return values[name]


@dataclass(frozen=True)
class Prediction:
    """What a predictor says of one tokenizer.

    Attributes:
        predictor: which says it.
        x: [p] values of its measurements.
        value: predicted target.
        low: lower end of the interval.
        high: upper end.
    """

    predictor: Predictor
    x: np.ndarray
    value: float
    low: float
    high: float

    @cached_property
    def factor(self) -> float:
        """Distance from the study over the largest distance at which it is predicted."""
        domain = self.predictor.domain
        return float(domain.distance(self.x)) / domain.limit

    @property
    def percentile(self) -> float:
        """Share in percent of the study's tokenizers that lie nearer to the rest of the study."""
        domain = self.predictor.domain
        return float(100 * (domain.distances < domain.distance(self.x)).mean())

    @property
    def outside(self) -> dict[str, float]:
        """Measurements outside their range in the study -> by how many widths of it, negative below."""
        pairs = zip(self.predictor.measurements, self.x, strict=True)
        found = {m.name: m.overshoot(float(value)) for m, value in pairs}
        return {name: by for name, by in sorted(found.items(), key=lambda item: -abs(item[1])) if by}

    @property
    def refusal(self) -> str | None:
        """Why the prediction must not be used, None if it may be."""
        ridge, mean = self.predictor.score("ridge"), self.predictor.score("mean")
        if ridge.rmse >= mean.rmse:
            return f"on clusters it has not seen the predictor errs by {ridge.rmse:.3g}, the mean of the study by {mean.rmse:.3g}"
        if self.factor <= 1:
            return None
        n = len(self.predictor.tokenizers)
        return (
            f"the tokenizer lies outside the study, {self.factor:.1f} times as far as predictions were tested and further than "
            f"{self.percentile:.0f} % of its {n} tokenizers: {self._what_is_unusual()}"
        )

    def _what_is_unusual(self) -> str:
        """Name the measurements outside their range, and the combination where it is outside even with those drawn in."""
        told = self._ranges()
        measured, domain = self.predictor.measurements, self.predictor.domain
        drawn_in = np.clip(self.x, [m.low for m in measured], [m.high for m in measured])
        if domain.distance(drawn_in) > domain.limit:
            first, *others = (measured[i].name for i in np.argsort(-domain.parts(drawn_in))[:2])
            what = f"the combination of {first} with {others[0]}" if others else first
            told.append(f"{what} is unlike the study's")
        return "; ".join(told)

    def _ranges(self) -> list[str]:
        """Say of the measurements outside their range by how much; of the furthest few."""
        by_name = {m.name: (m, float(value)) for m, value in zip(self.predictor.measurements, self.x, strict=True)}
        told = []
        for name, by in list(self.outside.items())[:_NAMED]:
            m, value = by_name[name]
            side = "above" if by > 0 else "below"
            told.append(
                f"{name} {value:.4g} is {side} {m.low:.4g} .. {m.high:.4g} by {100 * abs(by):.0f} % of that range"
            )
        more = len(self.outside) - len(told)
        return told + ([f"{more} more are outside"] if more else [])

    def sentence(self) -> str:
        """Return the prediction, or why there is none, in one line."""
        target = self.predictor.target
        if reason := self.refusal:
            return no_prediction(self.predictor, reason)
        unit = f" {target.unit}" if target.unit else ""
        line = f"predicted {target.title}: {self.value:.3g} [{self.low:.3g}, {self.high:.3g}]{unit}"
        line += f" from {len(self.predictor.tokenizers)} tokenizers ({100 * self.predictor.level:.0f} % interval)"
        return "; ".join([line, *self._ranges()])

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values; the value is left out where it must not be used."""
        usable = self.refusal is None
        ends = [end if math.isfinite(end) else None for end in (self.low, self.high)]
        return {
            "value": self.value if usable else None,
            "interval": ends if usable else None,
            "factor": self.factor,
            "percentile": self.percentile,
            "outside": self.outside,
        }


def no_prediction(predictor: Predictor, reason: str) -> str:
    """Return the line that says why a predictor says nothing."""
    return f"no prediction of {predictor.target.title}: {reason}"
