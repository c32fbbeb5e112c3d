"""Comparisons of generators: which are trained for equally much compute, and at which points each of them is measured.

A comparison file names the generators, what all of them share, and the points: shares of the training for learning curves, and
guidance scales at its end.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import Field, PositiveFloat, PositiveInt, field_validator, model_validator

from latentlab.configuration import Strict, read_config, shipped_configs
from mind.ablation import DottedSettings
from mind.kinds import KINDS

COMPARISONS = Path(__file__).parent / "configs" / "comparisons"
"""Folder of the shipped comparisons."""

_PLANNED = ("seed", "keep_steps", "optimiser.steps")
"""Training settings that equal compute and the points decide."""

Share = Annotated[float, Field(gt=0, le=1)]
Scale = Annotated[float, Field(ge=1, allow_inf_nan=False)]


class Generator(Strict):
    """One of the generators that are compared.

    Attributes:
        label: unique in the comparison.
        kind: of generator: ``mind``, ``sit``, ``lightningdit``, ``dit`` or ``emigm``.
        base: its training configuration: a name among the shipped ones, or a file.
        train: training settings by dotted key, over those of all.
        sample: sampler settings.
        published: what was published about the full-size model; keys as in `Comparison.published`.
        note: what a reader should know.
    """

    label: str
    kind: str
    base: str
    train: DottedSettings = Field(default_factory=dict)
    sample: dict[str, Any] = Field(default_factory=dict)
    published: dict[str, float] = Field(default_factory=dict)
    note: str = ""

    @field_validator("kind")
    @classmethod
    def _known(cls, value: str) -> str:
        if value not in KINDS:
            raise ValueError(f"unknown kind '{value}'. Available: {', '.join(KINDS)}")
        return value


class Comparison(Strict):
    """Generators trained with equal compute.

    Attributes:
        title: in a few words.
        published: key -> heading of published numbers; ``sources`` says where they are from.
        sources: of the published numbers.
        steps: optimiser steps of the first generator; the others get as many as cost the same number of operations.
        curve: shares of the training after which the unguided quality is measured; the end is always one.
        guidance: scales at the end of training; 1 is no guidance, and always one.
        samples: images per point, at least 4 for the neighbours of precision and recall; distances of different numbers do not
            compare.
        reference: real images, as in ``--data``.
        reference_limit: at most so many of them, balanced over classes.
        extractor: features in which quality is measured.
        averaged: sample from averaged weights, not from raw ones.
        parameters_within: greatest ratio between two numbers of parameters, less one.
        timed: repetitions of the timing of single images.
        train: training settings of all generators by dotted key.
        generators: at least two.
    """

    title: str
    published: dict[str, str] = Field(default_factory=dict)
    sources: str = ""
    steps: PositiveInt
    curve: tuple[Share, ...] = (0.125, 0.25, 0.5)
    guidance: tuple[Scale, ...] = (1.0, 1.5, 2.0, 3.0)
    samples: int = Field(ge=4)
    reference: str = "fashion:test"
    reference_limit: int | None = Field(None, ge=4)
    extractor: str = "efficientnet-lite0"
    averaged: bool = True
    parameters_within: PositiveFloat = 0.05
    timed: PositiveInt = 5
    train: DottedSettings = Field(default_factory=dict)
    generators: tuple[Generator, ...] = Field(min_length=2)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        labels = [one.label for one in self.generators]
        if twice := {label for label in labels if labels.count(label) > 1}:
            raise ValueError(f"two generators are called '{min(twice)}'")
        for key in _PLANNED:
            if any(key in train for train in (self.train, *(one.train for one in self.generators))):
                raise ValueError(f"train.{key} follows from steps, curve and the number of seeds: leave it out")
        for one in self.generators:
            if unknown := set(one.published) - set(self.published):
                raise ValueError(f"generator '{one.label}': published has no column {', '.join(sorted(unknown))}")
            if "cfg_scale" in one.sample:
                raise ValueError(f"generator '{one.label}': cfg_scale is swept: give the scales in guidance")
        return self

    def shares(self) -> tuple[float, ...]:
        """Return the shares of the training at which quality is measured, increasing; the last is 1."""
        return tuple(sorted({*self.curve, 1.0}))

    def scales(self) -> tuple[float, ...]:
        """Return the guidance scales, increasing; the first is 1."""
        return tuple(sorted({1.0, *self.guidance}))

    def training(self, generator: Generator, seed: int, **more: Any) -> dict[str, Any]:
        """Return what a generator changes in its training configuration, by dotted key."""
        return {**self.train, **generator.train, **more, "seed": seed}


def load_comparison(name_or_file: str | Path, overrides: Sequence[str] = ()) -> Comparison:
    """Read a comparison.

    Args:
        name_or_file: name of a shipped comparison, or a YAML file.
        overrides: ``samples=200``, ``train.optimiser.batch_size=16``, ...; applied in order.

    Raises:
        UserError: no such comparison, not YAML, or something in it is wrong; says what.
    """
    return read_config(Comparison, name_or_file, overrides, shipped_configs(COMPARISONS), "comparison")
