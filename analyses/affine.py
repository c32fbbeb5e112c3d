"""Turning, mirroring and resizing of grids, the same for images and for latents."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import interpolate

Kind = Literal["rotate", "scale", "flip"]
Interpolation = Literal["bilinear", "bicubic"]

KINDS: tuple[Kind, ...] = ("rotate", "scale", "flip")
INTERPOLATIONS: tuple[Interpolation, ...] = ("bilinear", "bicubic")


@dataclass(frozen=True)
class Transform:
    """One transform of grids [...,h,w].

    Attributes:
        kind: ``rotate`` (``amount`` quarter turns clockwise), ``scale`` (``amount`` times the side) or ``flip`` (of axis
            ``amount``: -1 swaps left and right, -2 top and bottom).
        amount: how much.
        interpolation: of a resize.
    """

    kind: Kind
    amount: float
    interpolation: Interpolation = "bilinear"

    @property
    def name(self) -> str:
        """Short name: ``90°``, ``x0.25``, ``left-right``."""
        if self.kind == "rotate":
            return f"{90 * self.amount:g}°"
        return f"x{self.amount:g}" if self.kind == "scale" else {-1: "left-right", -2: "top-bottom"}[int(self.amount)]

    def __call__(self, grids: Tensor) -> Tensor:
        """Return ``grids`` [n,c,h,w], transformed.

        Resizing is that of `interpolate` with ``align_corners=False`` and without antialiasing, as in EQ-VAE's training code:
        what lies between the sampled points is skipped, so that a resize to a quarter looks at a quarter of the pixels.
        """
        if self.kind == "rotate":
            return torch.rot90(grids, int(self.amount), dims=[-1, -2])  # in this order of dims: clockwise
        if self.kind == "flip":
            return grids.flip(int(self.amount))
        size = [round(self.amount * side) for side in grids.shape[-2:]]
        return interpolate(grids, size=size, mode=self.interpolation, align_corners=False)

    def fits(self, grid: Sequence[int]) -> bool:
        """Return whether ``grid`` (h,w) becomes a whole number of cells."""
        sides = [self.amount * side for side in grid]
        return self.kind != "scale" or all(abs(side - round(side)) < 1e-9 and round(side) > 0 for side in sides)


def transforms_of(kind: Kind, scales: Sequence[float], interpolation: Interpolation) -> list[Transform]:
    """Return the rotations by 90, 180, 270 degrees, the resizes by ``scales``, or both flips."""
    amounts = {"rotate": (1, 2, 3), "scale": scales, "flip": (-1, -2)}[kind]
    return [Transform(kind, amount, interpolation) for amount in amounts]
