"""Which activations of a transformer block are kept for the backward pass, and which are computed again."""

from functools import partial
from typing import Any, Literal

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

Recompute = Literal["nothing", "cheap", "blocks"]
"""``nothing`` keeps all; ``cheap`` keeps the results of matrix products and attention, and computes the rest (norms, modulation,
activations, rotations) again: less than half the memory at almost no time; ``blocks`` keeps only what goes into each block: least
memory, about a third more time."""

_aten = torch.ops.aten
_KEPT = [
    getattr(_aten, name).default
    for name in (
        "mm", "addmm", "bmm", "_scaled_dot_product_flash_attention", "_scaled_dot_product_flash_attention_for_cpu",
        "_scaled_dot_product_efficient_attention", "_scaled_dot_product_cudnn_attention",
    )
    if hasattr(_aten, name)
]  # fmt: skip
_keeping_products = partial(create_selective_checkpoint_contexts, _KEPT)


def run_block(block: nn.Module, recompute: Recompute, *inputs: Any) -> Any:
    """Return ``block(*inputs)``; while gradients are recorded, keep for them what ``recompute`` says."""
    if recompute == "nothing" or not torch.is_grad_enabled():
        return block(*inputs)
    if recompute == "blocks":
        return checkpoint(block, *inputs, use_reentrant=False)
    return checkpoint(block, *inputs, use_reentrant=False, context_fn=_keeping_products)
