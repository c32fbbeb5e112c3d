"""Which activations of a transformer block are kept for the backward pass, and which are computed again."""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import torch
from torch import nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

Recompute = Literal["nothing", "cheap", "blocks"]
"""``nothing`` keeps all; ``cheap`` keeps the results of attention and of all matrix products but the square ones, and computes
the rest (norms, modulation, activations, rotations) again: half the memory for a few percent of the time; ``blocks`` keeps
only what goes into each block: least memory, about a third more time. Logits over a codebook are kept with ``nothing`` only."""

_aten = torch.ops.aten
_PRODUCTS = (_aten.mm.default, _aten.addmm.default)
_ATTENTION = tuple(
    getattr(_aten, name).default
    for name in (
        "_scaled_dot_product_flash_attention", "_scaled_dot_product_flash_attention_for_cpu",
        "_scaled_dot_product_efficient_attention", "_scaled_dot_product_cudnn_attention",
    )
    if hasattr(_aten, name)
)  # fmt: skip


_SMALL = 10_000_000
"""Parameters below which activations are few, and telling one operation from another nearly doubles a step on a CPU."""


def default_recompute(network: nn.Module) -> Recompute:
    """Return ``nothing`` for a small network (10 million parameters), ``cheap`` for a larger one."""
    return "nothing" if sum(parameter.numel() for parameter in network.parameters()) < _SMALL else "cheap"


def run_block(block: Callable[..., Any], recompute: Recompute, *inputs: Any) -> Any:
    """Return ``block(*inputs)``; while gradients are recorded, keep for them what ``recompute`` says."""
    if recompute == "nothing" or not torch.is_grad_enabled():
        return block(*inputs)
    if recompute == "blocks":
        return checkpoint(block, *inputs, use_reentrant=False)
    return checkpoint(block, *inputs, use_reentrant=False, context_fn=_keeping_what_is_dear)


def _policy(context: Any, operation: Any, *arguments: Any, **options: Any) -> CheckpointPolicy:
    """Keep attention and products with a matrix that is not square: those give the least for a number that is kept."""
    if operation in _ATTENTION:
        return CheckpointPolicy.MUST_SAVE
    if operation in _PRODUCTS and arguments[-1].shape[0] != arguments[-1].shape[1]:
        return CheckpointPolicy.MUST_SAVE
    return CheckpointPolicy.PREFER_RECOMPUTE


_keeping_what_is_dear = partial(create_selective_checkpoint_contexts, _policy)
