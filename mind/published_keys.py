"""Parameter names of the released MIND checkpoints and ours, one to one, and what shapes tell of the model. Imports no torch."""

from collections.abc import Mapping
from typing import Any

from mind.key_map import BLOCK, KeyMap

COMPILED = "_orig_mod."
"""What torch.compile puts into keys, at the front or inside."""

INV_FREQ, SCALAR = "rotary_emb.inv_freq", "scalar"
"""Published names of what a checkpoint may lack: both follow from the configuration."""

_PREFIXES = {
    "table.": "vocab_embed.",
    "fourier.frequencies.": "Embedding_map.freq_projector.",
    "fourier.mlp.": "Embedding_map.feature_mlp.",
    "residual.mlp.": "embed_proj.",
    "time.": "sigma_map.",
    "classes.": "y_embedder.embedding_table.",
    "rotary.": "rotary_emb.",
    "head.norm.": "output_layer.norm_final.",
    "head.linear.": "output_layer.linear.",
    "head.modulation.": "output_layer.adaLN_modulation.",
}
_IN_BLOCK = {"qkv.": "attn_qkv.", "out.": "attn_out.", "modulation.": "adaLN_modulation."}

_SIZE_FROM = {
    "vocab_size": (("vocab_embed.embedding", 0), ("output_layer.linear.weight", 0)),
    "embed_dim": (("vocab_embed.embedding", 1), ("Embedding_map.freq_projector.weight", 1)),
    "hidden_size": (("output_layer.norm_final.weight", 0), ("output_layer.linear.weight", 1)),
    "cond_dim": (("y_embedder.embedding_table.weight", 1), ("sigma_map.mlp.2.weight", 0)),
    "mapper_width": (("Embedding_map.feature_mlp.3.weight", 0),),
}
"""Field of `MindConfig` -> (published name, dimension) that tells it, the first one that is there."""


_KEYS = KeyMap(_PREFIXES, _IN_BLOCK)
published_name, own_names = _KEYS.published_name, _KEYS.own_names


def told_by_shapes(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """Return the fields of `MindConfig` that follow from the shapes of a published state dict.

    Args:
        shapes: published name -> shape. Where a tensor is absent its field is left out: which one is missing is said elsewhere.
    """
    told: dict[str, Any] = {
        field: shapes[name][dim]
        for field, sources in _SIZE_FROM.items()
        for name, dim in sources[::-1]  # the first source has the last word
        if dim < len(shapes.get(name, ()))
    }
    blocks = [int(found[2]) for name in shapes if (found := BLOCK.fullmatch(name))]
    if blocks:
        told["num_blocks"] = max(blocks) + 1
    if classes := shapes.get("y_embedder.embedding_table.weight"):
        told["num_classes"] = classes[0] - 1  # the last one stands for "no class"
    told["use_residual"] = any(name.startswith("embed_proj.") for name in shapes)
    if "hidden_size" in told and told.get("mapper_width") == max(512, 2 * told["hidden_size"]):
        told["mapper_width"] = 0  # as published
    return told
