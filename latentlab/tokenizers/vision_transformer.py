"""Transformer blocks under the names of timm's vision transformers, plain or with norms modulated by a latent.

Dosovitskiy et al. 2021 (arXiv 2010.11929) with the layer scale of DINOv2 (2304.07193); mixed rotary positions are those of Heo
et al. 2024 (2403.13298, eq. 14), the modulated norm is that of MoVQ (2209.09002, eq. 4).
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latentlab.tokenizers.sequence_architecture import TransformerSize

EPSILON = 1e-6
"""Of every LayerNorm."""


@dataclass(frozen=True)
class Rotation:
    """Rotary positions of the tokens from ``start`` on; all others stay as they are.

    Attributes:
        angles: one angle per token, head and pair of channels, [p,heads,c/2].
        start: number of tokens in front of the first one that is rotated.
    """

    angles: Tensor
    start: int

    def __call__(self, vectors: Tensor) -> Tensor:
        """Rotate channels (2i, 2i+1) of ``vectors`` [n,heads,l,c] by the i-th angle of their token."""
        angles = self.angles.transpose(0, 1)  # [heads,p,c/2], in float32: they grow with the side of the grid
        stop = self.start + angles.shape[1]
        even, odd = vectors[:, :, self.start : stop].unflatten(-1, (-1, 2)).unbind(-1)
        cos, sin = angles.cos().to(vectors), angles.sin().to(vectors)
        turned = torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1).flatten(-2)
        return torch.cat([vectors[:, :, : self.start], turned, vectors[:, :, stop:]], dim=2)


class Attention(nn.Module):
    """Self-attention over all tokens, with one linear map for queries, keys and values."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor, rotation: Rotation | None = None) -> Tensor:
        """Return [n,l,w] of [n,l,w]."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # each [n,heads,l,c]
        if rotation is not None:
            q, k = rotation(q), rotation(k)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    """Two linear maps with a GELU between them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Return [n,l,w] of [n,l,w]."""
        return self.fc2(F.gelu(self.fc1(x)))


class LayerScale(nn.Module):
    """A factor per channel."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """Return [n,l,w] of [n,l,w]."""
        return x * self.gamma


class PatchEmbed(nn.Module):
    """One linear map of every patch."""

    def __init__(self, patch: int, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, kernel_size=patch, stride=patch)

    def forward(self, images: Tensor) -> Tensor:
        """Return patches row by row, [n,p,w], of images [n,3,H,W]."""
        return self.proj(images).flatten(2).transpose(1, 2)


class Block(nn.Module):
    """Attention and MLP, each after a LayerNorm and before a layer scale."""

    def __init__(self, size: TransformerSize) -> None:
        super().__init__()
        self.norm1, self.norm2 = (nn.LayerNorm(size.width, eps=EPSILON) for _ in range(2))
        self.attn, self.mlp = Attention(size.width, size.heads), Mlp(size.width)
        self.ls1, self.ls2 = LayerScale(size.width), LayerScale(size.width)

    def forward(self, x: Tensor, rotation: Rotation | None = None) -> Tensor:
        """Return [n,l,w] of [n,l,w]."""
        x = x + self.ls1(self.attn(self.norm1(x), rotation))
        return x + self.ls2(self.mlp(self.norm2(x)))


def modulation(latent_channels: int, outputs: int) -> nn.Sequential:
    """Return the map from a latent token to shifts and scales."""
    return nn.Sequential(nn.SiLU(), nn.Linear(latent_channels, outputs))


def modulated_norm(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Return the LayerNorm of [n,l,w] without affine, the last tokens of it as ``norm * scale + shift``.

    The scale stands alone: there is no 1 added to it.

    Args:
        x: tokens; the last k of them are latent tokens.
        shift: for those, [n,k,w].
        scale: for those, [n,k,w].
    """
    normed = F.layer_norm(x, x.shape[-1:], eps=EPSILON)
    others, latent = normed.split([x.shape[1] - shift.shape[1], shift.shape[1]], dim=1)
    return torch.cat([others, latent * scale + shift], dim=1)


class ModulatedBlock(nn.Module):
    """A block whose norms are modulated at the latent tokens, by the latent itself; without layer scale."""

    def __init__(self, size: TransformerSize, latent_channels: int) -> None:
        super().__init__()
        self.attn, self.mlp = Attention(size.width, size.heads), Mlp(size.width)
        self.adaLN_modulation = modulation(latent_channels, 4 * size.width)

    def forward(self, x: Tensor, rotation: Rotation | None, latents: Tensor) -> Tensor:
        """Return [n,l,w] of [n,l,w], the last k of them the tokens of ``latents`` [n,k,d]."""
        shift_attention, scale_attention, shift_mlp, scale_mlp = self.adaLN_modulation(latents).chunk(4, dim=-1)
        x = x + self.attn(modulated_norm(x, shift_attention, scale_attention), rotation)
        return x + self.mlp(modulated_norm(x, shift_mlp, scale_mlp))


class ModulatedNorm(nn.Module):
    """The last norm of a transformer of modulated blocks."""

    def __init__(self, width: int, latent_channels: int) -> None:
        super().__init__()
        self.adaLN_modulation = modulation(latent_channels, 2 * width)

    def forward(self, x: Tensor, latents: Tensor) -> Tensor:
        """Return [n,l,w] of [n,l,w] and of latents [n,k,d]."""
        return modulated_norm(x, *self.adaLN_modulation(latents).chunk(2, dim=-1))
