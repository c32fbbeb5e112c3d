"""What every training loop here shares: the learning rate over steps and the average of the weights."""

import math
from collections.abc import Iterable

import torch
from torch import Tensor


def learning_rate(step: int, *, steps: int, peak: float, final: float, warmup: int) -> float:
    """Return the rate of optimiser step ``step`` (from 0): linear warm-up to ``peak``, then half a cosine to ``final``."""
    if step < warmup:
        return peak * (step + 1) / warmup
    done = (step - warmup) / max(1, steps - warmup)
    return final + (peak - final) * (1 + math.cos(math.pi * done)) / 2


@torch.no_grad()
def update_average(average: Iterable[Tensor], weights: Iterable[Tensor], decay: float, step: int) -> None:
    """Move averaged weights after ``step`` steps; the decay grows to ``decay`` so that the start is forgotten."""
    decay = min(decay, (1 + step) / (10 + step))
    for mine, current in zip(average, weights, strict=True):
        mine.lerp_(current, 1 - decay)
