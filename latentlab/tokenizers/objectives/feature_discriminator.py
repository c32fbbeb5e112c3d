"""A discriminator on the maps of a frozen vision network: only small heads are trained (Sauer et al. 2021, arXiv 2111.01007;
with DINO's features: Sauer et al. 2023, arXiv 2301.09515).
"""

import torch
from torch import Tensor, nn

from latentlab.tokenizers.objectives.vision_networks import open_vision_maps


class FeatureDiscriminator(nn.Module):
    """One head per map of the network; each scores every cell."""

    def __init__(self, network: str, width: int = 64) -> None:
        """Open the network; the heads have ``width`` channels inside.

        Raises:
            UserError: unknown network, or its weights are not on this machine.
        """
        super().__init__()
        self.maps = open_vision_maps(network)
        self.heads = nn.ModuleList(_head(channels, width) for channels in self.maps.widths())

    def forward(self, images: Tensor) -> Tensor:
        """Return the scores of all cells of all maps, [n,s], of images [n,3,H,W] in [-1,1]."""
        maps = self.maps.several(images)
        return torch.cat([head(features).flatten(1) for head, features in zip(self.heads, maps, strict=True)], dim=1)


def _head(channels: int, width: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, width, 1),
        nn.GroupNorm(1, width),  # all channels together: a coarse map may have a single cell
        nn.LeakyReLU(0.2),
        nn.Conv2d(width, 1, 3, padding=1),
    )
