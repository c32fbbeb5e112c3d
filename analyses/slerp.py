"""Interpolation of latents on the great circle between them (Shoemake 1985), and on the straight line."""

import math

import torch
from torch import Tensor

from latentlab.errors import UserError

_DEGENERATE = 1e-6
"""Sine of the angle below which two vectors count as parallel or opposite."""


def lerp(first: Tensor, second: Tensor, alpha: float) -> Tensor:
    """Return ``(1 - alpha) first + alpha second``, float64, of two batches of one shape."""
    x, y = _batches(first, second, alpha)
    return (1 - alpha) * x + alpha * y


def slerp(first: Tensor, second: Tensor, alpha: float) -> Tensor:
    """Return ``(sin((1-alpha) theta) first + sin(alpha theta) second) / sin theta``, float64.

    theta is the angle between the two, every item of the batch taken as one vector; the weights apply to the vectors as they
    are, so that the length goes from one to the other. Two cases have no great circle:

    * parallel vectors, and a zero vector: the straight line, which is the limit;
    * opposite vectors, for which every half circle is a shortest way: the one through the coordinate axis to which they are
      most nearly orthogonal (the first of several), with the length between theirs in proportion.

    Args:
        first: [b,...], where alpha is 0.
        second: of the same shape, where alpha is 1.
        alpha: in [0, 1].

    Raises:
        UserError: shapes that differ, or alpha out of range.
    """
    x, y = _batches(first, second, alpha)
    shape, x, y = x.shape, x.flatten(1), y.flatten(1)
    lengths = [v.norm(dim=1, keepdim=True) for v in (x, y)]
    u, v = (side / torch.where(length > 0, length, 1.0) for side, length in zip((x, y), lengths, strict=True))
    # Exact for small and for nearly straight angles, where the arc cosine of the product has no digits left.
    theta = 2 * torch.atan2((u - v).norm(dim=1, keepdim=True), (u + v).norm(dim=1, keepdim=True))
    regular = (theta.sin() >= _DEGENERATE) & (lengths[0] > 0) & (lengths[1] > 0)
    sine = torch.where(regular, theta.sin(), 1.0)
    arc = (torch.sin((1 - alpha) * theta) * x + torch.sin(alpha * theta) * y) / sine
    result = torch.where(regular, arc, (1 - alpha) * x + alpha * y)
    opposite = (~regular & (theta > math.pi / 2) & (lengths[0] > 0) & (lengths[1] > 0))[:, 0]
    if opposite.any():
        length = (1 - alpha) * lengths[0] + alpha * lengths[1]
        half_circle = math.cos(alpha * math.pi) * u[opposite] + math.sin(alpha * math.pi) * _across(u[opposite])
        result[opposite] = length[opposite] * half_circle
    return result.view(shape)


def _across(unit: Tensor) -> Tensor:
    """Return unit vectors [b,d] orthogonal to ``unit``, each in the plane of the axis that is most nearly so."""
    if unit.shape[1] == 1:
        return torch.zeros_like(unit)  # a line has no other direction
    axis = torch.nn.functional.one_hot(unit.abs().argmin(1), unit.shape[1]).to(unit)
    across = axis - (axis * unit).sum(1, keepdim=True) * unit
    return across / across.norm(dim=1, keepdim=True)


def _batches(first: Tensor, second: Tensor, alpha: float) -> tuple[Tensor, Tensor]:
    if first.shape != second.shape or first.ndim < 2:
        raise UserError(
            f"interpolation needs two batches of one shape [b,...], got {list(first.shape)} and {list(second.shape)}"
        )
    if not 0 <= alpha <= 1:
        raise UserError(f"alpha must lie in [0, 1], got {alpha}")
    return first.double(), second.double()
