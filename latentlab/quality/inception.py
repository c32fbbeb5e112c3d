"""Inception-v3 as FID has used it since 2017 (``pt_inception-2015-12-05``), with the weights that torch-fidelity publishes.

Images are resized to 299x299 as TensorFlow 1 did and are not rounded to 8 bits here. Three kinds of features come of it:

* ``pool3``: the 2048 pooled activations, of FID, KID, and precision and recall of the ADM suite (Dhariwal and Nichol 2021);
* spatial: the first 7 channels of the first convolution (1x1) in the seventh block with its activation, 17x17 cells, 2023
  numbers, of sFID (Nash et al. 2021, arXiv 2103.03841); ``mixed_6/conv`` in the ADM suite's graph, and in its order (row,
  column, channel), which the statistics in its reference files have;
* class scores without bias, of the Inception score: a linear function of ``pool3``.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from latentlab.errors import UserError
from latentlab.files import file_sha256
from latentlab.quality.frozen_network import FrozenNetwork
from latentlab.weights import WeightFile, find_weights, read_state_dict

WEIGHTS = WeightFile(
    "toshas--torch-fidelity",
    "weights-inception-2015-12-05-6726825d.pth",
    url="https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth",
)
RESIZE = "299x299 bilinear as in TensorFlow 1"
_SPATIAL_CHANNELS = 7


def weight_file() -> Path:
    """Return where the weights are: in torch's own cache or in latentlab's.

    Raises:
        UserError: they are not on this machine; says where they come from and where they go.
    """
    in_torch_cache = Path(torch.hub.get_dir()) / "checkpoints" / WEIGHTS.filename
    return in_torch_cache if in_torch_cache.is_file() else find_weights(WEIGHTS)


def is_available() -> bool:
    """Whether the weights are on this machine."""
    try:
        weight_file()
    except UserError:
        return False
    return True


def open_pool3() -> tuple[nn.Module, str]:
    """Return the network up to ``pool3`` and what its weights are."""
    layers = dict(_network().named_children())  # in the order in which they follow
    del layers["fc"]
    return _Inception(nn.Sequential(*layers.values())), _version()


def open_spatial() -> tuple[nn.Module, str]:
    """Return the network up to the features of sFID and what its weights are."""
    layers: dict[str, Any] = dict(_network().named_children())
    names = list(layers)
    before = [layers[name] for name in names[: names.index("Mixed_6d")]]
    return _Spatial(nn.Sequential(*before, layers["Mixed_6d"].branch1x1)), f"{_version()} mixed_6/conv"


def classifier() -> Callable[[Tensor], Tensor]:
    """Return the function from features of ``pool3``, [n,2048], to class scores without bias, [n,1008].

    Raises:
        UserError: the weights are not on this machine.
    """
    weight = read_state_dict(weight_file())["fc.weight"].float()
    return lambda pool3: pool3 @ weight.T


def _version() -> str:
    """Return the weights' name and content: features that are kept must not be taken for those of other weights."""
    path = weight_file()
    return f"inception {path.name} {file_sha256(path)[:16]}"


def _network() -> nn.Module:
    """Return torch-fidelity's network.

    Raises:
        UserError: the weights are missing, hold more than tensors, or are of another network.
    """
    path = weight_file()
    read_state_dict(path)  # refuses what holds more than tensors: torch-fidelity unpickles the file freely
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    try:
        network: nn.Module = FeatureExtractorInceptionV3("inception-v3-compat", ["2048"], str(path))
    except RuntimeError as error:
        raise UserError(f"{path} does not hold the weights of Inception-v3 for FID: delete it") from error
    return network


class _Inception(FrozenNetwork):
    """Inception-v3 for images that are not rounded to 8 bits."""

    def prepared(self, images: Tensor) -> Tensor:
        """Return the images at 299x299 as TensorFlow 1 resized them, levels 0 to 255 mapped to about [-1,1]."""
        from torch_fidelity.interpolate_compat_tensorflow import interpolate_bilinear_2d_like_tensorflow1x

        levels = (images + 1) * 127.5
        resized: Any = interpolate_bilinear_2d_like_tensorflow1x(levels, size=(299, 299), align_corners=False)
        return ((resized - 128) / 128).contiguous(memory_format=torch.channels_last)


class _Spatial(_Inception):
    """The same, up to the features of sFID."""

    def described(self, prepared: Tensor) -> Tensor:
        """Return all cells with their first channels, [b,17,17,7]."""
        features: Tensor = self.network(prepared)
        return features[:, :_SPATIAL_CHANNELS].permute(0, 2, 3, 1)
