"""What training costs: operations and seconds of one step, on the very batches that are trained on."""

import statistics
import time
from collections.abc import Iterable

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from latentlab.runtime import quick_bfloat16
from mind.recipe import Recipe


def step_operations(recipe: Recipe, steps: Iterable[int] = (0,)) -> float:
    """Return the operations (2 per multiply-add) of an optimiser step, forward and backward, averaged over ``steps``.

    Matrix products, attention and convolutions count; activations that are computed again to save memory do not, nor do the
    optimiser and what is elementwise. A masked generator costs more or less from step to step: give several.

    Args:
        recipe: its batches are those of the run.
        steps: numbers of optimiser steps.
    """
    network = recipe.network().to(recipe.device).train()
    network.set_precision("float32")
    network.recompute = "nothing"
    objective = recipe.objective(network)
    places = torch.arange(recipe.config.optimiser.batch_size)
    counts = []
    for step in steps:
        batch = recipe.batch(places % recipe.n, places, step)
        # torch counts attention as the products it is made of; its fused kernels for the CPU are unknown to the counter
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
            objective(*batch)["loss"].backward()
        counts.append(counter.get_total_flops())
    return sum(counts) / len(counts)


def step_seconds(recipe: Recipe, steps: int = 10) -> float:
    """Return the median seconds of an optimiser step: batch, forward and backward pass, and AdamW; nothing is logged or kept.

    Args:
        recipe: of the run; its precision is that of the run.
        steps: timed ones, after two that warm up.
    """
    network = recipe.network().to(recipe.device).train()
    network.set_precision(recipe.config.precision if quick_bfloat16(recipe.device) else "float32")
    objective = recipe.objective(network)
    optimiser = torch.optim.AdamW(network.parameters(), lr=1e-5)
    places = torch.arange(recipe.config.optimiser.batch_size)
    seconds = []
    for step in range(steps + 2):
        began = time.perf_counter()
        objective(*recipe.batch(places % recipe.n, places, step))["loss"].backward()
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        if recipe.device.type == "cuda":
            torch.cuda.synchronize(recipe.device)
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds[2:])


def parameter_count(recipe: Recipe) -> int:
    """Return the number of trained parameters."""
    with torch.device("meta"):
        return sum(p.numel() for p in recipe.network().parameters() if p.requires_grad)
