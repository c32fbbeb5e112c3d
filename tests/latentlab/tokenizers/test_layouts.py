"""Names of other publishers: which layout is recognised, and what each does to every kind of name."""

import pytest

from latentlab.tokenizers import build_tokenizer
from latentlab.tokenizers.layouts import FLUX2, LLAMAGEN, TRANSFORMERS4, published_names
from latentlab.tokenizers.zoo import releases_of

HAND_WRITTEN = {  # of VQ-16, whose five levels the decoder runs from the coarsest
    "encoder.conv_in.weight": "encoder.conv_in.weight",
    "encoder.down.0.block.1.norm1.weight": "encoder.conv_blocks.0.res.1.norm1.weight",
    "encoder.down.3.downsample.conv.bias": "encoder.conv_blocks.3.downsample.conv.bias",
    "encoder.down.4.attn.1.proj_out.weight": "encoder.conv_blocks.4.attn.1.proj_out.weight",
    "encoder.down.2.block.0.nin_shortcut.weight": "encoder.conv_blocks.2.res.0.nin_shortcut.weight",
    "encoder.mid.block_1.conv1.bias": "encoder.mid.0.conv1.bias",
    "encoder.mid.attn_1.q.weight": "encoder.mid.1.q.weight",
    "decoder.mid.block_2.norm2.bias": "decoder.mid.2.norm2.bias",
    "decoder.up.4.block.2.conv2.weight": "decoder.conv_blocks.0.res.2.conv2.weight",
    "decoder.up.4.attn.2.norm.weight": "decoder.conv_blocks.0.attn.2.norm.weight",
    "decoder.up.4.upsample.conv.weight": "decoder.conv_blocks.0.upsample.conv.weight",
    "decoder.up.0.block.0.nin_shortcut.bias": "decoder.conv_blocks.4.res.0.nin_shortcut.bias",
    "decoder.norm_out.weight": "decoder.norm_out.weight",
    "quantize.embedding.weight": "quantize.embedding.weight",
    "post_quant_conv.bias": "post_quant_conv.bias",
}


def names_of(name: str) -> list[str]:
    tokenizer = build_tokenizer({**(releases_of(name)[0].architecture or {}), "ch": 32, "num_res_blocks": 2})
    return list(tokenizer.state_dict())


def test_llamagen() -> None:
    own = names_of("llamagen-vq16")
    names = LLAMAGEN.names(own, [])
    for ours, theirs in HAND_WRITTEN.items():
        if "nin_shortcut" not in ours or ours in own:
            assert names[ours] == theirs
    assert len(set(names.values())) == len(own)
    assert published_names(own, names.values()) == names


def test_own_names_stay() -> None:
    own = names_of("llamagen-vq16")
    assert published_names(own, own) == {name: name for name in own}


def test_a_network_that_has_the_marked_names_itself_keeps_them() -> None:
    own = ["encoder.conv_blocks.0.res.0.conv1.weight", "encoder.mid.block_1.weight"]
    assert published_names(own, own) == {name: name for name in own}


@pytest.mark.parametrize(
    ("layout", "ours", "theirs"),
    [
        (FLUX2, "quant_conv.weight", "encoder.quant_conv.weight"),
        (FLUX2, "post_quant_conv.weight", "decoder.post_quant_conv.weight"),
        (FLUX2, "decoder.conv_out.bias", "decoder.conv_out.bias"),
        (
            TRANSFORMERS4,
            "encoder.encoder.layer.11.attention.q_proj.weight",
            "encoder.encoder.layer.11.attention.attention.query.weight",
        ),
        (
            TRANSFORMERS4,
            "encoder.encoder.layer.0.attention.o_proj.bias",
            "encoder.encoder.layer.0.attention.output.dense.bias",
        ),
        (
            TRANSFORMERS4,
            "decoder.decoder_layers.0.attention.to_out.0.bias",
            "decoder.decoder_layers.0.attention.to_out.0.bias",
        ),
    ],
)
def test_single_names(layout, ours: str, theirs: str) -> None:  # type: ignore[no-untyped-def]
    assert layout.names([ours], [])[ours] == theirs
