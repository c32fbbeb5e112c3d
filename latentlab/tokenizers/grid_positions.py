"""Rotary positions of tokens on a grid of any size, without parameters."""

import torch
from torch import Tensor

from latentlab.tokenizers.sequence_architecture import TransformerSize
from latentlab.tokenizers.vision_transformer import Rotation

THETA = 100.0
"""Ratio that the frequencies of an axis span, as in the axial variant of Heo et al. 2024 (arXiv 2403.13298, section 3.2)."""


def axial_rotation(rows: int, columns: int, size: TransformerSize, device: torch.device) -> Rotation:
    """Return the rotation of rows*columns tokens, row by row, the same for all heads.

    In each head the first half of the pairs of channels turns with the column, the second with the row; pair i of q does so
    by ``THETA^(-i/q)`` per cell.

    Args:
        rows: of the grid.
        columns: of the grid.
        size: of the transformer; its heads are multiples of 4 channels wide.
        device: of the angles.
    """
    quarter = size.width // size.heads // 4
    frequencies = THETA ** (-torch.arange(quarter, device=device) / quarter)
    x, y = _positions(rows, columns, device)
    angles = torch.cat([x[:, None] * frequencies, y[:, None] * frequencies], dim=1)
    return Rotation(angles[:, None].expand(-1, size.heads, -1), start=0)


def _positions(rows: int, columns: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return column and row of every cell, [p] each."""
    cells = torch.arange(rows * columns, device=device)
    return (cells % columns).float(), (cells // columns).float()
