"""MAETok: published layout and configuration, arithmetic against slow versions and timm, and outputs of the authors' code."""

import json
import math
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm.models.vision_transformer as timm_vit
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from latentlab import UserError
from latentlab.latents import TokenizerSpec
from latentlab.tokenizers import load_tokenizer, zoo_entries
from latentlab.tokenizers.maetok import MAETok
from latentlab.tokenizers.maetok_architecture import MAETokArchitecture
from latentlab.tokenizers.maetok_network import ToPixel
from latentlab.tokenizers.vision_transformer import Attention, Block, ModulatedBlock, Rotation
from latentlab.tokenizers.zoo import find_release

GOLDEN = Path(__file__).parents[4] / "shared" / "golden" / "maetok"
FILE = GOLDEN / "model.safetensors"
NARROW = {"embed_dim": 192, "num_heads": 3, "depth": 3}

needs_golden = pytest.mark.skipif(not FILE.is_file(), reason="the MAETok reference files are not here")

TINY: dict[str, Any] = {
    "image_size": 16,
    "encoder_model": "vit_base_patch14_dinov2.lvd142m",
    "decoder_model": "vit_base_patch14_dinov2_movqv2",
    "enc_patch_size": 4,
    "dec_patch_size": 4,
    "num_latent_tokens": 5,
    "codebook_embed_dim": 6,
    "dec_cls_token": False,
    "use_ape": False,
    "use_rope": True,
    "rope_mixed": True,
    "vq_mean": 0.25,
    "vq_std": 0.5,
}
SIZE = {"embed_dim": 24, "num_heads": 2, "depth": 2}
PLAIN = {"decoder_model": "vit_large_patch14_dinov2.lvd142m", "use_ape": True, "use_rope": False, "rope_mixed": False}
NORM = partial(nn.LayerNorm, eps=1e-6)
SPEC = TokenizerSpec("maetok", "test", "continuous", "sequence", 6)


def random_weights(module: nn.Module) -> None:
    """Seeded values for every parameter and buffer, norms and layer scales included; positions of patches stay what they are."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, tensor in module.state_dict().items():
            if not name.endswith(("freqs_t_x", "freqs_t_y")):
                tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.3)


def tiny(**fields: Any) -> MAETok:
    architecture = MAETokArchitecture(**{**TINY, **SIZE, "dec_cls_token": False, **fields})
    tokenizer = MAETok(architecture, SPEC)
    for half in (tokenizer.encoder, tokenizer.decoder):
        if half.rotary:
            side = math.isqrt(len(half.freqs_t_x))
            half.freqs_t_x.copy_(torch.arange(side**2) % side)
            half.freqs_t_y.copy_(torch.arange(side**2) // side)
    random_weights(tokenizer)
    return tokenizer.eval()


def publish(folder: Path, tokenizer: MAETok, config: dict[str, Any] | None, **further: Tensor) -> Path:
    """A folder as on the hub: weights, and ``config.json`` with fields that nobody needs."""
    save_file({**tokenizer.state_dict(), **further}, folder / "model.safetensors")
    if config is not None:
        rest = {"repa_layer_indices": [8], "encoder_ch_mult": [1, 1, 2, 2, 4], "tau": 0.1, "enc_pretrained": False}
        (folder / "config.json").write_text(json.dumps({**config, **rest}))
    return folder / "model.safetensors"


def pictures(n: int = 2, side: int = 16) -> Tensor:
    return torch.rand(n, 3, side, side, generator=torch.Generator().manual_seed(1)) * 2 - 1


# --- outputs of the authors' code -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def golden() -> dict[str, Tensor]:
    with np.load(GOLDEN / "golden.npz") as arrays:
        return {name: torch.from_numpy(arrays[name]) for name in arrays.files}


@needs_golden
def test_reproduces_upstream(golden: dict[str, Tensor]) -> None:
    tokenizer = load_tokenizer("maetok", weights=FILE, architecture=NARROW)
    latents = tokenizer.encode(golden["x"])
    torch.testing.assert_close(latents, golden["latents"], atol=1e-4, rtol=0)
    images = tokenizer.decode(golden["latents"])
    torch.testing.assert_close(images, golden["recon"].clamp(-1, 1), atol=1e-3, rtol=0)
    assert tokenizer.spec.layout == "sequence" and tokenizer.spec.channels == 32


@needs_golden
def test_published_configuration_is_read_from_beside_the_weights_or_given(
    golden: dict[str, Tensor], tmp_path: Path
) -> None:
    reference = json.loads((GOLDEN / "config.json").read_text())
    (tmp_path / "model.safetensors").symlink_to(FILE)
    published = {**reference["published_config_json"], "vq_mean": 0.125, "vq_std": 2.0}
    (tmp_path / "config.json").write_text(json.dumps(published))
    beside = load_tokenizer("maetok", weights=tmp_path / "model.safetensors", architecture=reference["override"])
    given = load_tokenizer("maetok", weights=FILE, architecture={**published, **reference["override"]})
    x = golden["x"][:1]
    for tokenizer in (beside, given):
        assert (tokenizer.spec.shift, tokenizer.spec.scale) == ((0.125,), (0.5,))
        torch.testing.assert_close(tokenizer.encode(x), golden["latents"][:1], atol=1e-4, rtol=0)


@needs_golden
def test_full_size_keys_and_shapes_are_the_published_ones() -> None:
    listing = json.loads((GOLDEN / "keys_full_size.json").read_text())
    keys = {key: shape for key, (shape, _) in listing.items()}
    assert len(keys) == 316
    unused = {key for key in keys if key.startswith(("encoder.mask_token", "decoder.model.patch_embed."))}
    unused.add("decoder.model.pos_embed")  # with rotary positions nobody reads it
    with torch.device("meta"):
        tokenizer = MAETok(MAETokArchitecture(**find_release("maetok", "b-128").architecture), SPEC)
    assert {key: list(tensor.shape) for key, tensor in tokenizer.state_dict().items()} == {
        key: shape for key, shape in keys.items() if key not in unused
    }


# --- arithmetic -----------------------------------------------------------------------------------------------------


def test_mixed_rotation_is_multiplication_with_complex_numbers() -> None:
    """Pair (2i, 2i+1) of token (x, y) in a head times exp(i (x f_x + y f_y)); tokens around the patches stay."""
    encoder = tiny().encoder
    block, heads, pairs, start = 1, 2, 6, 1
    vectors = torch.randn(2, heads, 1 + 16 + 5, 2 * pairs, generator=torch.Generator().manual_seed(0))
    rotation = encoder.rotations(start)[block]
    assert rotation is not None
    expected = vectors.clone()
    for patch in range(16):
        x, y = patch % 4, patch // 4
        for head in range(heads):
            f_x, f_y = encoder.freqs[:, block, head * pairs : (head + 1) * pairs]
            turn = torch.polar(torch.ones(pairs), (x * f_x + y * f_y).detach())
            complex_pairs = torch.view_as_complex(vectors[:, head, start + patch].reshape(2, pairs, 2).contiguous())
            expected[:, head, start + patch] = torch.view_as_real(complex_pairs * turn).flatten(1)
    with torch.no_grad():
        torch.testing.assert_close(rotation(vectors), expected)


def test_rotation_of_half_precision_keeps_the_angles() -> None:
    """A row of 512 pixels has 32 patches: in bfloat16 such an angle would be wrong by 0.1."""
    angles = torch.linspace(20, 31, 12).view(2, 1, 6)
    vectors = torch.randn(1, 1, 2, 12, generator=torch.Generator().manual_seed(0)).bfloat16()
    expected = Rotation(angles, 0)(vectors.float())
    torch.testing.assert_close(Rotation(angles, 0)(vectors).float(), expected, atol=0.03, rtol=0)


def test_attention_rotates_queries_and_keys_only() -> None:
    attention = Attention(8, heads=2)
    random_weights(attention)
    x, angles = torch.randn(1, 5, 8, generator=torch.Generator().manual_seed(0)), torch.rand(3, 2, 2)
    rotation = Rotation(angles, start=1)
    q, k, v = (part.view(5, 2, 4).transpose(0, 1)[None] for part in attention.qkv(x)[0].split(8, dim=1))
    weights = torch.softmax(rotation(q) @ rotation(k).transpose(2, 3) / 2, dim=3)
    expected = attention.proj((weights @ v)[0].transpose(0, 1).reshape(1, 5, 8))
    torch.testing.assert_close(attention(x, rotation), expected)


def test_plain_blocks_are_timms() -> None:
    size = MAETokArchitecture(**TINY, **SIZE).encoder_transformer
    ours = Block(size)
    theirs = timm_vit.Block(24, 2, qkv_bias=True, init_values=1.0, norm_layer=NORM)
    random_weights(ours)
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(2, 7, 24, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(ours(x), theirs(x))


def test_modulated_block_token_by_token() -> None:
    """Norms without affine; x * scale + shift at latent tokens, with nothing added to the scale; no layer scale."""
    size = MAETokArchitecture(**TINY, **SIZE).decoder_transformer
    block = ModulatedBlock(size, latent_channels=6)
    random_weights(block)
    x = torch.randn(1, 7, 24, generator=torch.Generator().manual_seed(0))
    latents = torch.randn(1, 3, 6, generator=torch.Generator().manual_seed(1))
    linear = block.adaLN_modulation[1]

    def normed(tokens: Tensor, shift_at: int, scale_at: int) -> Tensor:
        rows = []
        for t, token in enumerate(tokens[0]):
            row = (token - token.mean()) / (token.var(correction=0) + 1e-6).sqrt()
            if t >= 4:
                latent = latents[0, t - 4]
                four = (linear.weight @ (latent * torch.sigmoid(latent)) + linear.bias).view(4, 24)
                row = row * four[scale_at] + four[shift_at]
            rows.append(row)
        return torch.stack(rows)[None]

    with torch.no_grad():
        expected = x + block.attn(normed(x, 0, 1))
        expected = expected + block.mlp(normed(expected, 2, 3))
        torch.testing.assert_close(block(x, None, latents), expected)


def test_encoder_is_timms_transformer_with_latent_tokens_appended() -> None:
    """Names and shapes too: timm's module takes the weights as they are. Learned positions are added with rotation or without."""
    encoder = tiny(**PLAIN).encoder
    theirs = timm_vit.VisionTransformer(
        img_size=16,
        patch_size=4,
        num_classes=0,
        embed_dim=24,
        depth=2,
        num_heads=2,
        init_values=1.0,
        global_pool="token",
    ).eval()
    theirs.load_state_dict(encoder.model.state_dict())
    x = pictures()
    with torch.no_grad():
        tokens = torch.cat([theirs.cls_token.expand(2, -1, -1), theirs.patch_embed(x)], dim=1) + theirs.pos_embed
        latent = (encoder.latent_tokens + encoder.latent_pos_embed).expand(2, -1, -1)
        expected = theirs.norm(theirs.blocks(torch.cat([tokens, latent], dim=1)))[:, -5:]
        torch.testing.assert_close(encoder(x), expected)
    assert {"cls_token", "pos_embed"} <= dict(tiny().encoder.model.named_parameters()).keys()


@pytest.mark.parametrize("cls", [True, False])
def test_plain_decoder_is_timms_blocks_over_mask_and_latent_tokens(cls: bool) -> None:
    decoder = tiny(**PLAIN, dec_cls_token=cls).decoder
    state = decoder.state_dict()
    blocks = [timm_vit.Block(24, 2, qkv_bias=True, init_values=1.0, norm_layer=NORM) for _ in range(2)]
    for i, block in enumerate(blocks):
        prefix = f"model.blocks.{i}."
        block.load_state_dict({k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)})
    latents = torch.randn(2, 5, 6, generator=torch.Generator().manual_seed(0))
    embedded = torch.randn(2, 5, 24, generator=torch.Generator().manual_seed(1))
    image = state["mask_token"].expand(2, 16, 24)
    if cls:
        image = torch.cat([state["model.cls_token"].expand(2, 1, 24), image], dim=1)
    x = torch.cat([image + state["model.pos_embed"][:, 0 if cls else 1 :], embedded + state["latent_pos_embed"]], dim=1)
    with torch.no_grad():
        for block in blocks:
            x = block(x)
        x = F.layer_norm(x, (24,), state["model.norm.weight"], state["model.norm.bias"], eps=1e-6)
        expected = decoder.to_pixel(x[:, 1:17] if cls else x[:, :16])
        torch.testing.assert_close(decoder(latents, embedded), expected)


def test_pixels_of_a_patch_are_ordered_row_column_colour() -> None:
    to_pixel = ToPixel(width=12, patch=2)
    nn.init.eye_(to_pixel.model.weight)
    nn.init.zeros_(to_pixel.model.bias)
    tokens = torch.arange(9 * 12.0).view(1, 9, 12)
    image = to_pixel(tokens).detach()
    for y in range(6):
        for x in range(6):
            patch, inside = 3 * (y // 2) + x // 2, 2 * (y % 2) + x % 2
            assert image[0, :, y, x].tolist() == [12 * patch + 3 * inside + colour for colour in range(3)]


# --- files ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fields", [{}, PLAIN, {**PLAIN, "dec_cls_token": True}, {"decoder_model": PLAIN["decoder_model"]}]
)
def test_published_folders_of_both_kinds_load(tmp_path: Path, fields: dict[str, Any]) -> None:
    written = tiny(**fields)
    path = publish(tmp_path, written, {**TINY, **fields})
    tokenizer = load_tokenizer("maetok", weights=path, architecture=SIZE)
    x = pictures()
    latents = tokenizer.encode(x)
    torch.testing.assert_close(latents, written.encode(x))
    torch.testing.assert_close(tokenizer.decode(latents), written.decode(latents))
    assert latents.shape == (2, 5, 6) and tokenizer.decode(latents).abs().max() <= 1
    torch.testing.assert_close(tokenizer.normalize(latents), (latents - 0.25) / 0.5)
    torch.testing.assert_close(tokenizer.denormalize(tokenizer.normalize(latents)), latents)
    assert not tokenizer.training and not any(p.requires_grad for p in tokenizer.parameters())
    assert len(tokenizer.spec.weights_sha256 or "") == 64


def test_a_configuration_that_says_nothing_of_a_class_token_leaves_it_to_the_file(tmp_path: Path) -> None:
    silent = {name: value for name, value in {**TINY, **PLAIN}.items() if name != "dec_cls_token"}
    for cls in (True, False):
        written = tiny(**PLAIN, dec_cls_token=cls)
        path = publish(tmp_path, written, silent)
        latents = written.encode(pictures())
        tokenizer = load_tokenizer("maetok", weights=path, architecture=SIZE)
        torch.testing.assert_close(tokenizer.decode(latents), written.decode(latents))


def test_what_only_training_needs_is_dropped_by_name(tmp_path: Path) -> None:
    names = """encoder.mask_token decoder.model.patch_embed.proj.weight decoder.model.pos_embed decoder_hog.norm.weight
        decoder_dino.mask_token decoder_clip.x post_quant_conv_hog.weight post_quant_conv_dino.bias to_pixel_clip.model.weight
        repa_model.blocks.0.norm1.weight projection.0.weight clip_model.a hog_generator.gk quantize.codebook_used"""
    extra = {name: torch.zeros(3) for name in names.split()}
    path = publish(tmp_path, tiny(), TINY, **extra)
    torch.testing.assert_close(
        load_tokenizer("maetok", weights=path, architecture=SIZE).encode(pictures()), tiny().encode(pictures())
    )


def test_anything_else_is_one_error_that_lists_it(tmp_path: Path) -> None:
    state = tiny().state_dict()
    del state["encoder.freqs"], state["quant_conv.bias"]
    state |= {"decoder.extra": torch.zeros(1), "encoder.latent_tokens": torch.zeros(1, 6, 24)}
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(UserError) as caught:
        load_tokenizer("maetok", weights=tmp_path / "model.safetensors", architecture={**TINY, **SIZE})
    message = str(caught.value)
    assert "model.safetensors for 'maetok' does not fit the architecture" in message and "\n" not in message
    assert "2 missing (encoder.freqs, quant_conv.bias)" in message and "1 unexpected (decoder.extra)" in message
    assert "encoder.latent_tokens is [1, 6, 24] instead of [1, 5, 24]" in message


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"encoder_model": "vit_giant_patch14_dinov2.lvd142m"},
            r"encoder_model 'vit_giant_patch14_dinov2.lvd142m' is not",
        ),
        ({"encoder_model": "vit_base_patch14_dinov2_movqv2"}, r"encoder_model 'vit_base_patch14_dinov2_movqv2' is not"),
        ({"image_size": 18}, r"image_size 18 is no multiple of the patch size 4"),
        ({"rope_mixed": False}, r"use_rope goes only with rope_mixed"),
        ({"to_pixel": "conv"}, r"to_pixel: Input should be 'linear'"),
        ({"num_heads": 7}, r"embed_dim 24 must be a positive multiple of twice num_heads 7"),
        ({"embed_dims": 24}, r"unknown architecture field 'embed_dims'\. Did you mean embed_dim"),
        ({"vq_std": 0.0}, r"vq_std: Input should be greater than 0"),
    ],
)
def test_impossible_architectures_are_refused_in_one_line(tmp_path: Path, fields: dict[str, Any], message: str) -> None:
    path = publish(tmp_path, tiny(), TINY)
    with pytest.raises(UserError, match=message) as caught:
        load_tokenizer("maetok", weights=path, architecture={**SIZE, **fields})
    assert "\n" not in str(caught.value)


def test_damaged_or_foreign_configuration(tmp_path: Path) -> None:
    path = publish(tmp_path, tiny(), None)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"config\.json"):
        load_tokenizer("maetok", weights=path, architecture={**TINY, **SIZE})
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))  # of something else: left aside
    load_tokenizer("maetok", weights=path, architecture={**TINY, **SIZE})


def test_encoder_and_decoder_may_differ_in_size(tmp_path: Path) -> None:
    pair = {"embed_dim": (24, 32), "depth": (1, 2), "num_heads": (2, 4)}
    written = MAETok(MAETokArchitecture(**TINY, **pair), SPEC)
    random_weights(written)
    path = publish(tmp_path, written, TINY)
    tokenizer = load_tokenizer("maetok", weights=path, architecture=pair)
    assert tokenizer.decode(tokenizer.encode(pictures())).shape == (2, 3, 16, 16)
    published = MAETokArchitecture(**{**TINY, **PLAIN})
    assert (published.encoder_transformer.depth, published.decoder_transformer.width) == (12, 1024)
    assert MAETokArchitecture(**TINY, embed_dim=128).encoder_transformer.heads == 2


# --- use ------------------------------------------------------------------------------------------------------------


def test_only_images_and_latents_of_the_right_size_fit(tmp_path: Path) -> None:
    tokenizer = load_tokenizer("maetok", weights=publish(tmp_path, tiny(), TINY), architecture=SIZE)
    with pytest.raises(UserError, match=r"images of 32x32 pixels do not fit 'maetok': .* for 16x16 only"):
        tokenizer.encode(torch.zeros(1, 3, 32, 32))
    with pytest.raises(UserError, match=r"float batch \[n,3,H,W\]"):
        tokenizer.encode(torch.zeros(1, 3, 16, 16, dtype=torch.uint8))
    for shape in ((1, 6, 5), (1, 4, 6), (1, 5, 6, 1)):
        with pytest.raises(UserError, match=r"latents must be \[n,5,6\]"):
            tokenizer.decode(torch.zeros(shape))


def test_batches_do_not_matter() -> None:
    tokenizer, x = tiny(), pictures(3)
    alone = torch.cat([tokenizer.encode(image[None]) for image in x])
    torch.testing.assert_close(alone, tokenizer.encode(x), atol=1e-5, rtol=1e-5)


def test_listed_with_its_companion() -> None:
    entries = {entry.release: entry for entry in zoo_entries() if entry.name == "maetok" and entry.source is not None}
    assert (entries["b-128"].latent_shape, entries["b-128"].image_size) == ((128, 32), 256)
    assert (entries["b-512"].image_size, entries["b-512"].kind) == (512, "none")
    release = find_release("maetok", "b-128")
    assert [file.filename for file in release.companions] == ["config.json"]
    assert release.weights is not None and release.weights.repo == release.companions[0].repo == "MAETok/maetok-b-128"
