"""Parameter names of the published DiT, SiT and LightningDiT checkpoints and ours, and what shapes tell. Imports no torch."""

import re
from collections.abc import Mapping
from typing import Any

from mind.baselines.transformer_config import SIZES, Kind
from mind.key_map import BLOCK, KeyMap

PATCH, POSITIONS = "x_embedder.proj.weight", "pos_embed"
"""Published names of what has another shape there: [h,c,p,p] instead of [h,c p p], and [1,l,h] instead of [l,h]."""

ROTARY_TABLES = ("feat_rope.freqs_cos", "feat_rope.freqs_sin")
"""Published names of LightningDiT's cosines and sines [l,head width], which follow from the configuration."""

_PREFIXES = {
    "patch.": "x_embedder.proj.",
    "time.": "t_embedder.",
    "classes.": "y_embedder.embedding_table.",
    "positions": "pos_embed",
    "head.norm.": "final_layer.norm_final.",
    "head.linear.": "final_layer.linear.",
    "head.modulation.": "final_layer.adaLN_modulation.1.",
}
_IN_BLOCK = {
    "attention.out.": "attn.proj.",
    "attention.": "attn.",
    "mlp.0.": "mlp.fc1.",
    "mlp.2.": "mlp.fc2.",
    "mlp.gate_value.": "mlp.w12.",
    "mlp.out.": "mlp.w3.",
    "modulation.": "adaLN_modulation.1.",
}
_WRAPPED = re.compile(r"(?:^|(?<=\.))(?:module|_orig_mod)\.")
_USUAL_HEAD = 64


def unwrapped(name: str) -> str:
    """Return a name without the ``module.`` and ``_orig_mod.`` that data-parallel training and torch.compile put in."""
    return _WRAPPED.sub("", name)


_KEYS = KeyMap(_PREFIXES, _IN_BLOCK)
published_name, own_names = _KEYS.published_name, _KEYS.own_names


def told_by_shapes(shapes: Mapping[str, tuple[int, ...]], kind: Kind) -> dict[str, Any]:
    """Return the fields of `TransformerConfig` that follow from the shapes of a published state dict.

    Args:
        shapes: published name -> shape. Where a tensor is absent its field is left out: which one is missing is said elsewhere.
        kind: what the file holds. A LightningDiT without rotary tables may have been trained without rotations, or lost the
            tables, which can be computed: its position is not told.
    """
    told: dict[str, Any] = {"kind": kind}
    patch = shapes.get(PATCH, ())
    if len(patch) == 4:
        told |= {"width": patch[0], "in_channels": patch[1], "patch": patch[3]}
    blocks = [int(found[2]) for name in shapes if (found := BLOCK.fullmatch(name))]
    if blocks:
        told["depth"] = max(blocks) + 1
    if classes := shapes.get("y_embedder.embedding_table.weight"):
        told["num_classes"] = classes[0] - 1  # the last one stands for "no class"
    told |= _parts(shapes, kind)
    if "patch" in told and (out := shapes.get("final_layer.linear.weight")):
        told["learn_sigma"] = out[0] == 2 * told["patch"] ** 2 * told["in_channels"]
    return told


def _parts(shapes: Mapping[str, tuple[int, ...]], kind: Kind) -> dict[str, Any]:
    parts: dict[str, Any] = {
        "ffn": "swiglu" if "blocks.0.mlp.w12.weight" in shapes else "mlp",
        "norm": "rmsnorm" if "blocks.0.norm1.weight" in shapes else "layernorm",
        "qk_norm": "blocks.0.attn.q_norm.weight" in shapes,
    }
    if ROTARY_TABLES[0] in shapes:
        parts["position"] = "both" if POSITIONS in shapes else "rope"
    elif kind != "lightningdit":
        parts["position"] = "sinusoidal"
    return parts


def heads(shapes: Mapping[str, tuple[int, ...]], told: Mapping[str, Any]) -> int | None:
    """Return the number of heads of a published state dict; None where nothing tells it.

    Normalisations of a head and rotary tables tell its width; else the published size of this depth and width does, or the
    usual 64 numbers to a head.

    Args:
        shapes: published name -> shape.
        told: what `told_by_shapes` returned.
    """
    width = told.get("width", 0)
    for name in ("blocks.0.attn.q_norm.weight", ROTARY_TABLES[0]):
        head = shapes.get(name, (0,))[-1]
        if head and width % head == 0:
            return int(width // head)
    for size in SIZES.values():
        if (size["depth"], size["width"]) == (told.get("depth"), width):
            return size["heads"]
    return width // _USUAL_HEAD if width and width % _USUAL_HEAD == 0 else None
