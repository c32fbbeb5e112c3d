"""Several latent spaces side by side: which differences between them are larger than chance.

Two tokenizers measured on the same images are compared by a paired bootstrap: both values are resampled over the same images
(or classes), so what makes an image hard for both cancels. The test statistic is the difference over the standard deviation of
its replicates, against Student's t (normal for many units); p-values of one measurement are adjusted for the number of pairs by
Holm's method (Scandinavian Journal of Statistics 6, 1979).
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import combinations
from typing import Any

import numpy as np
from scipy import stats

from analyses.intervals import percentile_interval
from analyses.multiplicity import adjusted
from latentlab.errors import UserError
from latentlab.measurement import Direction, Interval, Measurement
from latentlab.registry import card_of

LEVEL = 0.05
"""Adjusted p-values below this count as a difference."""

SCHEMA_VERSION = 1
"""Version of the form of ``comparison.json``."""


@dataclass(frozen=True)
class Difference:
    """How far apart two tokenizers are in one measurement.

    Attributes:
        measurement: its name.
        first: name of one tokenizer.
        second: name of the other.
        value: value of the first minus value of the second.
        interval: 95 % interval of that, None where the measurement has no replicates.
        p: two-sided, of no difference; None where it cannot be tested.
        adjusted: the same after Holm's correction over all pairs of this measurement.
        paired: whether both were resampled over the same units.
    """

    measurement: str
    first: str
    second: str
    value: float
    interval: Interval | None = None
    p: float | None = None
    adjusted: float | None = None
    paired: bool = True

    @property
    def significant(self) -> bool:
        """Whether the two differ by more than chance at the 5 % level."""
        return self.adjusted is not None and self.adjusted < LEVEL


@dataclass(frozen=True)
class Comparison:
    """All measurements of all tokenizers, and their differences.

    Attributes:
        names: the tokenizers, in the order given.
        measurements: tokenizer -> name -> measurement.
        differences: of every pair in every measurement that can be compared.
        refused: measurement -> why its values must not be compared.
    """

    names: tuple[str, ...]
    measurements: Mapping[str, Mapping[str, Measurement]]
    differences: tuple[Difference, ...] = ()
    refused: Mapping[str, str] = field(default_factory=dict)

    @property
    def metrics(self) -> list[str]:
        """Names of all measurements that at least one tokenizer has."""
        return list(dict.fromkeys(name for measured in self.measurements.values() for name in measured))

    def column(self, metric: str) -> dict[str, Measurement]:
        """Return tokenizer -> measurement ``metric``, of those that have it."""
        return {name: self.measurements[name][metric] for name in self.names if metric in self.measurements[name]}

    def standing(self, metric: str) -> dict[str, str]:
        """Return tokenizer -> ``best``, ``level`` (not distinguishable from the best), ``worse``, or nothing said.

        Nothing is said of measurements without a direction, of values that do not compare, and of differences that cannot
        be tested.
        """
        column = self.column(metric)
        direction = next(iter(column.values())).direction
        if direction == "none" or metric in self.refused or len(column) < 2:
            return {}
        best = _best(column, direction)
        found = {best: "best"}
        for d in self.differences:
            if d.measurement == metric and best in (d.first, d.second) and d.adjusted is not None:
                found[d.second if d.first == best else d.first] = "worse" if d.significant else "level"
        return found

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values, the content of ``comparison.json``."""
        return {
            "schema_version": SCHEMA_VERSION,
            "names": list(self.names),
            "measurements": {
                name: [m.to_dict() for m in measured.values()] for name, measured in self.measurements.items()
            },
            "differences": [asdict(d) for d in self.differences],
            "standings": {metric: self.standing(metric) for metric in self.metrics},
            "refused": dict(self.refused),
        }


def compare(measurements: Mapping[str, Sequence[Measurement]], *, paired: bool) -> Comparison:
    """Compare tokenizers.

    Args:
        measurements: tokenizer -> its measurements, at least two tokenizers.
        paired: whether all were measured on the same images in the same order, with the same seed.

    Raises:
        UserError: fewer than two tokenizers.
    """
    if len(measurements) < 2:
        raise UserError("a comparison needs at least two tokenizers")
    tables = {name: {m.name: m for m in measured} for name, measured in measurements.items()}
    comparison = Comparison(tuple(tables), tables)
    refused, differences = {}, []
    for metric in comparison.metrics:
        column = comparison.column(metric)
        if reason := why_not(metric, list(column.values())):
            refused[metric] = reason
        else:
            differences += _differences(metric, column, paired)
    return Comparison(tuple(tables), tables, tuple(differences), refused)


def why_not(metric: str, column: Sequence[Measurement]) -> str | None:
    """Return why these values of one measurement must not be compared, None if they may be."""
    variants = sorted({m.variant for m in column})
    if len(variants) > 1:
        return f"measured in different variants: {'; '.join(variants)}"
    sizes = sorted({m.n for m in column})
    bias = _bias(metric)
    if len(sizes) > 1 and bias:
        counts = ", ".join(f"{size:,}" for size in sizes)
        return f"measured on different numbers of images ({counts}), and it depends on that ({bias}): use --limit {sizes[0]}"
    classes = sorted({len(m.details.get("per_class", ())) for m in column})
    if len(classes) > 1 and bias:
        counts = ", ".join(map(str, classes))
        return f"measured on different numbers of classes ({counts}), so of images per class, and it depends on that ({bias})"
    return None


def _bias(metric: str) -> str:
    try:
        return card_of(metric).bias
    except UserError:  # measured elsewhere, by a plug-in that is not here
        return "its card is not on this machine"


def _best(column: Mapping[str, Measurement], direction: Direction) -> str:
    sign = 1 if direction == "lower" else -1
    return min(column, key=lambda name: sign * column[name].value)


def _differences(metric: str, column: Mapping[str, Measurement], paired: bool) -> list[Difference]:
    """Return the differences of all pairs, with p-values adjusted for their number."""
    found = [_difference(metric, pair, column, paired) for pair in combinations(column, 2)]
    tested = [d for d in found if d.p is not None]
    p_values = iter(adjusted([d.p for d in tested if d.p is not None]).tolist())
    return [d if d.p is None else Difference(**{**asdict(d), "adjusted": next(p_values)}) for d in found]


def _difference(metric: str, pair: tuple[str, str], column: Mapping[str, Measurement], paired: bool) -> Difference:
    first, second = (column[name] for name in pair)
    value = first.value - second.value
    if first.replicates is None or second.replicates is None:
        return Difference(metric, *pair, value)
    units = min(_units(first), _units(second))
    same_units = paired and len(first.replicates) == len(second.replicates) and _units(first) == _units(second)
    if same_units:
        replicates = first.replicates - second.replicates
        deviation = float(np.std(replicates))
        interval = percentile_interval(replicates, units)
    else:
        deviation = float(np.hypot(np.std(first.replicates), np.std(second.replicates)))
        half = _student(deviation, units) * float(stats.t.ppf(0.975, max(units - 1, 1)))
        interval = value - half, value + half
    p = p_value(value, _student(deviation, units), units)
    return Difference(metric, *pair, value, interval, p, paired=bool(same_units))


def _units(measurement: Measurement) -> int:
    return measurement.units or measurement.n


def _student(deviation: float, units: int) -> float:
    """Return the standard deviation of a resampled mean as Student's t takes it: a bootstrap divides by n instead of n - 1."""
    return deviation * float(np.sqrt(units / max(units - 1, 1)))


def p_value(value: float, deviation: float, units: int) -> float:
    """Return the two-sided p-value of ``value`` with this standard deviation, estimated from ``units`` of them."""
    if deviation == 0:
        return 1.0 if value == 0 else 0.0
    return float(2 * stats.t.sf(abs(value) / deviation, max(units - 1, 1)))
