"""The layers of MIND's transformer: input branches, conditions, rotary attention blocks, head.

MIND, arXiv 2606.00094, section 3.2 and its released evaluation code; the blocks are those of SEDD and MDLM (arXiv 2310.16834,
2406.07524). Shapes: b batch, l tokens, d embedding width, h hidden, c condition width, v vocabulary.
"""

import math
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from mind.config import SINUSOID_WIDTH, MindConfig

_FREQUENCIES = 256
_TIME_WIDTH = 256
_ROTARY_BASE = 10000.0


def sinusoid(values: Tensor, width: int, period: float) -> Tensor:
    """Return [cos, sin] of ``values`` [...] at frequencies period^(-i/(width/2)), float32 [...,width]."""
    half = width // 2
    frequencies = torch.exp(-math.log(period) / half * torch.arange(half, dtype=torch.float32, device=values.device))
    angles = values.float().unsqueeze(-1) * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


class FourierMapper(nn.Module):
    """High-frequency input branch: sines and cosines of learned directions, then an MLP; [b,l,d] -> [b,l,h]."""

    def __init__(self, config: MindConfig) -> None:
        super().__init__()
        width = config.mapper_width or max(512, 2 * config.hidden_size)
        self.frequencies = nn.Linear(config.embed_dim, _FREQUENCIES, bias=False)
        self.mlp = nn.Sequential(
            nn.Linear(2 * _FREQUENCIES, width), nn.LayerNorm(width), nn.GELU(),
            nn.Linear(width, width), nn.LayerNorm(width), nn.GELU(),
            nn.Linear(width, config.hidden_size),
        )  # fmt: skip
        self._initialise(config)

    def _initialise(self, config: MindConfig) -> None:
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                nn.init.xavier_uniform_(layer.weight)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)
        if config.freq_init == "normal":
            nn.init.normal_(self.frequencies.weight, std=config.freq_std)

    def forward(self, x: Tensor) -> Tensor:
        """Map states [b,l,d] to [b,l,h]."""
        phase = 2 * math.pi * self.frequencies(x)
        mapped: Tensor = self.mlp(torch.cat([phase.sin(), phase.cos()], dim=-1))
        return mapped


class ResidualMapper(nn.Module):
    """Residual input branch: fixed sinusoids of every coordinate, then an MLP that starts at zero; [b,l,d] -> [b,l,h]."""

    def __init__(self, config: MindConfig) -> None:
        super().__init__()
        self._width = SINUSOID_WIDTH // config.embed_dim
        h = config.hidden_size
        widths = [SINUSOID_WIDTH, h // 2, h, 2 * h, 2 * h, h]
        layers: list[nn.Module] = []
        for before, after in pairwise(widths[:-1]):
            layers += [nn.Linear(before, after, bias=False), nn.LayerNorm(after), nn.SiLU()]
        last = nn.Linear(widths[-2], widths[-1], bias=False)
        nn.init.zeros_(last.weight)
        self.mlp = nn.Sequential(*layers, last)

    def forward(self, x: Tensor) -> Tensor:
        """Map states [b,l,d] to [b,l,h]."""
        waves = sinusoid(x, self._width, period=1000.0).flatten(-2)  # coordinate after coordinate
        mapped: Tensor = self.mlp(waves.to(weight_dtype(self.mlp)))
        return mapped


class TimeEmbedding(nn.Module):
    """Times [b] in [0,1] (1 is data) to [b,c]."""

    def __init__(self, cond_dim: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(_TIME_WIDTH, cond_dim), nn.SiLU(), nn.Linear(cond_dim, cond_dim))

    def forward(self, t: Tensor) -> Tensor:
        """Embed raw times, not multiplied by 1000."""
        embedded: Tensor = self.mlp(sinusoid(t, _TIME_WIDTH, period=10000.0).to(weight_dtype(self.mlp)))
        return embedded


class ScaleNorm(nn.Module):
    """Layer normalisation in float32 with a weight and no bias."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise the last dimension; float32 whatever comes in."""
        with torch.autocast(x.device.type, enabled=False):
            return functional.layer_norm(x.float(), self.weight.shape, self.weight.float(), None, 1e-5)


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Return x (1 + scale) + shift with one shift and scale [b,h] per image."""
    return x * (1 + scale.unsqueeze(1)) + shift.unsqueeze(1)


class RotaryPositions(nn.Module):
    """Rotations of queries and keys by position (RoPE, arXiv 2104.09864), over the sequence or over rows and columns."""

    inv_freq: Tensor

    def __init__(self, config: MindConfig) -> None:
        super().__init__()
        half = config.head_dim // 2
        self._grid = config.grid if config.rope == "2d" else None
        self._dtype = getattr(torch, config.rope_dtype)
        self.register_buffer("inv_freq", _ROTARY_BASE ** (-torch.arange(half, dtype=torch.float32) / half))

    def forward(self, length: int) -> tuple[Tensor, Tensor]:
        """Return cosine and sine tables [l, head_dim/2] for ``length`` tokens."""
        angles = self._angles(length)
        return angles.cos(), angles.sin()

    def _angles(self, length: int) -> Tensor:
        """Return angles [l, head_dim/2] in the precision of the tables: bfloat16 rounds even the products, as released."""
        frequencies = self.inv_freq.to(self._dtype)
        positions = torch.arange(length, device=frequencies.device)
        if self._grid is None:
            return positions.to(self._dtype)[:, None] * frequencies
        columns = self._grid[1]
        rows, columns_of = (p.to(self._dtype)[:, None] for p in (positions // columns, positions % columns))
        return torch.cat([rows * frequencies[::2], columns_of * frequencies[::2]], dim=-1)


def rotate(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Rotate the pairs (first half, second half) of the last dimension of ``x`` [b,heads,l,2m] by tables [l,m]."""
    first, second = x.chunk(2, dim=-1)
    cosine, sine = cosine.to(x.dtype), sine.to(x.dtype)
    return torch.cat([first * cosine - second * sine, second * cosine + first * sine], dim=-1)


class Block(nn.Module):
    """A transformer block whose two branches are shifted, scaled and gated by the condition (adaLN-zero, arXiv 2212.09748)."""

    def __init__(self, config: MindConfig) -> None:
        super().__init__()
        h = config.hidden_size
        self._heads = config.num_heads
        self.norm1, self.norm2 = ScaleNorm(h), ScaleNorm(h)
        self.qkv = nn.Linear(h, 3 * h, bias=False)
        self.out = nn.Linear(h, h, bias=False)
        self.mlp = nn.Sequential(nn.Linear(h, 4 * h), nn.GELU(approximate="tanh"), nn.Linear(4 * h, h))
        self.modulation = zero_linear(config.cond_dim, 6 * h)

    def forward(self, x: Tensor, cond: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
        """Return the hidden states [b,l,h] after this block, given the condition [b,c] and rotary tables."""
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(cond).chunk(6, dim=-1)
        x = x + gate1.unsqueeze(1) * self._attention(modulate(self.norm1(x), shift1, scale1), cosine, sine)
        return x + gate2.unsqueeze(1) * self.mlp(modulate(self.norm2(x), shift2, scale2))

    def _attention(self, x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self._heads, -1)).permute(2, 0, 3, 1, 4)  # [b,heads,l,m] each
        attended = functional.scaled_dot_product_attention(rotate(q, cosine, sine), rotate(k, cosine, sine), v)
        mixed: Tensor = self.out(attended.transpose(1, 2).flatten(2))
        return mixed


class Head(nn.Module):
    """Hidden states to logits over the vocabulary."""

    def __init__(self, config: MindConfig) -> None:
        super().__init__()
        self.norm = ScaleNorm(config.hidden_size)
        self.linear = nn.Linear(config.hidden_size, config.vocab_size)  # torch's default start, not zero
        self.modulation = zero_linear(config.cond_dim, 2 * config.hidden_size)

    def features(self, hidden: Tensor, cond: Tensor) -> Tensor:
        """Return what the last linear layer sees, [b,l,h], of hidden states [b,l,h] and the condition [b,c]."""
        shift, scale = self.modulation(cond).chunk(2, dim=-1)
        return modulate(self.norm(hidden), shift, scale)

    def forward(self, hidden: Tensor, cond: Tensor) -> Tensor:
        """Return logits [b,l,v]."""
        logits: Tensor = self.linear(self.features(hidden, cond).to(self.linear.weight.dtype))
        return logits


def weight_dtype(module: nn.Module) -> torch.dtype:
    """Return the precision of a module's weights."""
    return next(module.parameters()).dtype


def zero_linear(width_in: int, width_out: int) -> nn.Linear:
    """Return a linear layer that starts at zero."""
    layer = nn.Linear(width_in, width_out)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer
