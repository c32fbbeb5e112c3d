"""Normalisation of latents by patches of cells, as the generators of FLUX.2 see them (Black Forest Labs 2025)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latentlab.errors import UserError


class PatchStatistics(nn.Module):
    """Mean and variance of every number in a patch of side x side cells; names are those of the published batch norm.

    A patch becomes one vector in the order (channel, row, column), and p is normalised to (p - mean) / sqrt(var + eps).
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int, side: int, eps: float) -> None:
        super().__init__()
        self.channels, self.side, self.eps = channels, side, eps
        self.register_buffer("running_mean", torch.zeros(channels * side**2))
        self.register_buffer("running_var", torch.ones(channels * side**2))

    def normalize(self, latents: Tensor) -> Tensor:
        """Return patches [n,c*p*p,h/p,w/p] of latents [n,c,h,w], normalised.

        Raises:
            UserError: another number of channels, or sides that are no multiples of the patch's.
        """
        side = self.side
        if latents.ndim != 4 or latents.shape[1] != self.channels or any(edge % side for edge in latents.shape[2:]):
            raise UserError(
                f"latents must be [n,{self.channels},h,w] with h and w multiples of {side}, got shape {list(latents.shape)}"
            )
        mean, std = self._moments(latents)
        return (F.pixel_unshuffle(latents, side) - mean) / std

    def denormalize(self, patches: Tensor) -> Tensor:
        """Invert `normalize`.

        Raises:
            UserError: another number of channels.
        """
        if patches.ndim != 4 or patches.shape[1] != len(self.running_mean):
            raise UserError(f"normalised latents must be [n,{len(self.running_mean)},h,w], got {list(patches.shape)}")
        mean, std = self._moments(patches)
        return F.pixel_shuffle(patches * std + mean, self.side)

    def per_channel(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Return shift and scale per channel: mean, and 1 / standard deviation, over all cells of a patch."""
        mean, var = (v.double().view(self.channels, -1) for v in (self.running_mean, self.running_var))
        pooled = var.mean(1) + mean.var(1, correction=0)
        return tuple(mean.mean(1).tolist()), tuple((pooled + self.eps).rsqrt().tolist())

    def _moments(self, like: Tensor) -> tuple[Tensor, Tensor]:
        mean, std = self.running_mean, (self.running_var + self.eps).sqrt()
        return mean.to(like)[:, None, None], std.to(like)[:, None, None]
