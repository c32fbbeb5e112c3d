"""Where a token is: fixed sinusoids that are added, and rotations of queries and keys (RoPE, arXiv 2104.09864).

Both work along one axis (a sequence) or two (rows and columns). Shapes: l tokens, h width, m pairs of a head.
"""

import torch
from torch import Tensor

_BASE = 10000.0


def sinusoidal_positions(sides: tuple[int, ...], width: int) -> Tensor:
    """Return sines and cosines of the positions, float32 [l,h], computed in float64.

    A grid gives the first half of the width to the columns and the second to the rows, as DiT and MAE (arXiv 2111.06377) do.

    Args:
        sides: tokens along each axis: (l,) or (rows, columns); the last one runs fastest.
        width: h.
    """
    share = width // len(sides)
    frequencies = _frequencies(share // 2, torch.float64)
    angles = [axis[:, None] * frequencies for axis in reversed(_places(sides, torch.float64))]
    return torch.cat([part for angle in angles for part in (angle.sin(), angle.cos())], dim=1).float()


def rotary_tables(sides: tuple[int, ...], head_dim: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return cosine and sine tables [l,m] of the rotations, float32; a grid gives the first half of the pairs to the rows.

    Args:
        sides: tokens along each axis: (l,) or (rows, columns).
        head_dim: 2 m.
        device: of the tables.
    """
    frequencies = _frequencies(head_dim // 2 // len(sides), torch.float32, device)
    angles = torch.cat([axis[:, None] * frequencies for axis in _places(sides, torch.float32, device)], dim=1)
    return angles.cos(), angles.sin()


def rotate_pairs(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Rotate neighbouring pairs (0,1), (2,3), ... of the last dimension of ``x`` [b,heads,l,2m] by tables [l,m], in float32."""
    pairs = x.float().unflatten(-1, (-1, 2))
    turned = _turned_as_complex if pairs.device.type == "cpu" else _turned_by_parts
    return turned(pairs, cosine, sine).flatten(-2)


def _turned_as_complex(pairs: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Rotate pairs [...,l,m,2] by one complex product: on CPUs a fifth of the time, as neither part is gathered or joined."""
    return torch.view_as_real(torch.view_as_complex(pairs) * torch.complex(cosine, sine))


def _turned_by_parts(pairs: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Rotate pairs [...,l,m,2] by real products, which torch.compile fuses on GPUs; of complex ones it makes no code."""
    first, second = pairs.unbind(-1)
    return torch.stack([first * cosine - second * sine, second * cosine + first * sine], dim=-1)


def _frequencies(count: int, dtype: torch.dtype, device: torch.device | None = None) -> Tensor:
    return torch.pow(_BASE, -torch.arange(count, dtype=dtype, device=device) / count)


def _places(sides: tuple[int, ...], dtype: torch.dtype, device: torch.device | None = None) -> list[Tensor]:
    """Return each token's place along each axis, [l] for every axis."""
    axes = [torch.arange(side, dtype=dtype, device=device) for side in sides]
    return [axis.flatten() for axis in torch.meshgrid(*axes, indexing="ij")]
