"""What of a network goes into a weight file."""

import torch
from torch import Tensor, nn


def exported_weights(network: nn.Module, dtype: torch.dtype) -> dict[str, Tensor]:
    """Return the state dict of ``network`` with its parameters in ``dtype``; tables, which are computed, stay as they are."""
    tables = dict(network.named_buffers())
    return {name: value if name in tables else value.to(dtype) for name, value in network.state_dict().items()}
