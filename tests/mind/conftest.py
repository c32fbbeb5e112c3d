"""A second, plain implementation of MIND's network: one function over a state dict with the released names, in float64.

It shares nothing with the package: no modules, explicit softmax, rotations as complex numbers, sinusoids by loops.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from mind.config import MindConfig
from mind.network import Mind

State = dict[str, Tensor]


def released_shapes(
    v: int = 16384, d: int = 16, h: int = 768, heads: int = 12, blocks: int = 14, c: int = 128, classes: int = 1000
) -> dict[str, tuple[int, ...]]:
    """Names and shapes as the released checkpoint has them; 177 entries with the defaults."""
    m = max(512, 2 * h)
    shapes: dict[str, tuple[int, ...]] = {
        "scalar": (1, 1),
        "vocab_embed.embedding": (v, d),
        "Embedding_map.freq_projector.weight": (256, d),
        "sigma_map.mlp.0.weight": (c, 256),
        "sigma_map.mlp.0.bias": (c,),
        "sigma_map.mlp.2.weight": (c, c),
        "sigma_map.mlp.2.bias": (c,),
        "y_embedder.embedding_table.weight": (classes + 1, c),
        "rotary_emb.inv_freq": (h // heads // 2,),
        "output_layer.norm_final.weight": (h,),
        "output_layer.linear.weight": (v, h),
        "output_layer.linear.bias": (v,),
        "output_layer.adaLN_modulation.weight": (2 * h, c),
        "output_layer.adaLN_modulation.bias": (2 * h,),
        "embed_proj.12.weight": (h, 2 * h),
    }
    for i, (before, after) in enumerate([(512, m), (m, m), (m, h)]):
        shapes[f"Embedding_map.feature_mlp.{3 * i}.weight"] = (after, before)
        shapes[f"Embedding_map.feature_mlp.{3 * i}.bias"] = (after,)
        if i < 2:
            for kind in ("weight", "bias"):
                shapes[f"Embedding_map.feature_mlp.{3 * i + 1}.{kind}"] = (after,)
    for i, (before, after) in enumerate([(1024, h // 2), (h // 2, h), (h, 2 * h), (2 * h, 2 * h)]):
        shapes[f"embed_proj.{3 * i}.weight"] = (after, before)
        for kind in ("weight", "bias"):
            shapes[f"embed_proj.{3 * i + 1}.{kind}"] = (after,)
    for i in range(blocks):
        for name, shape in {
            "norm1.weight": (h,), "norm2.weight": (h,), "attn_qkv.weight": (3 * h, h), "attn_out.weight": (h, h),
            "mlp.0.weight": (4 * h, h), "mlp.0.bias": (4 * h,), "mlp.2.weight": (h, 4 * h), "mlp.2.bias": (h,),
            "adaLN_modulation.weight": (6 * h, c), "adaLN_modulation.bias": (6 * h,),
        }.items():  # fmt: skip
            shapes[f"blocks.{i}.{name}"] = shape
    return shapes


def released_state(seed: int = 0, dtype: torch.dtype = torch.float32, **sizes: int) -> State:
    """Random weights under which every part of the network matters."""
    source = torch.Generator().manual_seed(seed)
    state = {}
    for name, shape in released_shapes(**sizes).items():
        noise = torch.randn(shape, generator=source)
        if name.endswith("inv_freq"):
            noise = 10000.0 ** (-torch.arange(shape[0]) / shape[0])
        elif name.endswith("freq_projector.weight"):
            noise = noise * 0.1
        elif len(shape) == 1:  # norms and biases
            noise = 0.2 * noise + (1.0 if name.endswith(".weight") else 0.0)
        elif name not in ("scalar", "vocab_embed.embedding", "y_embedder.embedding_table.weight"):
            noise = noise / math.sqrt(shape[-1])
        state[name] = noise.to(dtype)
    return state


def _linear(p: Mapping[str, Tensor], name: str, x: Tensor) -> Tensor:
    y = torch.einsum("...i,oi->...o", x, p[f"{name}.weight"])
    return y + p[f"{name}.bias"] if f"{name}.bias" in p else y


def _norm(x: Tensor, weight: Tensor, bias: Tensor | float = 0.0) -> Tensor:
    mean = x.mean(-1, keepdim=True)
    variance = ((x - mean) ** 2).mean(-1, keepdim=True)
    return (x - mean) / (variance + 1e-5).sqrt() * weight + bias


def _wave(value: Tensor, width: int, period: float) -> Tensor:
    angles = [value * period ** (-i / (width // 2)) for i in range(width // 2)]
    return torch.stack([a.cos() for a in angles] + [a.sin() for a in angles], dim=-1)


def _high_frequency(p: Mapping[str, Tensor], x: Tensor) -> Tensor:
    phase = 2 * math.pi * torch.einsum("bld,fd->blf", x, p["Embedding_map.freq_projector.weight"])
    y = torch.cat([phase.sin(), phase.cos()], -1)
    for i in (0, 3):
        y = _linear(p, f"Embedding_map.feature_mlp.{i}", y)
        y = _norm(y, *(p[f"Embedding_map.feature_mlp.{i + 1}.{kind}"] for kind in ("weight", "bias")))
        y = 0.5 * y * (1 + torch.erf(y / math.sqrt(2)))
    return _linear(p, "Embedding_map.feature_mlp.6", y)


def _residual(p: Mapping[str, Tensor], x: Tensor) -> Tensor:
    y = torch.cat([_wave(x[..., i], 1024 // x.shape[-1], 1000.0) for i in range(x.shape[-1])], -1)
    for i in (0, 3, 6, 9):
        y = _norm(_linear(p, f"embed_proj.{i}", y), p[f"embed_proj.{i + 1}.weight"], p[f"embed_proj.{i + 1}.bias"])
        y = y * torch.sigmoid(y)
    return _linear(p, "embed_proj.12", y)


def _turns(frequencies: Tensor, places: list[tuple[int, ...]], dtype: torch.dtype) -> Tensor:
    """Complex numbers [l, half head] of modulus 1; frequency, angle, cosine and sine are each rounded to ``dtype``.

    Places are (position,) or (row, column), each axis with its share of the frequencies.
    """
    half, axes = len(frequencies), len(places[0])
    angles = torch.zeros(len(places), half, dtype=torch.float64)
    for token, place in enumerate(places):
        for axis, position in enumerate(place):
            for i in range(half // axes):
                frequency = frequencies[axes * i].to(dtype)
                angles[token, axis * (half // axes) + i] = (torch.tensor(position).to(dtype) * frequency).double()
    return torch.complex(angles.cos().to(dtype).double(), angles.sin().to(dtype).double())


def _attention(p: Mapping[str, Tensor], block: str, x: Tensor, heads: int, turns: Tensor) -> Tensor:
    b, tokens, h = x.shape
    q, k, v = _linear(p, f"{block}.attn_qkv", x).view(b, tokens, 3, heads, h // heads).permute(2, 0, 3, 1, 4)
    half = h // heads // 2
    q, k = (torch.complex(y[..., :half], y[..., half:]) * turns for y in (q, k))
    scores = torch.einsum("bnqi,bnki->bnqk", q, k.conj()).real / math.sqrt(h // heads)
    weights = scores.exp() / scores.exp().sum(-1, keepdim=True)
    mixed = torch.einsum("bnqk,bnki->bqni", weights, v).reshape(b, tokens, h)
    return _linear(p, f"{block}.attn_out", mixed)


def _modulated(p: Mapping[str, Tensor], layer: str, cond: Tensor, parts: int) -> list[Tensor]:
    return [part[:, None] for part in _linear(p, f"{layer}.adaLN_modulation", cond).chunk(parts, -1)]


def released_logits(
    state: Mapping[str, Tensor],
    x: Tensor,
    t: Tensor,
    y: Tensor,
    *,
    heads: int,
    grid: tuple[int, int] | None = None,
    rope_dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Logits float64 [b,l,v] of states [b,l,d], times [b] (1 is data) and classes [b]."""
    frequencies = state["rotary_emb.inv_freq"]
    p = {name: tensor.double() for name, tensor in state.items()}
    x, t = x.double(), t.double()
    places = (
        [(i,) for i in range(x.shape[1])] if grid is None else [(i, j) for i in range(grid[0]) for j in range(grid[1])]
    )
    turns = _turns(frequencies, places, rope_dtype)
    hidden = _high_frequency(p, x)
    if "embed_proj.0.weight" in p:
        hidden = hidden + _residual(p, x)
    time = _linear(p, "sigma_map.mlp.0", _wave(t, 256, 10000.0))
    time = _linear(p, "sigma_map.mlp.2", time * torch.sigmoid(time))
    cond = time * torch.sigmoid(time) + p["y_embedder.embedding_table.weight"][y]
    for i in range(len({name.split(".")[1] for name in p if name.startswith("blocks.")})):
        block = f"blocks.{i}"
        shift1, scale1, gate1, shift2, scale2, gate2 = _modulated(p, block, cond, 6)
        a = _norm(hidden, p[f"{block}.norm1.weight"]) * (1 + scale1) + shift1
        hidden = hidden + gate1 * _attention(p, block, a, heads, turns)
        a = _linear(p, f"{block}.mlp.0", _norm(hidden, p[f"{block}.norm2.weight"]) * (1 + scale2) + shift2)
        a = 0.5 * a * (1 + torch.tanh(math.sqrt(2 / math.pi) * (a + 0.044715 * a**3)))
        hidden = hidden + gate2 * _linear(p, f"{block}.mlp.2", a)
    shift, scale = _modulated(p, "output_layer", cond, 2)
    return _linear(p, "output_layer.linear", _norm(hidden, p["output_layer.norm_final.weight"]) * (1 + scale) + shift)


class Released:
    """What the tests get: names and shapes, random weights, and the plain forward pass."""

    shapes: Callable[..., dict[str, tuple[int, ...]]] = staticmethod(released_shapes)
    state: Callable[..., State] = staticmethod(released_state)
    logits: Callable[..., Tensor] = staticmethod(released_logits)

    tiny: ClassVar[dict[str, int]] = {"v": 50, "d": 16, "h": 32, "heads": 4, "blocks": 3, "c": 24, "classes": 7}
    """Sizes of a model that runs in milliseconds."""

    @staticmethod
    def inputs(d: int = 16, tokens: int = 12, classes: int = 7, batch: int = 3) -> tuple[Tensor, Tensor, Tensor]:
        """States, times and classes, the last one "no class"."""
        source = torch.Generator().manual_seed(5)
        x = torch.randn(batch, tokens, d, generator=source)
        t = torch.rand(batch, generator=source)
        y = torch.randint(classes, (batch,), generator=source)
        y[-1] = classes
        return x, t, y


@pytest.fixture(scope="session")
def released() -> type[Released]:
    """The second implementation."""
    return Released


def tiny_mind(**fields: Any) -> Mind:
    """A model of 16 tokens and 3 classes that answers every label differently."""
    torch.manual_seed(0)
    shape = {"vocab_size": 16, "embed_dim": 8, "subvector_size": 2, "tokens": 4, "num_classes": 3, "cond_dim": 16}
    network = {"hidden_size": 32, "num_heads": 2, "num_blocks": 2}
    model = Mind(MindConfig(**{**shape, **network, **fields})).eval()
    for parameter in model.parameters():  # fresh blocks are the identity and answer alike to every label
        torch.nn.init.normal_(parameter, std=0.25)
    return model


@pytest.fixture(scope="session")
def tiny() -> Callable[..., Mind]:
    """What builds such a model."""
    return tiny_mind


@pytest.fixture(scope="module")
def model() -> Mind:
    """One for the tests of a file."""
    return tiny_mind()
