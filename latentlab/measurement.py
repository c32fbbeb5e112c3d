"""What a measurement returns: a value with its error bar, its meaning and everything needed to repeat it."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple

import numpy as np

from latentlab.errors import UserError

SCHEMA_VERSION = 2
"""Version of the JSON form of `Measurement`; raised when a field changes its meaning or disappears."""

Direction = Literal["lower", "higher", "none"]
"""Which way a generator finds easier ("none": a description, not a score)."""

Interval = tuple[float, float]
"""Ends of a 95 % interval."""


class Estimate(NamedTuple):
    """A number and, where it was estimated, its 95 % interval."""

    value: float
    interval: Interval | None = None


@dataclass(frozen=True)
class MetricCard:
    """What a reader must know to trust a measurement; one card per registered function."""

    name: str
    """Registered name, as in ``--metrics``."""
    title: str
    """Full name."""
    summary: str
    """One sentence: what it says about a latent space."""
    formula: str
    unit: str
    range: str
    better: Direction
    """Direction of the headline value."""
    source: str
    """Publication of the definition, and what was settled by us."""
    needs: tuple[str, ...] = ()
    """Inputs it cannot do without: ``labels``, ``masks``, ``grid``, ``codes`` of the latents; ``images``, ``encode``,
    ``decode``, ``trajectory`` as arguments."""
    uses: str = ""
    """Inputs it uses where they are there, or for some options only."""
    confounds: str = ""
    """What moves the value without making generation easier or harder."""
    variants: Mapping[str, str] = field(default_factory=dict)
    """Option as a user writes it -> what it changes."""
    invariances: str = ""
    """What leaves the value as it is."""
    bias: str = ""
    """How the estimator is biased for small samples; then values are compared at equal n only. Empty: it is not."""
    known_values: Mapping[str, str] = field(default_factory=dict)
    """Case -> value: closed forms, and numbers published for well-known tokenizers."""
    test: str = ""
    """The test that shows known values: ``tests/analyses/test_viv.py::test_name``."""
    on_request: bool = False
    """Whether it is made only when it is named: it trains something, or needs what an analysis does not have."""


@dataclass(frozen=True)
class Measurement:
    """One measured property of a latent space.

    Attributes:
        name: registered name (``viv``).
        variant: which published definition was used, in words (``class-conditional, mean over dimensions``).
        value: headline number.
        interval: 95 % interval of the headline, None where the estimator has none (then ``warnings`` says why).
        replicates: bootstrap replicates of the headline, [r]: those of two measurements made with the same seed of the same
            units (images, classes, repeats) are resampled alike, so their differences are paired. None where there are none.
        units: number of units that were resampled, where it is not ``n`` (classes, repeats).
        direction: whether lower or higher is easier for a generator.
        unit: unit of ``value``.
        n: number of images that entered.
        parameters: every argument that shaped the value, defaults included.
        companions: further numbers reported beside the headline (``LNC@10`` beside LNC@5).
        warnings: what a careful reader must know about this very result.
        details: arrays and tables for figures (numpy arrays, lists, numbers, strings, or mappings of those).
        provenance: where the latents came from, versions, seed.
    """

    name: str
    variant: str
    value: float
    interval: Interval | None
    direction: Direction
    unit: str
    n: int
    parameters: Mapping[str, Any] = field(default_factory=dict)
    companions: Mapping[str, Estimate] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    details: Mapping[str, Any] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)
    replicates: np.ndarray | None = None
    units: int | None = None

    def with_provenance(self, **facts: Any) -> "Measurement":
        """Return the same measurement with ``facts`` added to its provenance."""
        return replace(self, provenance={**self.provenance, **facts})

    def to_dict(self) -> dict[str, Any]:
        """Return plain dicts, lists and numbers (arrays become lists, NaN and infinity become None)."""
        return {
            "schema_version": SCHEMA_VERSION,
            "name": self.name,
            "variant": self.variant,
            "value": _plain(self.value),
            "interval": _plain(self.interval),
            "direction": self.direction,
            "unit": self.unit,
            "n": int(self.n),
            "parameters": _plain(self.parameters),
            "companions": {
                key: {"value": _plain(e.value), "interval": _plain(e.interval)} for key, e in self.companions.items()
            },
            "warnings": list(self.warnings),
            "details": _plain(self.details),
            "provenance": _plain(self.provenance),
            "replicates": _plain(self.replicates),
            "units": self.units,
        }

    def to_json(self, indent: int | None = None) -> str:
        """Return `to_dict` as JSON text."""
        return json.dumps(self.to_dict(), indent=indent, allow_nan=False)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Measurement":
        """Rebuild a measurement written by `to_dict`; details come back as lists, replicates as an array.

        Raises:
            UserError: the data was written by another schema version.
        """
        if data.get("schema_version") != SCHEMA_VERSION:
            raise UserError(
                f"this measurement has schema version {data.get('schema_version')}, this latentlab reads "
                f"{SCHEMA_VERSION}: measure again"
            )
        fields = {key: data[key] for key in cls.__dataclass_fields__}
        fields["value"] = math.nan if fields["value"] is None else fields["value"]
        fields["interval"] = _interval(fields["interval"])
        fields["warnings"] = tuple(fields["warnings"])
        replicates = fields["replicates"]
        fields["replicates"] = None if replicates is None else np.array(replicates, dtype=np.float64)
        fields["companions"] = {
            key: Estimate(math.nan if e["value"] is None else e["value"], _interval(e["interval"]))
            for key, e in fields["companions"].items()
        }
        return cls(**fields)


def _interval(pair: list[float] | None) -> Interval | None:
    return None if pair is None else (pair[0], pair[1])


def _plain(value: Any) -> Any:
    """Return ``value`` with numpy types, tuples and mappings turned into what JSON knows."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray):
        return _plain(value.tolist())
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, np.generic):
        return _plain(value.item())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"a measurement cannot hold a {type(value).__name__}")
