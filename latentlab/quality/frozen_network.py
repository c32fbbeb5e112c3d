"""Networks that only describe images: frozen, channels last, and always given the same number of images at a time.

Kernels are chosen by the shape of a batch, and other kernels round otherwise. Here every pass has `pass_size` images (the
last one is filled up), so an image gets the same features to the last bit in a batch of any size and on any process, as long
as batches begin at multiples of it. On a GPU convolutions keep float32 (by default they would round their inputs to 10 bits)
and kernels are not chosen by timing.
"""

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from latentlab.runtime import whole_float32

_CPU_PASS, _GPU_PASS = 4, 64
"""Images per pass: on a CPU activations stay below 32 MB, above which every layer pays for fresh pages."""


def pass_size(device: torch.device | str) -> int:
    """Return how many images go through a network at a time on ``device``."""
    return _CPU_PASS if torch.device(device).type == "cpu" else _GPU_PASS


class FrozenNetwork(nn.Module, ABC):
    """A network in evaluation mode, without trainable parameters, channels last (the faster layout)."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network.requires_grad_(False).eval().to(memory_format=torch.channels_last)

    def forward(self, images: Tensor) -> Tensor:  # [b,3,H,W] in [-1,1] => [b,d]
        """Return the features of ``images``, float32."""
        size = pass_size(images.device)
        missing = -len(images) % size
        filled = torch.cat([images, images[-1:].expand(missing, -1, -1, -1)]) if missing else images
        with whole_float32():
            passes = [self.described(self.prepared(part.float())).flatten(1) for part in filled.split(size)]
        return torch.cat(passes)[: len(images)].float()

    @abstractmethod
    def prepared(self, images: Tensor) -> Tensor:
        """Return what the network takes, of images in [-1,1]."""

    def described(self, prepared: Tensor) -> Tensor:
        """Return its features."""
        features: Tensor = self.network(prepared)
        return features


def folded(network: nn.Module) -> nn.Module:
    """Fold every batch normalisation into the convolution in front of it; what follows it (an activation) stays."""
    network.eval()
    before: tuple[nn.Module, str, nn.Conv2d] | None = None
    for parent in [*network.modules()]:
        for name, child in [*parent.named_children()]:
            if isinstance(child, nn.Conv2d):
                before = (parent, name, child)
            elif isinstance(child, nn.BatchNorm2d) and before is not None:
                setattr(before[0], before[1], fuse_conv_bn_eval(before[2], child))
                setattr(parent, name, getattr(child, "act", nn.Identity()))
    return network
