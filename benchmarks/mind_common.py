"""What the MIND benchmarks share: two contestants timed in turns, and a plain MIND to compete with.

The plain model is what an experienced user writes from the paper with torch's usual building blocks: attention as two products
around a softmax that exists in full, one big linear layer for the logits of all tokens, losses by autograd. It reads the weights
of a `mind.network.Mind` with 1-D positions, so that losses and gradients can be compared.
"""

import math
import statistics
import time
from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.nn import functional

from mind.layers import Block, FourierMapper, Head, ResidualMapper
from mind.network import Mind
from mind.objective import SoftTopK


def medians(
    runs: Mapping[str, Callable[[], object]], repeats: int, device: torch.device, warm_up: int = 1
) -> dict[str, float]:
    """Return the median seconds of every one of ``runs``, taken in turns after ``warm_up`` turns that do not count."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(warm_up + repeats):
        for name, run in runs.items():
            synchronise(device)
            start = time.perf_counter()
            run()
            synchronise(device)
            if turn >= warm_up:
                seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(found) for name, found in seconds.items()}


def synchronise(device: torch.device) -> None:
    """Wait until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def device_name(device: torch.device) -> str:
    """Return what to print for the device."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"


def plain_logits(model: Mind, x: Tensor, t: Tensor, labels: Tensor) -> Tensor:
    """Return logits [b,l,v] of states ``x`` [b,l,d] at times ``t`` [b] (1 is data)."""
    cond = functional.silu(model.time.mlp(_waves(t, 256, 10000.0))) + model.classes(labels)
    hidden = _plain_fourier(model.fourier, x)
    if model.residual is not None:
        hidden = hidden + _plain_residual(model.residual, x)
    for block in model.blocks:
        hidden = _plain_block(block, hidden, cond, model.config.num_heads)
    return _plain_head(model.head, hidden, cond)


def plain_loss(model: Mind, soft: SoftTopK, indices: Tensor, labels: Tensor, t: Tensor, eps: Tensor) -> Tensor:
    """Return the loss of algorithm 1 with every logit at once; arguments as in `mind.objective.MindObjective`."""
    config = model.config
    parts = model.table.embedding.view(config.vocab_size, -1, config.subvector_size)
    vectors = (parts / (parts.norm(dim=-1, keepdim=True) + 1e-6)).flatten(1)
    z = vectors[indices]
    x = config.signal_factor * t.sqrt()[:, None, None] * z + config.noise_factor * (1 - t).sqrt()[:, None, None] * eps
    logits = plain_logits(model, x, t, labels)
    cross_entropy = -functional.log_softmax(logits.float(), -1).gather(-1, indices[..., None]).mean()
    values, kept = logits.float().topk(soft.k, dim=-1)
    weights = functional.softmax(values, -1)
    weights = weights / (weights.sum(-1, keepdim=True) + 1e-5)
    mean = (weights[..., None] * vectors[kept]).sum(-2)
    estimate = mean / (mean.norm(dim=-1, keepdim=True) + 1e-6)
    return cross_entropy + soft.weight * (estimate - z).square().mean()


def _waves(values: Tensor, width: int, period: float) -> Tensor:
    frequencies = torch.exp(-math.log(period) * torch.arange(width // 2, device=values.device) / (width // 2))
    angles = values[..., None] * frequencies
    return torch.cat([torch.cos(angles), torch.sin(angles)], -1)


def _plain_fourier(mapper: FourierMapper, x: Tensor) -> Tensor:
    phase = 2 * math.pi * mapper.frequencies(x)
    return mapper.mlp(torch.cat([torch.sin(phase), torch.cos(phase)], -1))


def _plain_residual(mapper: ResidualMapper, x: Tensor) -> Tensor:
    return mapper.mlp(_waves(x, 1024 // x.shape[-1], 1000.0).flatten(-2))


def _plain_norm(x: Tensor, weight: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    normal = functional.layer_norm(x.float(), weight.shape, weight, None, 1e-5)
    return normal * (1 + scale[:, None]) + shift[:, None]


def _plain_block(block: Block, x: Tensor, cond: Tensor, heads: int) -> Tensor:
    shift1, scale1, gate1, shift2, scale2, gate2 = block.modulation(cond).chunk(6, -1)
    attended = _plain_attention(block, _plain_norm(x, block.norm1.weight, shift1, scale1), heads)
    x = x + gate1[:, None] * attended
    return x + gate2[:, None] * block.mlp(_plain_norm(x, block.norm2.weight, shift2, scale2))


def _plain_attention(block: Block, x: Tensor, heads: int) -> Tensor:
    h = x.shape[-1]
    q, k, v = (part.unflatten(-1, (heads, h // heads)).transpose(1, 2) for part in block.qkv(x).chunk(3, -1))
    scores = _plain_rotation(q) @ _plain_rotation(k).transpose(-1, -2) / math.sqrt(h // heads)
    return block.out((functional.softmax(scores, -1) @ v).transpose(1, 2).flatten(2))


def _plain_rotation(x: Tensor) -> Tensor:
    half = x.shape[-1] // 2
    frequencies = 10000.0 ** (-torch.arange(half, device=x.device) / half)
    angles = torch.arange(x.shape[-2], device=x.device)[:, None] * frequencies
    angles = torch.cat([angles, angles], -1)
    turned = torch.cat([-x[..., half:], x[..., :half]], -1)
    return x * angles.cos().to(x.dtype) + turned * angles.sin().to(x.dtype)


def _plain_head(head: Head, hidden: Tensor, cond: Tensor) -> Tensor:
    shift, scale = head.modulation(cond).chunk(2, -1)
    return head.linear(_plain_norm(hidden, head.norm.weight, shift, scale))
