"""Networks from torch-fidelity's registry as judges of images: ``torch-fidelity:NAME``, and ``vgg16``, on which it takes
precision and recall.

Their own preparation of 8-bit images is used, and the features that the network names for a Frechet distance. Only weights
that are on this machine are used: files of plain tensors, or OpenAI's archives if they are those whose hash is published. An
extractor that a user registered brings its own.
"""

import hashlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from latentlab.errors import UserError, unknown_name
from latentlab.files import file_sha256
from latentlab.quality import inception
from latentlab.quality.fidelity import to_uint8
from latentlab.quality.frozen_network import FrozenNetwork
from latentlab.quality.perceptual import TRUNKS
from latentlab.weights import WeightFile, find_weights, read_state_dict

PREFIX = "torch-fidelity:"
RESIZE = "by torch-fidelity (bilinear as in TensorFlow 1)"

_STATE_DICTS = {"inception-v3-compat": inception.WEIGHTS, "vgg16": TRUNKS["vgg"]}


def open_registered(name: str) -> tuple[nn.Module, str]:
    """Return a network by its name in torch-fidelity's registry and what its weights are.

    Raises:
        UserError: no such name, weights that are not on this machine or are not the published ones, or a network that
            torch-fidelity can only fetch together with its code.
    """
    from torch_fidelity import __version__ as release
    from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY as registry

    if name not in registry:
        raise unknown_name("extractor of torch-fidelity", name, registry)
    if name.startswith("dinov2-"):
        raise UserError(f"torch-fidelity downloads code to run {name}: use the extractor '{name}' without '{PREFIX}'")
    path = _weight_file(name)
    layer = registry[name].get_default_feature_layer_for_metric("fid")
    try:
        network = registry[name](name, [layer], None if path is None else str(path))
    except RuntimeError as error:
        raise UserError(f"{path} does not hold the weights of {name}: delete it") from error
    return _Registered(network), f"torch-fidelity {release} {name} {layer} {_content(network)}"


def _weight_file(name: str) -> Path | None:
    """Return the published weights of a network, checked to be nothing but that; None for one that brings its own."""
    if name in _STATE_DICTS:
        path = _found(_STATE_DICTS[name], _STATE_DICTS[name].filename)
        read_state_dict(path)  # refuses what holds more than tensors: torch-fidelity unpickles the file freely
        return path
    from torch_fidelity.feature_extractor_clip import MODEL_METADATA, MODEL_URLS

    if name not in MODEL_URLS:
        return None
    sha256 = MODEL_METADATA[name]["hash"]
    file = WeightFile("openai--clip", Path(MODEL_URLS[name]).name, sha256=sha256, url=MODEL_URLS[name])
    path = _found(file, f"{name}-{sha256}.pt")
    if file_sha256(path) != sha256:  # an archive of code: only the very one that was published is opened
        raise UserError(f"{path} is not the file that OpenAI published for {name}: delete it")
    return path


def _found(file: WeightFile, in_torch_cache: str) -> Path:
    path = Path(torch.hub.get_dir()) / "checkpoints" / in_torch_cache
    return path if path.is_file() else find_weights(file)


def _content(network: nn.Module) -> str:
    """Return a digest of a network's weights."""
    seen = hashlib.sha256()
    for key, value in network.state_dict().items():
        seen.update(f"{key} {tuple(value.shape)} {value.dtype}".encode())
        seen.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return seen.hexdigest()[:16]


class _Registered(FrozenNetwork):
    """An extractor of torch-fidelity, which takes 8-bit images and returns a tuple of features."""

    def prepared(self, images: Tensor) -> Tensor:
        """Return the images rounded to 8 bits."""
        return to_uint8(images)

    def described(self, prepared: Tensor) -> Tensor:
        """Return the one kind of features it was made for."""
        features: Any = self.network(prepared)
        found: Tensor = features[0]
        return found
