"""The shape of the latents a baseline is made for: a grid or a sequence, and how it is cut into tokens. Imports no torch."""

import math
from collections.abc import Mapping
from typing import Any, Self

from pydantic import PositiveInt, model_validator

from latentlab.configuration import Strict


class LatentShape(Strict):
    """What every baseline's configuration says about its latents."""

    input: tuple[PositiveInt, PositiveInt] | None
    """Rows and columns of a latent [c,h,w]; None for latents that are sequences."""
    tokens: PositiveInt | None = None
    """Length of a latent [l,c] (or of codes [l]), instead of ``input``."""
    patch: PositiveInt
    """Side of the squares of a grid, or number of neighbours of a sequence, that become one token."""
    in_channels: PositiveInt
    """c, channels of a latent."""
    num_classes: PositiveInt = 1000
    """Class ids are 0 .. num_classes-1; id num_classes stands for "no class"."""

    @model_validator(mode="before")
    @classmethod
    def _sequence_or_grid(cls, values: Any) -> Any:
        if isinstance(values, Mapping) and values.get("tokens") is not None:
            return {"input": None, **values}
        return values

    @model_validator(mode="after")
    def _one_shape(self) -> Self:
        if (self.input is None) == (self.tokens is None):
            raise ValueError("give either input (rows and columns of a grid) or tokens (length of a sequence)")
        if any(side % self.patch for side in self.sides):
            sides = "x".join(map(str, self.sides))
            raise ValueError(f"patch ({self.patch}) must divide the latent's size ({sides})")
        return self

    @property
    def sides(self) -> tuple[int, ...]:
        """Size of a latent without its channels: (h, w) or (l,)."""
        return self.input or (self.tokens or 0,)

    @property
    def patches(self) -> tuple[int, ...]:
        """Tokens of the transformer along each side."""
        return tuple(side // self.patch for side in self.sides)

    @property
    def length(self) -> int:
        """l, tokens of the transformer."""
        return math.prod(self.patches)

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """Shape of one latent: (c, h, w) or (l, c)."""
        return (self.in_channels, *self.input) if self.input else (*self.sides, self.in_channels)

    @property
    def null_class(self) -> int:
        """Class id that stands for "no class"."""
        return self.num_classes
