"""The network against a plain float64 implementation that works on the published names, and the published sizes."""

import math
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from latentlab.errors import UserError
from mind.baselines.published_keys import published_name
from mind.baselines.transformer import LatentTransformer
from mind.baselines.transformer_config import TransformerConfig, sized
from mind.baselines.transformer_layers import patchify, unpatchify

State = Mapping[str, Tensor]
SMALL: dict[str, Any] = {"depth": 2, "width": 32, "heads": 2, "num_classes": 5, "input": (8, 4), "in_channels": 3}


def model_of(**fields: Any) -> LatentTransformer:
    """A small model whose every weight matters."""
    torch.manual_seed(0)
    model = LatentTransformer(TransformerConfig(**{**SMALL, **fields}))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model.eval().requires_grad_(False)


def inputs(config: TransformerConfig, batch: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    source = torch.Generator().manual_seed(5)
    x = torch.randn(batch, *config.latent_shape, generator=source)
    return x, torch.rand(batch, generator=source), torch.tensor([0, 4, config.null_class])[:batch]


# The plain implementation: loops over patches and tokens, explicit softmax, rotations as complex numbers.


def linear(p: State, name: str, x: Tensor) -> Tensor:
    return torch.einsum("...i,oi->...o", x, p[f"{name}.weight"]) + p[f"{name}.bias"]


def silu(x: Tensor) -> Tensor:
    return x / (1 + torch.exp(-x))


def normalised(p: State, name: str, x: Tensor, config: TransformerConfig, eps: float = 1e-6) -> Tensor:
    if config.norm == "rmsnorm":
        return x / ((x**2).mean(-1, keepdim=True) + 1e-6).sqrt() * p[f"{name}.weight"]
    centred = x - x.mean(-1, keepdim=True)
    unit = centred / ((centred**2).mean(-1, keepdim=True) + eps).sqrt()
    return unit * p[f"{name}.weight"] + p[f"{name}.bias"] if f"{name}.weight" in p else unit


def wave(value: float, count: int) -> tuple[list[float], list[float]]:
    angles = [value / 10000 ** (i / count) for i in range(count)]
    return [math.sin(a) for a in angles], [math.cos(a) for a in angles]


def places(config: TransformerConfig) -> list[tuple[int, ...]]:
    if len(config.patches) == 1:
        return [(i,) for i in range(config.patches[0])]
    return [(i, j) for i in range(config.patches[0]) for j in range(config.patches[1])]


def tokens_of(p: State, x: Tensor, config: TransformerConfig) -> Tensor:
    s, weight, rows = config.patch, p["x_embedder.proj.weight"], []
    for place in places(config):
        if len(place) == 2:
            i, j = place
            part = x[:, :, i * s : (i + 1) * s, j * s : (j + 1) * s].flatten(1)  # c, row, column
        else:
            part = x[:, place[0] * s : (place[0] + 1) * s].flatten(1)
        added = torch.zeros(config.width, dtype=torch.float64)
        if config.position != "rope":
            share = config.width // len(place) // 2
            added = torch.tensor([v for at in reversed(place) for half in wave(at, share) for v in half]).double()
        rows.append(part @ weight.flatten(1).T + p["x_embedder.proj.bias"] + added)
    return torch.stack(rows, 1)


def attention(p: State, name: str, x: Tensor, config: TransformerConfig) -> Tensor:
    b, length, h = x.shape
    m = h // config.heads
    q, k, v = linear(p, f"{name}.qkv", x).view(b, length, 3, config.heads, m).unbind(2)
    if config.qk_norm:
        q, k = (normalised(p, f"{name}.{which}_norm", y, config, 1e-5) for which, y in (("q", q), ("k", k)))
    if config.position != "sinusoidal":
        share = m // 2 // len(config.patches)
        angles = [[at / 10000 ** (i / share) for at in place for i in range(share)] for place in places(config)]
        turns = torch.exp(1j * torch.tensor(angles, dtype=torch.float64))[:, None, :]
        q, k = (
            torch.view_as_real(torch.view_as_complex(y.unflatten(-1, (-1, 2)).contiguous()) * turns).flatten(-2)
            for y in (q, k)
        )
    scores = torch.einsum("bqnm,bknm->bnqk", q, k) / math.sqrt(m)
    weights = scores.exp() / scores.exp().sum(-1, keepdim=True)
    return linear(p, f"{name}.proj", torch.einsum("bnqk,bknm->bqnm", weights, v).reshape(b, length, h))


def feed_forward(p: State, name: str, x: Tensor, config: TransformerConfig) -> Tensor:
    if config.ffn == "swiglu":
        both = linear(p, f"{name}.w12", x)
        inner = both.shape[-1] // 2
        return linear(p, f"{name}.w3", silu(both[..., :inner]) * both[..., inner:])
    y = linear(p, f"{name}.fc1", x)
    return linear(p, f"{name}.fc2", 0.5 * y * (1 + torch.tanh(math.sqrt(2 / math.pi) * (y + 0.044715 * y**3))))


def plain(state: State, x: Tensor, t: Tensor, y: Tensor, config: TransformerConfig) -> Tensor:
    """Output, float64, by the published names."""
    p = {name: tensor.double() for name, tensor in state.items()}
    hidden = tokens_of(p, x.double(), config)
    waves = torch.tensor([[*wave(float(v), 128)[1], *wave(float(v), 128)[0]] for v in t]).double()  # cosines first
    cond = linear(p, "t_embedder.mlp.2", silu(linear(p, "t_embedder.mlp.0", waves)))
    cond = silu(cond + p["y_embedder.embedding_table.weight"][y])
    for i in range(config.depth):
        name = f"blocks.{i}"
        parts = [v[:, None] for v in linear(p, f"{name}.adaLN_modulation.1", cond).chunk(6, -1)]
        read = normalised(p, f"{name}.norm1", hidden, config) * (1 + parts[1]) + parts[0]
        hidden = hidden + parts[2] * attention(p, f"{name}.attn", read, config)
        read = normalised(p, f"{name}.norm2", hidden, config) * (1 + parts[4]) + parts[3]
        hidden = hidden + parts[5] * feed_forward(p, f"{name}.mlp", read, config)
    shift, scale = (v[:, None] for v in linear(p, "final_layer.adaLN_modulation.1", cond).chunk(2, -1))
    out = linear(p, "final_layer.linear", normalised(p, "final_layer.norm_final", hidden, config) * (1 + scale) + shift)
    return put_together(out, config)


def put_together(out: Tensor, config: TransformerConfig) -> Tensor:
    s, c = config.patch, config.out_channels
    if config.tokens is not None:
        image = torch.zeros(len(out), config.tokens, c, dtype=torch.float64)
        for token in range(config.patches[0]):
            image[:, token * s : (token + 1) * s] = out[:, token].view(-1, s, c)
        return image
    image = torch.zeros(len(out), c, *config.sides, dtype=torch.float64)
    for token, (i, j) in enumerate(places(config)):
        image[:, :, i * s : (i + 1) * s, j * s : (j + 1) * s] = out[:, token].view(-1, s, s, c).permute(0, 3, 1, 2)
    return image


VARIANTS: list[dict[str, Any]] = [
    {"kind": "sit"},
    {"kind": "dit"},
    {"kind": "lightningdit"},
    {"kind": "lightningdit", "position": "both", "patch": 1, "input": (2, 3)},
    {"kind": "sit", "qk_norm": True, "patch": 1, "input": None, "tokens": 6},
    {"kind": "lightningdit", "input": None, "tokens": 6, "patch": 2},
]


@pytest.mark.parametrize("fields", VARIANTS)
def test_network_equals_the_plain_one(fields: dict[str, Any]) -> None:
    model = model_of(**fields)
    x, t, y = inputs(model.config)
    tolerance = 2e-5
    if model.config.kind == "dit":
        t = torch.tensor([0, 437, 999])
        tolerance = 1e-3  # an angle of 999 has a rounding error of 3e-5 in float32
    state = {published_name(name): tensor for name, tensor in model.state_dict().items()}
    torch.testing.assert_close(model(x, t, y).double(), plain(state, x, t, y, model.config), rtol=1e-4, atol=tolerance)


@pytest.mark.parametrize(
    ("name", "millions", "exact"),
    [
        ("dit-s", 33, 32_963_360), ("dit-b", 130, 130_512_416), ("dit-l", 458, 458_102_816), ("dit-xl", 675, 675_129_632),
        ("sit-s", 33, None), ("sit-b", 130, None), ("sit-l", 458, None), ("sit-xl", 675, None),
        ("lightningdit-s", 33, None), ("lightningdit-b", 130, None), ("lightningdit-l", 458, None),
        ("lightningdit-xl", 675, None),
    ],
)  # fmt: skip
def test_published_parameter_counts(name: str, millions: int, exact: int | None) -> None:
    """DiT's own log counts the fixed positions too: 675,129,632 for XL/2.

    Each exact number is the sum over the published shapes: with h, depth n, 4 channels in and 8 out, patch 2 and 1001 classes,
    n(18 h^2 + 15 h) + patches 17 h + time 257 h + h^2 + h + classes 1001 h + head 2 h^2 + 2 h + 32 h + 32 + positions 256 h.
    """
    config = sized(name)
    with torch.device("meta"):
        model = LatentTransformer(config)
    total = sum(p.numel() for p in model.parameters())
    assert abs(total / 1e6 - millions) < 0.6
    if exact is not None:
        h, n = config.width, config.depth
        assert total + sum(b.numel() for b in model.buffers()) == exact
        shapes = n * (18 * h * h + 15 * h) + 17 * h + 257 * h + h * h + h + 1001 * h + 2 * h * h + 2 * h + 32 * h + 32
        assert exact == shapes + 256 * h


def test_released_lightningdit_has_the_parameters_of_its_log() -> None:
    """Its training log prints 675.26M for XL/1 on 16x16 latents of 32 channels, fixed positions counted, without QK-norm."""
    config = sized("lightningdit-xl", position="both", qk_norm=False, patch=1, in_channels=32, input=(16, 16))
    with torch.device("meta"):
        model = LatentTransformer(config)
    total = sum(p.numel() for p in model.parameters()) + sum(b.numel() for b in model.buffers())
    h, gate = 1152, 3072  # SwiGLU is int(2/3 4 h) wide
    block = 2 * h + 4 * (h * h + h) + (2 * gate) * (h + 1) + h * (gate + 1) + 6 * h * (h + 1)
    ends = h * 33 + h * 257 + h * (h + 1) + 1001 * h + h + 2 * h * (h + 1) + 32 * (h + 1) + 256 * h
    assert total == 28 * block + ends == 675_256_736


def test_fresh_weights_answer_zero_and_blocks_are_the_identity() -> None:
    torch.manual_seed(0)
    model = LatentTransformer(TransformerConfig(**SMALL, kind="dit"))
    x, t, y = inputs(model.config)
    assert not model(x, t, y).any()
    hidden = torch.randn(3, 8, 32)
    assert torch.equal(model.blocks[0](hidden, torch.randn(3, 32), None), hidden)
    assert 0.015 < float(model.classes.weight.detach().std()) < 0.025
    bound = math.sqrt(6 / (32 + 96))  # Xavier of the whole of queries, keys and values
    assert 0.95 * bound < float(model.blocks[0].attention.qkv.weight.detach().abs().max()) <= bound
    assert not model.blocks[1].attention.qkv.bias.any()


@pytest.mark.parametrize(("shape", "p"), [((2, 3, 6, 4), 2), ((2, 12, 5), 3), ((2, 7, 5), 1)])
def test_patches_put_together_give_the_latent_back(shape: tuple[int, ...], p: int) -> None:
    x = torch.arange(math.prod(shape)).float().view(shape)
    patches = patchify(x, p)
    if len(shape) == 4:  # in: channel, row, column; out: row, column, channel
        torch.testing.assert_close(patches, functional.unfold(x, p, stride=p).transpose(1, 2))
        patches = patches.unflatten(-1, (shape[1], p * p)).transpose(-1, -2).flatten(-2)
    assert torch.equal(unpatchify(patches, p, shape[2:] if len(shape) == 4 else shape[1:2]), x)


@pytest.mark.parametrize("recompute", ["cheap", "blocks"])
def test_recomputed_blocks_give_the_same_gradients(recompute: Any) -> None:
    gradients = []
    for chosen in ("nothing", recompute):
        model = model_of(kind="lightningdit").requires_grad_(True)
        model.recompute = chosen
        model(*inputs(model.config)).square().mean().backward()
        gradients.append([p.grad for p in model.parameters()])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("fields", [{"kind": "sit"}, {"kind": "lightningdit", "position": "both"}])
@pytest.mark.parametrize("precision", ["autocast", "bfloat16"])
def test_low_precision_is_near_and_positions_keep_theirs(fields: dict[str, Any], precision: Any) -> None:
    model = model_of(**fields)
    x, t, y = inputs(model.config)
    exact = model(x, t, y)
    low = model.set_precision(precision)(x, t, y)
    assert low.dtype == torch.float32
    assert 1e-5 < float((low - exact).norm() / exact.norm()) < 0.05
    assert model.positions is not None and model.positions.dtype == torch.float32
    again = model.set_precision("float32")(x, t, y)
    if precision == "autocast":  # its weights were never rounded
        torch.testing.assert_close(again, exact)


def test_unknown_precision() -> None:
    with pytest.raises(UserError, match="unknown precision 'half'"):
        model_of().set_precision("half")  # type: ignore[arg-type]
