"""Parameter names of other publishers, above all for the network that `latentlab.tokenizers.ldm` names as its authors did.

The tensors are the same. A layout is a table of parts of names, applied in order; it is recognised by how some key begins.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torch import Tensor

Parts = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Layout:
    """One way to name the parameters.

    Attributes:
        mark: what some key begins with in this layout, and in no other.
        parts: part of a name as we say it, and as it is here; ``{level}`` counts from the finest, ``{reverse}`` from the coarsest
            one.
        dialect: further replacements in names of this layout, where the keys of a file have one of their right sides.
    """

    mark: str
    parts: Parts
    dialect: Parts = ()

    def names(self, ours: Iterable[str], keys: Iterable[str]) -> dict[str, str]:
        """Return each of ``ours`` with its name in this layout, in the dialect of ``keys``."""
        ours = list(ours)
        levels = 1 + max((int(name.split(".")[2]) for name in ours if name.startswith("decoder.up.")), default=-1)
        parts = [
            (before.format(level=level), after.format(level=level, reverse=levels - 1 - level))
            for before, after in self.parts
            for level in range(levels if "{level}" in before else 1)
        ]
        if any(f".{after}" in key for key in keys for _, after in self.dialect):
            parts += self.dialect
        return {name: _replaced(name, parts) for name in ours}


DIFFUSERS = Layout(
    mark="encoder.down_blocks.",
    parts=(
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
    ),
    dialect=(("to_q.", "query."), ("to_k.", "key."), ("to_v.", "value."), ("to_out.0.", "proj_attn.")),
)
"""``AutoencoderKL`` and ``AutoencoderKLFlux2`` of diffusers; the dialect is that of files from 2022."""

LLAMAGEN = Layout(
    mark="encoder.conv_blocks.",
    parts=(
        ("encoder.down.{level}.block.", "encoder.conv_blocks.{level}.res."),
        ("encoder.down.{level}.attn.", "encoder.conv_blocks.{level}.attn."),
        ("encoder.down.{level}.downsample.", "encoder.conv_blocks.{level}.downsample."),
        ("decoder.up.{level}.block.", "decoder.conv_blocks.{reverse}.res."),
        ("decoder.up.{level}.attn.", "decoder.conv_blocks.{reverse}.attn."),
        ("decoder.up.{level}.upsample.", "decoder.conv_blocks.{reverse}.upsample."),
        (".mid.block_1.", ".mid.0."),
        (".mid.attn_1.", ".mid.1."),
        (".mid.block_2.", ".mid.2."),
    ),
)
"""LlamaGen: the decoder's levels in the order they run."""

FLUX2 = Layout(
    mark="encoder.quant_conv.",
    parts=(("quant_conv.", "encoder.quant_conv."), ("post_encoder.quant_conv.", "decoder.post_quant_conv.")),
)
"""The authors' file of FLUX.2, where the 1x1 convolutions belong to encoder and decoder."""

TRANSFORMERS4 = Layout(
    mark="encoder.encoder.layer.0.attention.attention.",
    parts=(
        ("attention.q_proj.", "attention.attention.query."),
        ("attention.k_proj.", "attention.attention.key."),
        ("attention.v_proj.", "attention.attention.value."),
        ("attention.o_proj.", "attention.output.dense."),
    ),
)
"""RAE with the encoder as transformers named it before version 5."""

LAYOUTS = (DIFFUSERS, LLAMAGEN, FLUX2, TRANSFORMERS4)


def published_names(ours: Iterable[str], keys: Iterable[str]) -> dict[str, str]:
    """Return each of ``ours`` with its name in the layout of ``keys``; its own where that is none of `LAYOUTS`."""
    ours, keys = list(ours), list(keys)
    layout = layout_of(keys)
    if layout is not None and not _begins(ours, layout.mark):
        return layout.names(ours, keys)
    return {name: name for name in ours}


def layout_of(keys: Iterable[str]) -> Layout | None:
    """Return which of `LAYOUTS` the ``keys`` of a file have; None for our own names."""
    keys = list(keys)
    return next((layout for layout in LAYOUTS if _begins(keys, layout.mark)), None)


def as_convolutions(state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return ``state`` with every matrix [c,c] as the 1x1 convolution [c,c,1,1] where one is expected."""
    return {
        key: tensor[:, :, None, None] if tensor.ndim == 2 and key in expected and expected[key].ndim == 4 else tensor
        for key, tensor in state.items()
    }


def _begins(keys: Iterable[str], mark: str) -> bool:
    return any(key.startswith(mark) for key in keys)


def _replaced(name: str, parts: Iterable[tuple[str, str]]) -> str:
    for before, after in parts:
        name = name.replace(before, after)
    return name
