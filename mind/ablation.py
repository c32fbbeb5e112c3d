"""Ablation grids: which rows a published table has, and what each of them trains and samples here.

A grid file names one thing that all rows share (a training configuration, or weights) and, row by row, what is different. Rows
that train the same share one trained run.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BeforeValidator, Field, PositiveFloat, PositiveInt, model_validator

from latentlab.configuration import Strict, read_config, shipped_configs
from mind.settings import SamplerSettings

GRIDS = Path(__file__).parent / "configs" / "ablations"
"""Folder of the shipped grids, one per published table or question."""


def dotted(table: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested tables as one with dotted keys: ``{"a": {"b": 1}}`` and ``{"a.b": 1}`` are the same; the later one wins."""
    flat: dict[str, Any] = {}
    for key, value in table.items():
        name = f"{prefix}{key}"
        flat.update(dotted(value, f"{name}.") if isinstance(value, Mapping) else {name: value})
    return flat


DottedSettings = Annotated[
    dict[str, Any], BeforeValidator(lambda value: dotted(value) if isinstance(value, Mapping) else value)
]
"""Settings by dotted key; nested tables are read as such."""


class Published(Strict):
    """What was published about the rows. It is set beside our numbers and never mixed with them: other data, other features.

    Attributes:
        source: table and what it was measured on, in words.
        columns: key in the rows' ``published`` -> heading.
        compare: the key whose order over the rows is set beside that of our distance.
    """

    source: str
    columns: dict[str, str]
    compare: str

    @model_validator(mode="after")
    def _known(self) -> Self:
        if self.compare not in self.columns:
            raise ValueError(f"compare: '{self.compare}' is not among the columns {', '.join(self.columns)}")
        return self


class Row(Strict):
    """One row of a grid.

    Attributes:
        label: unique in the grid.
        train: training settings by dotted key (``model.normalise``), over those of the grid.
        times_steps: length of the training, as a multiple of the grid's.
        sample: fields of `SamplerSettings`, over those of the grid.
        published: numbers by key of `Published.columns`.
        note: what a reader should know.
    """

    label: str
    train: DottedSettings = Field(default_factory=dict)
    times_steps: PositiveFloat = 1.0
    sample: dict[str, Any] = Field(default_factory=dict)
    published: dict[str, float] = Field(default_factory=dict)
    note: str = ""


class Grid(Strict):
    """One ablation.

    Attributes:
        title: in a few words.
        published: where the rows' published numbers come from; None for questions of our own.
        base: training configuration of every row (a name of `mind/configs`, or a file), or
        weights: a model that all rows only sample from (a name or file for `mind.find_weights`).
        samples: images per row; distances of different numbers do not compare.
        reference: real images, as in ``--data``.
        reference_limit: at most so many of them, balanced over classes.
        extractor: features in which the distance is measured.
        train: training settings of all rows by dotted key.
        sample: sampler settings of all rows.
        rows: at least one.
    """

    title: str
    published: Published | None = None
    base: str | None = None
    weights: str | None = None
    samples: PositiveInt
    reference: str = "fashion:test"
    reference_limit: PositiveInt | None = None
    extractor: str = "efficientnet-lite0"
    train: DottedSettings = Field(default_factory=dict)
    sample: dict[str, Any] = Field(default_factory=dict)
    rows: tuple[Row, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if (self.base is None) == (self.weights is None):
            raise ValueError("give base (a training configuration) or weights (a trained model), and not both")
        seen: set[str] = set()
        for row in self.rows:
            self._check(row)
            if row.label in seen:
                raise ValueError(f"two rows are called '{row.label}'")
            seen.add(row.label)
        return self

    def _check(self, row: Row) -> None:
        if self.weights is not None and (self.train or row.train or row.times_steps != 1):
            raise ValueError(f"row '{row.label}' would train, but the grid samples from weights: give base instead")
        if unknown := set(row.published) - set(self.published.columns if self.published else ()):
            raise ValueError(f"row '{row.label}': published has no column {', '.join(sorted(unknown))}")
        try:
            self.settings(row)
        except ValueError as error:
            raise ValueError(f"row '{row.label}': {error}") from error

    def settings(self, row: Row) -> SamplerSettings:
        """Return how a row is sampled."""
        return SamplerSettings(**{**self.sample, **row.sample})

    def training(self, row: Row, seed: int) -> dict[str, Any]:
        """Return what a row changes in the training configuration, by dotted key."""
        return {**self.train, **row.train, "seed": seed}


def as_overrides(settings: Mapping[str, Any]) -> list[str]:
    """Return settings as ``a.b=value`` arguments of ``--set``, with the values in JSON, which YAML reads."""
    return [f"{key}={json.dumps(value)}" for key, value in settings.items()]


def load_grid(name_or_file: str | Path, overrides: Sequence[str] = ()) -> Grid:
    """Read a grid.

    Args:
        name_or_file: name of a shipped grid, or a YAML file.
        overrides: ``samples=200``, ``sample.steps=10``, ``train.optimiser.steps=100``; applied in order, to what all rows share.

    Raises:
        UserError: no such grid, not YAML, or something in it is wrong; says what.
    """
    return read_config(Grid, name_or_file, overrides, shipped_configs(GRIDS), "ablation")
