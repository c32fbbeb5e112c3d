"""Names of the weights of vision transformers in the files of their authors, turned into timm's names.

* ``moco``: a checkpoint of MoCo v3's training. The encoder is timm's under ``module.base_encoder.``, beside the momentum encoder,
  the heads and the optimiser. In the released ViT-L two blocks have wrong names for four of their layers.
* ``transformers``: a ``Dinov2Model`` of transformers, with query, key and value apart where timm has them in one layer.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from latentlab.weights import read_state_dict

Layout = Literal["timm", "moco", "transformers"]

_MOCO_ENCODER = "module.base_encoder."
_MOCO_MISNAMED = {
    "blocks.13.norm13.": "blocks.13.norm1.",
    "blocks.13.mlp.fc13.": "blocks.13.mlp.fc1.",
    "blocks.14.norm14.": "blocks.14.norm2.",
    "blocks.14.mlp.fc14.": "blocks.14.mlp.fc2.",
}

_TRANSFORMERS_BEGINNINGS = {
    "embeddings.cls_token": "cls_token",
    "embeddings.position_embeddings": "pos_embed",
    "embeddings.patch_embeddings.projection.": "patch_embed.proj.",
    "layernorm.": "norm.",
}
_TRANSFORMERS_LAYERS = {
    "norm1.": "norm1.",
    "norm2.": "norm2.",
    "attention.output.dense.": "attn.proj.",
    "layer_scale1.lambda1": "ls1.gamma",
    "layer_scale2.lambda1": "ls2.gamma",
    "mlp.fc1.": "mlp.fc1.",
    "mlp.fc2.": "mlp.fc2.",
}
_TRANSFORMERS_BLOCK = re.compile(r"encoder\.layer\.(\d+)\.(.+)")
_QUERY = "attention.attention.query."


def read_vision_weights(path: Path, layout: Layout) -> dict[str, Tensor]:
    """Return the weights in a file under timm's names; what timm's network does not have may be among them.

    Raises:
        UserError: a file that is missing, damaged or unsafe, or without the entry of its layout.
    """
    if layout == "moco":
        return _of_moco(read_state_dict(path, "state_dict"))
    weights = read_state_dict(path)
    return _of_transformers(weights) if layout == "transformers" else weights


def _of_moco(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    names = {name: name.removeprefix(_MOCO_ENCODER) for name in weights if name.startswith(_MOCO_ENCODER)}
    return {_renamed(own, _MOCO_MISNAMED) or own: weights[name] for name, own in names.items()}


def _of_transformers(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    found = {}
    for name, value in weights.items():
        block = _TRANSFORMERS_BLOCK.fullmatch(name)
        if block is None:
            renamed = _renamed(name, _TRANSFORMERS_BEGINNINGS)
        elif block[2].startswith(_QUERY):
            renamed = f"blocks.{block[1]}.attn.qkv.{block[2].removeprefix(_QUERY)}"
            value = _joined(weights, name)
        else:
            within = _renamed(block[2], _TRANSFORMERS_LAYERS)
            renamed = within and f"blocks.{block[1]}.{within}"
        if renamed is not None:
            found[renamed] = value
    return found


def _joined(weights: Mapping[str, Tensor], query: str) -> Tensor:
    """Return query, key and value of a block, one under the other, as far as they are there."""
    names = [query.replace(".query.", f".{part}.") for part in ("query", "key", "value")]
    return torch.cat([weights[name] for name in names if name in weights])


def _renamed(name: str, beginnings: Mapping[str, str]) -> str | None:
    """Return ``name`` with another beginning, None where none of ``beginnings`` is its own."""
    for old, new in beginnings.items():
        if name.startswith(old):
            return new + name.removeprefix(old)
    return None
