"""What a masked autoencoder predicts of hidden patches beside their pixels, and how far off it is."""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from latentlab.tokenizers.hog import hog, hog_channels
from latentlab.tokenizers.objectives.vision_networks import VisionMaps, open_vision_maps, vision_width

Target = Callable[[Tensor], Tensor]
"""Images [n,3,S,S] in [-1,1] -> what is to be predicted of every patch, [n,p,d]."""

HOG = "hog"
"""Histograms of oriented gradients; every other name is that of a vision network."""


def target_channels(name: str, patch: int) -> int:
    """Return the numbers per patch of a target; no weights are needed.

    Raises:
        UserError: neither ``hog`` nor a vision network's name.
    """
    return hog_channels(patch) if name == HOG else vision_width(name)


def open_target(name: str, patch: int, device: torch.device) -> Target:
    """Return a target for patches with a side of ``patch`` pixels, its network on ``device``.

    Raises:
        UserError: unknown name, or a network whose weights are not on this machine.
    """
    if name == HOG:
        return partial(hog, patch=patch)
    return partial(vision_target, open_vision_maps(name).to(device), patch=patch)


def vision_target(network: VisionMaps, images: Tensor, patch: int) -> Tensor:
    """Return a network's features of every patch, each with mean 0 and variance 1 over its channels.

    So no network counts more because its features are larger (a choice of ours: the paper does not say).
    """
    rows, columns = (side // patch for side in images.shape[2:])
    tokens = network(images, (rows, columns)).flatten(2).transpose(1, 2)
    return F.layer_norm(tokens, tokens.shape[-1:])


def hidden_error(predicted: Tensor, wanted: Tensor, hidden: Tensor) -> Tensor:
    """Return the mean of M * (predicted - wanted)^2 over hidden patches and channels, averaged over images (2502.03444, eq. 4).

    The paper writes sums; with means the weight does not depend on how many patches are hidden and how many channels a target
    has. An image of which nothing is hidden counts as 0.

    Args:
        predicted: [n,p,d].
        wanted: [n,p,d].
        hidden: M, bool [n,p].
    """
    error = (predicted.float() - wanted).square().mean(2) * hidden
    return (error.sum(1) / hidden.sum(1).clamp(min=1)).mean()
