"""Random numbers as a pure function of (seed, stream, sample, step): no state, any device, any batch.

Sample i gets the same numbers alone, in a batch of 1,000, on another rank or after a restart. The generator is SplitMix64
(Steele, Lea and Flood 2014, doi 10.1145/2660193.2660195) with one starting state per (seed, stream, step, sample), which makes it
counter-based: number j is a hash of the state and j. Normals are Box-Muller pairs of the two halves of one 64-bit number.
"""

import hashlib
import math
from collections.abc import Sequence

import torch
from torch import Tensor


def _signed(value: int) -> int:
    """Return an unsigned 64-bit number as the signed one of the same bits; int64 arithmetic then wraps as it should."""
    return value - (1 << 64) if value >= 1 << 63 else value


_GAMMA = _signed(0x9E3779B97F4A7C15)
_MIX_1, _MIX_2 = _signed(0xBF58476D1CE4E5B9), _signed(0x94D049BB133111EB)
_HALF = 1 << 32


def uniform(seed: int, stream: str, index: Tensor, step: int, shape: Sequence[int]) -> Tensor:
    """Return numbers uniform in (0,1), float32 [b,*shape].

    Args:
        seed: of the run.
        stream: name of the purpose; different names are independent.
        index: sample numbers, int64 [b]; their device is that of the result.
        step: of training or sampling.
        shape: of what one sample needs.
    """
    bits = _bits(seed, stream, index, step, math.prod(shape))
    return ((_shifted(bits, 41) + 0.5) / (1 << 23)).view(len(index), *shape)


def normal(seed: int, stream: str, index: Tensor, step: int, shape: Sequence[int]) -> Tensor:
    """Return numbers of N(0,1), float32 [b,*shape], with arguments as in `uniform`."""
    count = math.prod(shape)
    bits = _bits(seed, stream, index, step, (count + 1) // 2)
    radius = torch.sqrt(-2 * torch.log((_shifted(bits, 32) + 0.5) / _HALF))
    angle = ((bits & (_HALF - 1)) + 0.5) * (2 * math.pi / _HALF)
    pairs = torch.cat([radius * torch.cos(angle), radius * torch.sin(angle)], dim=1)
    return pairs[:, :count].reshape(len(index), *shape)


def _bits(seed: int, stream: str, index: Tensor, step: int, count: int) -> Tensor:
    """Return random 64-bit numbers, int64 [b,count]."""
    name = hashlib.sha256(f"{seed}/{stream}/{step}".encode()).digest()
    start = _mixed(int.from_bytes(name[:8], "little", signed=True) + (index.long() + 1) * _GAMMA)
    counter = torch.arange(1, count + 1, device=index.device) * _GAMMA
    return _mixed(start[:, None] + counter)


def _mixed(z: Tensor) -> Tensor:
    """Return SplitMix64's output function of int64 states."""
    z = (z ^ _shifted(z, 30)) * _MIX_1
    z = (z ^ _shifted(z, 27)) * _MIX_2
    return z ^ _shifted(z, 31)


def _shifted(z: Tensor, by: int) -> Tensor:
    """Return ``z`` shifted right by ``by`` bits, zeros moving in."""
    return (z >> by) & ((1 << (64 - by)) - 1)
