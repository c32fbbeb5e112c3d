"""Which perceptual distance judges images, and under which name its numbers go: LPIPS where its weights are, else ST-LPIPS.

LPIPS (Zhang et al. 2018, arXiv 1801.03924) is the package ``lpips`` on torchvision's ImageNet weights. That package would
download them silently; here they are only looked for, in torch's own cache and in latentlab's. ST-LPIPS ships its weights
in a wheel, so it is always there. The two have different scales: a result names the one it used.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from latentlab.errors import UserError, unknown_name
from latentlab.quality.stlpips import STLPIPS
from latentlab.weights import WeightFile, find_weights, read_state_dict

_TORCHVISION = "https://download.pytorch.org/models/"

TRUNKS: dict[Literal["alex", "vgg"], WeightFile] = {
    "alex": WeightFile("torchvision", "alexnet-owt-7be5be79.pth", url=f"{_TORCHVISION}alexnet-owt-7be5be79.pth"),
    "vgg": WeightFile("torchvision", "vgg16-397923af.pth", url=f"{_TORCHVISION}vgg16-397923af.pth"),
}
"""ImageNet weights under LPIPS, by its name of the network."""

_BUILDERS: dict[str, Callable[[], nn.Module]] = {
    "lpips": lambda: _lpips("alex"),
    "lpips_vgg": lambda: _lpips("vgg"),
    "st_lpips": lambda: STLPIPS("alex"),
    "st_lpips_vgg": lambda: STLPIPS("vgg"),
}

NAMES = tuple(_BUILDERS)


@dataclass(frozen=True)
class PerceptualDistance:
    """A frozen perceptual network; called with two batches of images it returns their distances.

    Attributes:
        name: what its numbers are called: ``lpips``, ``lpips_vgg``, ``st_lpips`` or ``st_lpips_vgg``.
        network: the module (or function) that is called, in evaluation mode, without trainable parameters.
    """

    name: str
    network: Callable[[Tensor, Tensor], Tensor]

    def __call__(self, first: Tensor, second: Tensor) -> Tensor:
        """Return the distances [n], 0 for equal images, of images [n,3,H,W] in [-1,1]; differentiable in both."""
        return self.network(first, second).flatten()


def perceptual_distance(name: str = "auto", device: torch.device | str = "cpu") -> PerceptualDistance:
    """Build a perceptual distance on ``device``; nothing is downloaded.

    Args:
        name: ``lpips`` (AlexNet), ``lpips_vgg``, ``st_lpips`` (AlexNet), ``st_lpips_vgg``, or ``auto``: ``lpips`` when
            AlexNet's weights are on this machine, else ``st_lpips``.
        device: where the images will be.

    Raises:
        UserError: an unknown name, or weights that are asked for by name and are not on this machine.
    """
    if name == "auto":
        name = "lpips" if _trunk_file("alex") else "st_lpips"
    if name not in _BUILDERS:
        raise unknown_name("perceptual distance", name, ("auto", *NAMES))
    return PerceptualDistance(name, _BUILDERS[name]().to(device))


def _lpips(net: Literal["alex", "vgg"]) -> nn.Module:
    """Return the network of the package ``lpips`` with torchvision's weights from this machine."""
    path = _trunk_file(net) or find_weights(TRUNKS[net])  # which says what is missing
    weights = read_state_dict(path)
    from lpips import LPIPS

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torchvision's, about how lpips calls it
        network = LPIPS(net=net, pnet_rand=True, verbose=False)
    for part in ("slice1", "slice2", "slice3", "slice4", "slice5"):  # layers keep their number in torchvision's network
        for layer, module in getattr(network.net, part).named_children():
            own = {key: weights.get(f"features.{layer}.{key}") for key in module.state_dict()}
            if any(value is None or value.shape != module.state_dict()[key].shape for key, value in own.items()):
                raise UserError(f"{path} does not hold torchvision's weights of LPIPS ({net}): delete it")
            module.load_state_dict(own)
    return network.requires_grad_(False).eval()


def _trunk_file(net: Literal["alex", "vgg"]) -> Path | None:
    """Return where the weights under LPIPS are on this machine, or None."""
    file = TRUNKS[net]
    places = (Path(torch.hub.get_dir()) / "checkpoints" / file.filename, file.path)
    return next((path for path in places if path.is_file()), None)
