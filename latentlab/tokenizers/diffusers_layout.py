"""The parameter names of diffusers' ``AutoencoderKL``, for networks that `latentlab.tokenizers.ldm` names as their authors did.

The tensors are the same; decoder levels are counted from the other end, and the 1x1 convolutions of attention are matrices.
"""

from collections.abc import Iterable, Mapping

from torch import Tensor

MARK = "encoder.down_blocks."
"""What some key of a state dict in this layout begins with, and none in the authors' own."""

PARTS = (
    ("down.{level}.block.", "down_blocks.{level}.resnets."),
    ("down.{level}.downsample.", "down_blocks.{level}.downsamplers.0."),
    ("up.{level}.block.", "up_blocks.{reverse}.resnets."),
    ("up.{level}.upsample.", "up_blocks.{reverse}.upsamplers.0."),
    ("mid.block_1.", "mid_block.resnets.0."),
    ("mid.block_2.", "mid_block.resnets.1."),
    ("mid.attn_1.norm.", "mid_block.attentions.0.group_norm."),
    ("mid.attn_1.q.", "mid_block.attentions.0.to_q."),
    ("mid.attn_1.k.", "mid_block.attentions.0.to_k."),
    ("mid.attn_1.v.", "mid_block.attentions.0.to_v."),
    ("mid.attn_1.proj_out.", "mid_block.attentions.0.to_out.0."),
    ("nin_shortcut.", "conv_shortcut."),
    ("norm_out.", "conv_norm_out."),
)
"""Part of a name: the authors', diffusers'. ``level`` counts from the finest, ``reverse`` from the coarsest."""

OLD_PARTS = (("to_q.", "query."), ("to_k.", "key."), ("to_v.", "value."), ("to_out.0.", "proj_attn."))
"""Part of a name of attention: today's, and that of files from 2022 (Stable Diffusion's among them)."""


def is_diffusers(state: Iterable[str]) -> bool:
    """Return whether these are keys of diffusers' layout."""
    return any(key.startswith(MARK) for key in state)


def diffusers_names(names: Iterable[str], state: Iterable[str]) -> dict[str, str]:
    """Return each of our ``names`` with its name in diffusers' layout, in the dialect that the keys ``state`` are in."""
    names = list(names)
    levels = 1 + max(int(name.split(".")[2]) for name in names if name.startswith("decoder.up."))
    parts = [
        (ours.format(level=level), theirs.format(level=level, reverse=levels - 1 - level))
        for ours, theirs in PARTS
        for level in range(levels if "{level}" in ours else 1)
    ]
    if any(f".{old}" in key for key in state for _, old in OLD_PARTS):
        parts += OLD_PARTS
    return {name: _replaced(name, parts) for name in names}


def _replaced(name: str, parts: Iterable[tuple[str, str]]) -> str:
    for before, after in parts:
        name = name.replace(before, after)
    return name


def as_convolutions(state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return ``state`` with every matrix [c,c] as the 1x1 convolution [c,c,1,1] where one is expected."""
    return {
        key: tensor[:, :, None, None] if tensor.ndim == 2 and key in expected and expected[key].ndim == 4 else tensor
        for key, tensor in state.items()
    }
