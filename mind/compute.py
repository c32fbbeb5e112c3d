"""What training costs: the floating-point operations of one step, as torch counts them on the very batch that is trained on."""

from collections.abc import Iterable

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

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


def parameter_count(recipe: Recipe) -> int:
    """Return the number of trained parameters."""
    with torch.device("meta"):
        return sum(p.numel() for p in recipe.network().parameters() if p.requires_grad)
