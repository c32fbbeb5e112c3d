"""Fresh weights for vision transformers of any width, as in MAE (He et al. 2022, arXiv 2111.06377, appendix A.1)."""

import math

import torch
from torch import Tensor, nn

STD = 0.02
"""Of tokens, learned positions, and maps that shall do next to nothing at first."""


def initialise(module: nn.Module) -> None:
    """Fill linear maps of ``module``, that of patches included, so that signals keep their size (Glorot), biases with 0.

    Norms and layer scales keep the 1 they are built with.
    """
    for layer in module.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            nn.init.xavier_uniform_(layer.weight.flatten(1))
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


def mixed_frequencies(
    depth: int, heads: int, head_width: int, theta: float
) -> Tensor:  # => [2,depth,heads*head_width/2]
    """Return starting frequencies of mixed rotary positions (Heo et al. 2024, arXiv 2403.13298, section 3.3).

    Half of the pairs of a head run along a random direction and half across it, with the frequencies ``theta^(-i/q)``.

    Args:
        depth: blocks; each draws its own directions.
        heads: of attention; each draws its own direction.
        head_width: channels of a head.
        theta: ratio that the frequencies span.
    """
    pairs = head_width // 2
    along = (pairs + 1) // 2
    sizes = theta ** (-torch.arange(along) / along)
    direction = 2 * math.pi * torch.rand(depth, heads, 1)
    angle = torch.cat([direction.expand(-1, -1, along), direction.expand(-1, -1, pairs - along) + math.pi / 2], dim=2)
    size = torch.cat([sizes, sizes[: pairs - along]])
    return torch.stack([size * angle.cos(), size * angle.sin()]).flatten(2)
