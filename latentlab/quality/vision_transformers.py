"""DINOv2 and CLIP as judges of images: timm's networks with the weights their authors published, when they are on this machine.

* ``dinov2-vit-{s,b,l,g}-14`` (Oquab et al. 2023, arXiv 2304.07193): the class token after the last normalisation. Images are
  resized to 224x224, bicubic with antialiasing, as in the comparison that proposed distances on DINOv2 (Stein et al. 2023,
  arXiv 2306.04675, with ViT-L/14). Positions for 224 pixels are interpolated from those for 518 as the authors' code does.
* ``clip-vit-{b-32,b-16,l-14,l-14-336}`` (Radford et al. 2021, arXiv 2103.00020, OpenAI's weights): the projected image
  embedding, not normalised. Images are resized to 224x224 (336x336), bicubic with antialiasing.

Values on torch-fidelity's versions of these networks (``torch-fidelity:NAME``) differ a little: it resizes bilinearly.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from latentlab.errors import UserError
from latentlab.files import file_sha256
from latentlab.quality.frozen_network import FrozenNetwork
from latentlab.weights import WeightFile, find_weights, read_state_dict

_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_OPENAI = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
"""Means and standard deviations of the channels, of images in [0,1]."""

_POSITION_OFFSET = 0.1
"""Added by DINOv2's authors to the patches a side before dividing, against rounding; it shifts the sampled positions."""


@dataclass(frozen=True)
class VisionTransformer:
    """A published network.

    Attributes:
        timm_name: its architecture.
        files: its weights, in any of the forms in which they are published; the first one found is used.
        side: pixels a side that it sees.
        statistics: means and standard deviations of the channels.
    """

    timm_name: str
    files: tuple[WeightFile, ...]
    side: int
    statistics: tuple[tuple[float, ...], tuple[float, ...]]

    @property
    def resize(self) -> str:
        """How images get their size."""
        return f"{self.side}x{self.side} bicubic, antialiased"


def _dinov2(letter: str, size: str) -> VisionTransformer:
    name = f"vit_{size}_patch14_dinov2"
    meta = f"dinov2_vit{letter}14"
    url = f"https://dl.fbaipublicfiles.com/dinov2/{meta}/{meta}_pretrain.pth"
    files = (WeightFile("facebookresearch--dinov2", f"{meta}_pretrain.pth", url=url), _of_timm(f"{name}.lvd142m"))
    return VisionTransformer(name, files, 224, _IMAGENET)


def _clip(size: str, patch: int, side: int = 224) -> VisionTransformer:
    name = f"vit_{size}_patch{patch}_clip_quickgelu_{side}"
    return VisionTransformer(name, (_of_timm(f"vit_{size}_patch{patch}_clip_{side}.openai"),), side, _OPENAI)


def _of_timm(model: str) -> WeightFile:
    return WeightFile(f"timm/{model}", "model.safetensors")


VISION_TRANSFORMERS = {
    "dinov2-vit-s-14": _dinov2("s", "small"),
    "dinov2-vit-b-14": _dinov2("b", "base"),
    "dinov2-vit-l-14": _dinov2("l", "large"),
    "dinov2-vit-g-14": _dinov2("g", "giant"),
    "clip-vit-b-32": _clip("base", 32),
    "clip-vit-b-16": _clip("base", 16),
    "clip-vit-l-14": _clip("large", 14),
    "clip-vit-l-14-336": _clip("large", 14, 336),
}


def open_vision_transformer(name: str) -> tuple[nn.Module, str]:
    """Return a network by its name in `VISION_TRANSFORMERS` and what its weights are.

    Raises:
        UserError: the weights are not on this machine, or are of another network.
    """
    wanted = VISION_TRANSFORMERS[name]
    path = vision_transformer_file(name)
    weights = _in_timms_layout(read_state_dict(path))
    from timm import create_model

    network: Any = create_model(wanted.timm_name, pretrained=False, img_size=wanted.side)
    own = network.state_dict()
    if name.startswith("dinov2") and "pos_embed" in weights:
        weights["pos_embed"] = _positions(weights["pos_embed"], network.patch_embed.grid_size[0])
    wrong = [
        key for key in {*own, *weights} if key not in own or key not in weights or own[key].shape != weights[key].shape
    ]
    if wrong:
        raise UserError(f"{path} does not hold the weights of {name} ('{min(wrong)}' differs): delete it")
    network.load_state_dict({key: value.float() for key, value in weights.items()})
    what = f"{name} {path.name} {file_sha256(path)[:16]} {wanted.side} bicubic"
    return _Judge(network, wanted.side, *wanted.statistics), what


def vision_transformer_file(name: str) -> Path:
    """Return the first of the published files that is here, in torch's cache, latentlab's or that of the Hugging Face hub.

    Raises:
        UserError: none is on this machine.
    """
    files = VISION_TRANSFORMERS[name].files
    for file in files:
        in_torch_cache = Path(torch.hub.get_dir()) / "checkpoints" / file.filename
        if file.url is not None and in_torch_cache.is_file():
            return in_torch_cache
        try:
            return find_weights(file)
        except UserError:
            continue
    return find_weights(files[0])  # which says what is missing


def _in_timms_layout(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return weights under timm's names: DINOv2's authors keep a token of their training, and call the gated layers otherwise."""
    renamed = {
        key.replace(".mlp.w12.", ".mlp.fc1.").replace(".mlp.w3.", ".mlp.fc2."): value for key, value in weights.items()
    }
    renamed.pop("mask_token", None)
    return renamed


def _positions(table: Tensor, side: int) -> Tensor:  # [1,1+p*p,d] => [1,1+side*side,d]
    """Return DINOv2's position embeddings for ``side`` patches a side.

    The authors' code interpolates with scale (side + 0.1) / p, so it samples slightly other places than side / p does.
    """
    old = round((table.shape[1] - 1) ** 0.5)
    if old == side:
        return table
    first, grid = table[:, :1].float(), table[:, 1:].float()
    maps = grid.unflatten(1, (old, old)).permute(0, 3, 1, 2)
    scale = (side + _POSITION_OFFSET) / old
    maps = functional.interpolate(maps, scale_factor=(scale, scale), mode="bicubic")
    return torch.cat([first, maps.permute(0, 2, 3, 1).flatten(1, 2)], 1)


class _Judge(FrozenNetwork):
    """A vision transformer behind its preparation of images."""

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, side: int, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__(network)
        self._side = side
        self.register_buffer("mean", torch.tensor(mean)[:, None, None])
        self.register_buffer("std", torch.tensor(std)[:, None, None])

    def prepared(self, images: Tensor) -> Tensor:
        """Return the images at the network's size, normalised per channel."""
        size = (self._side, self._side)
        if images.shape[2:] != size:
            images = functional.interpolate(images, size, mode="bicubic", align_corners=False, antialias=True)
        return ((images + 1) / 2 - self.mean) / self.std
