"""ST-LPIPS, a learned perceptual distance that tolerates small shifts (Ghildyal and Liu, ECCV 2022, arXiv 2207.13686).

The published weights come inside the wheel ``stlpips-pytorch``; its Python package is not imported (it needs undeclared
packages), only its weight files are read. Anti-aliased downsampling: Zhang 2019, arXiv 1904.11486.
"""

from importlib import metadata
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from latentlab.errors import UserError, unknown_name
from latentlab.weights import read_state_dict

Net = Literal["alex", "vgg"]

SMALLEST_SIDE = 21
"""Images need this many pixels a side for the borders of the last downsampling to be mirrored."""

_WHEEL = "stlpips-pytorch"


class BlurPool(nn.Module):
    """Binomial [1,2,1] x [1,2,1] low-pass filter, then every second pixel; the border is mirrored by 2 pixels."""

    filt: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        row = torch.tensor([1.0, 2.0, 1.0]) / 4
        self.register_buffer("filt", (row[:, None] * row).expand(channels, 1, 3, 3).clone())

    def forward(self, x: Tensor) -> Tensor:
        """Return [n,c,(h+1)//2+1,(w+1)//2+1] of [n,c,h,w]."""
        padded = functional.pad(x, (2, 2, 2, 2), mode="reflect")
        return functional.conv2d(padded, self.filt, stride=2, groups=x.shape[1])


def _alex() -> list[list[nn.Module]]:
    """Return AlexNet's five stages; every stage ends with the activations that are compared."""

    def conv(width_in: int, width_out: int, side: int, padding: int) -> list[nn.Module]:
        return [nn.Conv2d(width_in, width_out, side, padding=padding), nn.ReLU()]

    first, relu = conv(3, 64, 11, 2)
    return [
        [first, BlurPool(64), relu],
        [nn.MaxPool2d(3, stride=1), BlurPool(64), *conv(64, 192, 5, 2)],
        [nn.MaxPool2d(3, stride=1), BlurPool(192), *conv(192, 384, 3, 1)],
        conv(384, 256, 3, 1),
        conv(256, 256, 3, 1),
    ]


def _vgg() -> list[list[nn.Module]]:
    """Return the five stages of VGG-16."""
    stages: list[list[nn.Module]] = []
    before = 3
    for width, convolutions in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
        stage: list[nn.Module] = [nn.MaxPool2d(2, stride=1), BlurPool(before)] if stages else []
        for _ in range(convolutions):
            stage += [nn.Conv2d(before, width, 3, padding=1), nn.ReLU()]
            before = width
        stages.append(stage)
    return stages


class STLPIPS(nn.Module):
    """Distance of two images in the features of a trained network: lower is more alike, 0 for equal images.

    Frozen and in evaluation mode; distances can be differentiated with respect to both images. Images are compared at the
    size they are given: the weights were fitted on 64x64 patches, and a caller who wants small images compared at that scale
    enlarges them first.

    Attributes:
        net: ``alex`` (quick) or ``vgg``.
    """

    shift: Tensor
    scale: Tensor

    def __init__(self, net: Net = "alex") -> None:
        """Build the network and load the published weights.

        Raises:
            UserError: unknown ``net``, or the wheel ``stlpips-pytorch`` is not installed.
        """
        super().__init__()
        builders = {"alex": _alex, "vgg": _vgg}
        if net not in builders:
            raise unknown_name("ST-LPIPS network", net, builders)
        self.net = net
        stages = builders[net]()
        weights = read_state_dict(_weight_file(net))
        self.register_buffer("shift", weights["scaling_layer.shift"])
        self.register_buffer("scale", weights["scaling_layer.scale"])
        self.stages = nn.ModuleList(nn.Sequential(*stage) for stage in stages)
        self.stages.load_state_dict(_numbered_by_stage(weights, stages))
        self.heads = nn.ParameterList(weights[f"lin{i}.model.1.weight"] for i in range(len(stages)))
        self.requires_grad_(False).eval()
        self.to(memory_format=torch.channels_last)  # twice as fast on CPUs

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """Return the distances [n] of images [n,3,H,W] in [-1,1].

        Per stage: features of unit length in every position, squared differences weighted by channel, mean over positions;
        summed over stages (Zhang et al. 2018, arXiv 1801.03924, equation 1).

        Raises:
            UserError: shapes differ, are not [n,3,H,W], or a side is below `SMALLEST_SIDE`.
        """
        _check_images(first, second)
        total = first.new_zeros(len(first))
        x, y = (first - self.shift) / self.scale, (second - self.shift) / self.scale
        for stage, head in zip(self.stages, self.heads, strict=True):
            x, y = stage(x), stage(y)
            total = total + functional.conv2d((_unit(x) - _unit(y)) ** 2, head).mean((1, 2, 3))
        return total


def _check_images(first: Tensor, second: Tensor) -> None:
    if first.shape != second.shape or first.ndim != 4 or first.shape[1] != 3 or min(first.shape[2:]) < SMALLEST_SIDE:
        raise UserError(
            f"ST-LPIPS compares two batches of one shape [n,3,H,W], H and W at least {SMALLEST_SIDE}: "
            f"got {list(first.shape)} and {list(second.shape)}"
        )


def _unit(features: Tensor) -> Tensor:
    return features / (torch.linalg.vector_norm(features, dim=1, keepdim=True) + 1e-10)


def _numbered_by_stage(weights: dict[str, Tensor], stages: list[list[nn.Module]]) -> dict[str, Tensor]:
    """Return the trunk's weights under our names: the file numbers layers through all stages, we from 0 in each."""
    renamed, first = {}, 0
    for i, stage in enumerate(stages):
        prefix = f"net.slice{i + 1}."
        for name, value in weights.items():
            if name.startswith(prefix):
                layer, _, kind = name.removeprefix(prefix).partition(".")
                renamed[f"{i}.{int(layer) - first}.{kind}"] = value
        first += len(stage)
    return renamed


def _weight_file(net: str) -> Path:
    wanted = f"{net}_shift_tolerant.pth"
    try:
        files = metadata.files(_WHEEL) or []
    except metadata.PackageNotFoundError:
        files = []
    for file in files:
        if file.name == wanted:
            return Path(str(file.locate()))
    raise UserError(f"ST-LPIPS needs the weights {wanted} of the package {_WHEEL}: pip install {_WHEEL}")
