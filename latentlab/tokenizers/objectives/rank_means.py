"""Means over the ranks of a training run, through which gradients flow."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


class _Mean(torch.autograd.Function):
    """The mean over ranks of a tensor; every rank's gradient counts, as every rank's loss depends on every rank's tensor."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        return _reduced(tensor)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return _reduced(gradient)


def _reduced(tensor: Tensor) -> Tensor:
    total = tensor.clone().contiguous()
    dist.all_reduce(total)
    return total / dist.get_world_size()


def mean_over_ranks(tensor: Tensor) -> Tensor:
    """Return the mean over all ranks, with its gradient; every rank must call it. A process by itself gets ``tensor`` back."""
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return tensor
    mean: Tensor = _Mean.apply(tensor)
    return mean
