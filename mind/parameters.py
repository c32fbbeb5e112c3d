"""What identifies the parameters of a network, and what of them goes into a weight file."""

import hashlib

import torch
from torch import Tensor, nn


def exported_weights(network: nn.Module, dtype: torch.dtype) -> dict[str, Tensor]:
    """Return the state dict of ``network`` with its parameters in ``dtype``; tables, which are computed, stay as they are."""
    tables = dict(network.named_buffers())
    return {name: value if name in tables else value.to(dtype) for name, value in network.state_dict().items()}


def parameters_digest(network: nn.Module) -> str:
    """Return the SHA-256 of all parameters and buffers, for a network that comes from no file."""
    seen = hashlib.sha256()
    for name, tensor in network.state_dict().items():
        seen.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        seen.update(tensor.cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return seen.hexdigest()
