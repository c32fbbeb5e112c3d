"""One published or embedded set of weights of a tokenizer. Imports no torch."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from latentlab.weights import WeightFile


@dataclass(frozen=True)
class Release:
    """One set of weights of a tokenizer.

    Attributes:
        name: unique among the tokenizer's releases.
        licence: of the weights.
        weights: the published file; None for weights that ship with the package.
        companions: further published files, which lie beside ``weights``.
        family: what the architecture's fields describe and which loader reads the file: a name of `families.FAMILIES`.
        architecture: fields of the published configuration; None when the weight file itself records them.
        shift: subtracted from latents by `normalize`, one number or one per channel.
        scale: multiplied by `normalize`.
        averaged: whether the published file holds averaged weights beside the raw ones, and its authors evaluate with them.
        statistics: name of a file of per-channel ``mean`` and ``std`` that, beside the weights, replaces shift and scale.
    """

    name: str
    licence: str
    weights: WeightFile | None = None
    architecture: Mapping[str, Any] | None = None
    shift: tuple[float, ...] = (0.0,)
    scale: tuple[float, ...] = (1.0,)
    statistics: str | None = None
    companions: tuple[WeightFile, ...] = ()
    family: str = "ldm"
    averaged: bool = False

    def label(self, ema: bool) -> str:
        """Return the name under which latents are recorded: that of raw weights ends in ``-raw``."""
        return self.name if ema else f"{self.name}-raw"

    @property
    def embedded(self) -> bool:
        """Whether the weights ship with the package."""
        return self.weights is None


FASHION32 = Release("fashion32", "MIT")
"""Embedded weights of an LDM-style tokenizer, trained on Fashion-MNIST padded to 32x32; the file records its architecture."""
