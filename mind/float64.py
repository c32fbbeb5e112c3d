"""Float64 on devices that have it and, for those that do not (Apple's MPS), on the CPU."""

import torch
from torch import Tensor


def has_float64(device: torch.device) -> bool:
    """Return whether tensors on ``device`` may be float64."""
    return device.type in ("cpu", "cuda")


def as_float64(values: Tensor) -> Tensor:
    """Return ``values`` in float64, on the CPU where their own device has none."""
    return (values if has_float64(values.device) else values.cpu()).double()
