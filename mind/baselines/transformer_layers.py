"""The layers of DiT, SiT and LightningDiT: patches, blocks and head under the condition of time and class.

Shapes: b batch, c channels, l tokens, h width, p side of a patch, m width of a head.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from mind.baselines.positions import rotate_pairs
from mind.baselines.transformer_config import TransformerConfig
from mind.layers import modulate, zero_linear


class Rotary(NamedTuple):
    """Tables [l,m/2] of `rotate_pairs`."""

    cosine: Tensor
    sine: Tensor


def patchify(x: Tensor, p: int) -> Tensor:
    """Return the patches [b,l,c p p] of grids [b,c,h,w] (numbers in the order c, row, column), or [b,l/p,p c] of sequences."""
    if x.ndim == 3:
        return x.reshape(len(x), x.shape[1] // p, p * x.shape[2])
    b, c, h, w = x.shape
    return x.view(b, c, h // p, p, w // p, p).permute(0, 2, 4, 1, 3, 5).reshape(b, (h // p) * (w // p), c * p * p)


def unpatchify(x: Tensor, p: int, sides: tuple[int, ...]) -> Tensor:
    """Return grids [b,c,h,w] of patches [b,l,p p c] (numbers in the order row, column, c), or sequences [b,l p,c] of [b,l,p c].

    Args:
        x: what the head computes.
        p: side of a patch.
        sides: (h, w) or (l p,).
    """
    c = x.shape[-1] // p ** len(sides)
    if len(sides) == 1:
        return x.reshape(len(x), sides[0], c)
    h, w = sides
    return x.view(len(x), h // p, w // p, p, p, c).permute(0, 5, 1, 3, 2, 4).reshape(len(x), c, h, w)


class RmsNorm(nn.Module):
    """Division by the root mean square of the last dimension, in float32, with a weight."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise; float32 whatever comes in."""
        with torch.autocast(x.device.type, enabled=False):
            return functional.rms_norm(x.float(), self.weight.shape, self.weight.float(), 1e-6)


def _block_norm(config: TransformerConfig) -> nn.Module:
    if config.norm == "rmsnorm":
        return RmsNorm(config.width)
    return nn.LayerNorm(config.width, elementwise_affine=False, eps=1e-6)


def _head_norm(config: TransformerConfig) -> nn.Module:
    if not config.qk_norm:
        return nn.Identity()
    return RmsNorm(config.head_dim) if config.norm == "rmsnorm" else nn.LayerNorm(config.head_dim)


class SwiGlu(nn.Module):
    """Feed-forward layer with a gate, SiLU(a) * b (arXiv 2002.05202); 8/3 as wide, so as large as the MLP four times as wide."""

    def __init__(self, width: int) -> None:
        super().__init__()
        inner = 8 * width // 3
        self.gate_value = nn.Linear(width, 2 * inner)
        self.out = nn.Linear(inner, width)

    def forward(self, x: Tensor) -> Tensor:
        """Map [...,h] to [...,h]."""
        gate, value = self.gate_value(x).chunk(2, dim=-1)
        mapped: Tensor = self.out(functional.silu(gate) * value)
        return mapped


def _feed_forward(config: TransformerConfig) -> nn.Module:
    h = config.width
    if config.ffn == "swiglu":
        return SwiGlu(h)
    return nn.Sequential(nn.Linear(h, 4 * h), nn.GELU(approximate="tanh"), nn.Linear(4 * h, h))


class Attention(nn.Module):
    """Self-attention over all tokens."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self._heads = config.heads
        self.qkv = nn.Linear(config.width, 3 * config.width)
        self.q_norm, self.k_norm = _head_norm(config), _head_norm(config)
        self.out = nn.Linear(config.width, config.width)

    def forward(self, x: Tensor, rotary: Rotary | None) -> Tensor:
        """Map [b,l,h] to [b,l,h]."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self._heads, -1)).permute(2, 0, 3, 1, 4)  # [b,heads,l,m] each
        q, k = self.q_norm(q), self.k_norm(k)
        if rotary is not None:
            q, k = rotate_pairs(q, *rotary), rotate_pairs(k, *rotary)
        attended = functional.scaled_dot_product_attention(q.to(v.dtype), k.to(v.dtype), v)
        mixed: Tensor = self.out(attended.transpose(1, 2).flatten(2))
        return mixed


class TransformerBlock(nn.Module):
    """Attention and feed-forward layer, shifted, scaled and gated by the condition (adaLN-zero, arXiv 2212.09748)."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.norm1, self.norm2 = _block_norm(config), _block_norm(config)
        self.attention = Attention(config)
        self.mlp = _feed_forward(config)
        self.modulation = zero_linear(config.width, 6 * config.width)

    def forward(self, x: Tensor, cond: Tensor, rotary: Rotary | None) -> Tensor:
        """Return hidden states [b,l,h] after this block, given the condition [b,h] and the rotations, if any."""
        dtype = cond.dtype  # normalisations answer in float32
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(cond).chunk(6, dim=-1)
        read = modulate(self.norm1(x), shift1, scale1).to(dtype)
        x = x + gate1.unsqueeze(1) * self.attention(read, rotary)
        read = modulate(self.norm2(x), shift2, scale2).to(dtype)
        return x + gate2.unsqueeze(1) * self.mlp(read)


class Head(nn.Module):
    """Hidden states [b,l,h] to patches [b,l,p p c]; starts at zero."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.norm = _block_norm(config)
        self.linear = zero_linear(config.width, config.patch ** len(config.sides) * config.out_channels)
        self.modulation = zero_linear(config.width, 2 * config.width)

    def forward(self, hidden: Tensor, cond: Tensor) -> Tensor:
        """Return patches given the condition [b,h]."""
        shift, scale = self.modulation(cond).chunk(2, dim=-1)
        patches: Tensor = self.linear(modulate(self.norm(hidden), shift, scale).to(cond.dtype))
        return patches
