"""GigaTok: published layout and sizes; both transformers and convolutions against a slow version that reads tensors by name."""

import argparse
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from latentlab import UserError, open_data
from latentlab.encoding import encode_images
from latentlab.latents import TokenizerSpec
from latentlab.pixels import to_unit_range
from latentlab.tokenizers import load_tokenizer, zoo_entries
from latentlab.tokenizers.gigatok import GigaTok
from latentlab.tokenizers.gigatok_architecture import GigaTokArchitecture
from latentlab.tokenizers.gigatok_network import pyramid
from latentlab.tokenizers.releases import ZOO

SPEC = TokenizerSpec("gigatok", "test", "vq", "sequence", 6, codebook_size=40)
# The published configuration, `init_args`, with few codes and levels.
PUBLISHED: dict[str, Any] = {
    "codebook_size": 40,
    "codebook_embed_dim": 6,
    "codebook_l2_norm": True,
    "codebook_show_usage": True,
    "commit_loss_beta": 0.25,
    "entropy_loss_ratio": 0.0,
    "encoder_ch_mult": [1, 2, 2],
    "decoder_ch_mult": [1, 2, 2],
    "model_size": None,
    "encoder_size": "small",
    "decoder_size": "base",
    "num_latent_tokens": 8,
    "z_channels": 12,
    "dropout_p": 0.0,
    "multi_level_query_init": True,
    "last_level_2d_query_init": False,
    "multi_level_2d_query_init": False,
    "adaptive_gn": True,
    "d2s_up": True,
    "rot": True,
    "use_attn": False,
    "fea_rec_loss_type": "mse",
    "fea_rec_loss_weight": 1.0,
    "distill_depth": 3,
    "out_inner_dim": 768,
}
NARROW = {"ch": 32, "image_size": 16, "embed_dim": (16, 24), "num_heads": (2, 4), "depth": (2, 1)}
ALL = {**PUBLISHED, **NARROW}
GRID = 4


def build() -> GigaTok:
    fields = {name: value for name, value in ALL.items() if name in GigaTokArchitecture.model_fields}
    tokenizer = GigaTok(GigaTokArchitecture(**fields), SPEC)
    generator = torch.Generator().manual_seed(0)
    for name, tensor in tokenizer.state_dict().items():
        gain = 1.0 if ("norm" in name or ".ln_" in name) and name.endswith("weight") else 0.0
        spread = (
            1.0
            if "positional" in name or "quantize" in name
            else 0.6
            if "encoder." in name and tensor.ndim > 1
            else 0.2
        )
        tensor.copy_(torch.randn(tensor.shape, generator=generator) * spread + gain)
    return tokenizer.eval()


def publish(folder: Path, **entries: Any) -> Path:
    """A file of a training: weights, what only training needs, and its arguments as an object."""
    state = build().state_dict() | {
        "s1to2decoder.distill_mlp.0.weight": torch.zeros(2),
        "quantize.codebook_used": torch.zeros(65536),
    }
    torch.save(
        entries or {"model": state, "steps": 7, "args": argparse.Namespace(lr=1e-4)}, folder / "VQ_SS256_e100.pt"
    )
    return folder / "VQ_SS256_e100.pt"


def pictures(n: int = 2) -> Tensor:
    return torch.rand(n, 3, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1


# --- the slow version -----------------------------------------------------------------------------------------------


class Slow:
    """The published arithmetic of one picture, from the tensors by name."""

    def __init__(self, state: dict[str, Tensor]) -> None:
        self.state = state

    def linear(self, name: str, x: Tensor) -> Tensor:
        return x @ self.state[f"{name}.weight"].flatten(1).T + self.state[f"{name}.bias"]

    def layer_norm(self, name: str, x: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[1:], self.state[f"{name}.weight"], self.state[f"{name}.bias"])

    def conv(self, name: str, x: Tensor, **options: Any) -> Tensor:
        return F.conv2d(x, self.state[f"{name}.weight"], self.state[f"{name}.bias"], **options)

    def swish(self, name: str, x: Tensor) -> Tensor:
        return F.silu(F.group_norm(x, 32, self.state[f"{name}.weight"], self.state[f"{name}.bias"], eps=1e-6))

    def resnet(self, name: str, x: Tensor) -> Tensor:
        y = self.conv(f"{name}.conv1", self.swish(f"{name}.norm1", x), padding=1)
        y = self.conv(f"{name}.conv2", self.swish(f"{name}.norm2", y), padding=1)
        return y + (self.conv(f"{name}.nin_shortcut", x) if f"{name}.nin_shortcut.weight" in self.state else x)

    def attention(self, name: str, queries: Tensor, keys: Tensor, values: Tensor, heads: int) -> Tensor:
        width = queries.shape[1]
        weights = self.state[f"{name}.in_proj_weight"].split(width), self.state[f"{name}.in_proj_bias"].split(width)
        q, k, v = (x @ w.T + b for x, w, b in zip((queries, keys, values), *weights, strict=True))
        mixed = []
        for head in range(heads):
            mine = slice(head * width // heads, (head + 1) * width // heads)
            scores = q[:, mine] @ k[:, mine].T / math.sqrt(width / heads)
            mixed.append(torch.softmax(scores, dim=1) @ v[:, mine])
        return self.linear(f"{name}.out_proj", torch.cat(mixed, dim=1))

    def layers(self, name: str, x: Tensor, query_pos: Tensor, memory: Tensor, pos: Tensor, heads: int) -> Tensor:
        for i in range(len({key.split(".")[2] for key in self.state if key.startswith(f"{name}.transformer.")})):
            layer = f"{name}.transformer.{i}"
            y = self.layer_norm(f"{layer}.norm1", x)
            x = x + self.attention(f"{layer}.self_attn", y + query_pos, y + query_pos, y, heads)
            y = self.layer_norm(f"{layer}.norm2", x)
            x = x + self.attention(f"{layer}.multihead_attn", y + query_pos, memory + pos, memory, heads)
            y = F.gelu(self.linear(f"{layer}.linear1", self.layer_norm(f"{layer}.norm3", x)))
            x = x + self.linear(f"{layer}.linear2", y)
        return self.layer_norm(f"{name}.ln_post", x)

    def positions(self, name: str) -> tuple[Tensor, Tensor]:
        grid, sequence = "positional_embedding", "latent_token_positional_embedding"
        return self.state[f"{name}.{grid}"][:, 0], self.state[f"{name}.{sequence}"][:, 0]

    def encode(self, picture: Tensor) -> Tensor:
        """[l,c] to be quantized of [3,S,S]."""
        h = self.conv("encoder.conv_in", picture[None], padding=1)
        for level in range(3):
            for block in range(2):
                h = self.resnet(f"encoder.conv_blocks.{level}.res.{block}", h)
            if level < 2:  # zeros on the right and at the bottom
                h = self.conv(f"encoder.conv_blocks.{level}.downsample.conv", F.pad(h, (0, 1, 0, 1)), stride=2)
        h = self.resnet("encoder.mid.1", self.resnet("encoder.mid.0", h))
        h = self.conv("encoder.conv_out", self.swish("encoder.norm_out", h), padding=1)
        cells = h[0].flatten(1).T  # row by row
        memory = self.linear("s2to1encoder.encoder_embed", self.layer_norm("s2to1encoder.ln_pre", cells))
        queries = self.linear("s2to1encoder.global_proj", slow_pyramid(memory.view(GRID, GRID, -1), 8))
        grid, sequence = self.positions("s2to1encoder")
        x = self.layers("s2to1encoder", queries, sequence, memory, grid, heads=2)
        return self.linear("quant_conv", self.linear("s2to1encoder.conv_out", x))

    def decode(self, codes: Tensor) -> Tensor:
        """[3,S,S] of codes [l,c]."""
        embedded = self.layer_norm("s1to2decoder.ln_pre", self.linear("post_quant_conv", codes))
        memory = self.linear("s1to2decoder.decoder_embed", embedded)
        grid, sequence = self.positions("s1to2decoder")
        x = self.layers("s1to2decoder", memory[:1].repeat(GRID**2, 1), grid, memory, sequence, heads=4)
        z = self.conv("s1to2decoder.conv_out", x.T.reshape(1, -1, GRID, GRID), padding=1)
        h = self.conv("decoder.conv_in", z, padding=1)
        h = self.resnet("decoder.mid.1", self.resnet("decoder.mid.0", h))
        for k in range(3):  # in the order they run
            gamma = self.linear(f"decoder.adaptive.{k}.gamma", (z[0].flatten(1).var(1, correction=1) + 1e-6).sqrt())
            beta = self.linear(f"decoder.adaptive.{k}.beta", z[0].mean((1, 2)))
            h = gamma[:, None, None] * F.group_norm(h, 32, eps=1e-6) + beta[:, None, None]
            for block in range(3):
                h = self.resnet(f"decoder.conv_blocks.{k}.res.{block}", h)
            if k < 2:
                h = slow_depth_to_space(self.conv(f"decoder.conv_blocks.{k}.upsample.conv1", h, padding=1))
        return self.conv("decoder.conv_out", self.swish("decoder.norm_out", h), padding=1)[0]


def slow_pyramid(grid: Tensor, tokens: int) -> Tensor:
    """Means over blocks of [h,w,c]: all, all again, 1x2 blocks, 2x2, 2x4, 4x4, ...; ``tokens`` of them."""
    means = [grid.mean((0, 1))]
    rows, columns = 1, 1
    while len(means) < tokens:
        for row in grid.chunk(rows, dim=0):
            means += [block.mean((0, 1)) for block in row.chunk(columns, dim=1)]
        rows, columns = (rows, 2 * columns) if rows == columns else (2 * rows, columns)
    return torch.stack(means)


def slow_depth_to_space(x: Tensor) -> Tensor:
    """Channel (row, column, c) of every cell goes to that place in its 2x2 cells."""
    channels = x.shape[1] // 4
    out = torch.zeros(1, channels, 2 * x.shape[2], 2 * x.shape[3])
    for row in range(2):
        for column in range(2):
            place = 2 * row + column
            out[:, :, row::2, column::2] = x[:, place * channels : (place + 1) * channels]
    return out


# --- arithmetic -----------------------------------------------------------------------------------------------------


def test_queries_are_means_over_ever_smaller_blocks() -> None:
    grid = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    expected = torch.stack([slow_pyramid(one.permute(1, 2, 0), 256) for one in grid])
    torch.testing.assert_close(pyramid(grid, 256), expected)
    halves = pyramid(grid, 4)[:, 2:]  # left half, right half
    torch.testing.assert_close(halves[:, 0], grid[:, :, :, :8].mean((2, 3)))


def test_encoder_equals_the_slow_version() -> None:
    tokenizer, x = build(), pictures()
    with torch.no_grad():
        expected = torch.stack([Slow(tokenizer.state_dict()).encode(picture) for picture in x])
        torch.testing.assert_close(tokenizer.features(x), expected, atol=1e-4, rtol=1e-4)
    assert expected.std(1).min() > 0.05  # tokens differ


def test_decoder_equals_the_slow_version() -> None:
    tokenizer = build()
    codes = F.normalize(torch.randn(2, 8, 6, generator=torch.Generator().manual_seed(2)), dim=2)
    with torch.no_grad():
        expected = torch.stack([Slow(tokenizer.state_dict()).decode(one) for one in codes])
        torch.testing.assert_close(tokenizer.reconstruct(codes), expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(tokenizer.decode(codes), expected.clamp(-1, 1), atol=1e-4, rtol=1e-4)


def test_codes_are_those_of_the_nearest_direction_in_float64() -> None:
    tokenizer, x = build(), pictures(4)
    codes, tokens = tokenizer.quantize.embedding.weight.detach().double(), tokenizer.features(x).detach().double()
    codes, tokens = codes / codes.norm(dim=1, keepdim=True), tokens / tokens.norm(dim=2, keepdim=True)
    expected = (tokens[:, :, None] - codes).square().sum(3).argmin(2)
    indices = tokenizer.indices(x)
    assert torch.equal(indices, expected) and len(indices.unique()) > 3
    torch.testing.assert_close(tokenizer.codebook.double(), codes, atol=1e-6, rtol=0)
    torch.testing.assert_close(tokenizer.encode(x).double(), codes[expected], atol=1e-6, rtol=0)
    torch.testing.assert_close(tokenizer.decode_indices(indices), tokenizer.decode(tokenizer.encode(x)))


# --- layout ---------------------------------------------------------------------------------------------------------


def names() -> set[str]:
    """Every published name, written out from the description of the layout."""

    def both(*modules: str) -> set[str]:
        return {f"{module}.{kind}" for module in modules for kind in ("weight", "bias")}

    def resnet(prefix: str, shortcut: bool) -> set[str]:
        parts = ["norm1", "conv1", "norm2", "conv2", *(["nin_shortcut"] if shortcut else [])]
        return both(*(f"{prefix}.{part}" for part in parts))

    found = both("quant_conv", "post_quant_conv") | {"quantize.embedding.weight"}
    for half, blocks in (("encoder", 2), ("decoder", 3)):
        found |= both(f"{half}.conv_in", f"{half}.norm_out", f"{half}.conv_out")
        found |= resnet(f"{half}.mid.0", False) | resnet(f"{half}.mid.1", False)
        wider = 1 if half == "encoder" else 2  # level at which the width changes, in the order they run
        for level in range(3):
            for block in range(blocks):
                found |= resnet(f"{half}.conv_blocks.{level}.res.{block}", level == wider and block == 0)
            if level < 2:
                found |= both(f"{half}.conv_blocks.{level}." + ("downsample.conv", "upsample.conv1")[half == "decoder"])
    found |= both(*(f"decoder.adaptive.{k}.{part}" for k in range(3) for part in ("gamma", "beta")))
    for half, embed, depth in (("s2to1encoder", "encoder_embed", 2), ("s1to2decoder", "decoder_embed", 1)):
        found |= both(*(f"{half}.{part}" for part in ("ln_pre", "ln_post", "conv_out", embed)))
        found |= {f"{half}.positional_embedding", f"{half}.latent_token_positional_embedding"}
        for i in range(depth):
            layer = f"{half}.transformer.{i}"
            found |= both(*(f"{layer}.{part}" for part in ("linear1", "linear2", "norm1", "norm2", "norm3")))
            for attention in ("self_attn", "multihead_attn"):
                found |= both(f"{layer}.{attention}.out_proj")
                found |= {f"{layer}.{attention}.in_proj_{kind}" for kind in ("weight", "bias")}
    return found | both("s2to1encoder.global_proj")


def test_names_are_the_published_ones() -> None:
    assert set(build().state_dict()) == names()


@pytest.mark.parametrize(("release", "parameters"), [("s-s", 136_138_763), ("s-b", 232_465_163), ("b-l", 621_702_667)])
def test_full_size_parameter_counts_are_the_published_ones(release: str, parameters: int) -> None:
    """They include what only training needs: three linear maps to the 768 features of DINOv2, and a record of 65536 codes."""
    architecture = GigaTokArchitecture(**next(known for known in ZOO["gigatok"] if known.name == release).architecture)
    with torch.device("meta"):
        tokenizer = GigaTok(architecture, SPEC)
    w = architecture.decoder_transformer.width
    distillation = (w + 1) * 4 * w + (4 * w + 1) * 4 * w + (4 * w + 1) * 768
    assert sum(tensor.numel() for tensor in tokenizer.parameters()) + distillation + 65536 == parameters


# --- files ----------------------------------------------------------------------------------------------------------


def test_file_of_a_training_loads_and_drops_what_only_training_needs(tmp_path: Path) -> None:
    tokenizer, written, x = load_tokenizer("gigatok", weights=publish(tmp_path), architecture=ALL), build(), pictures()
    assert torch.equal(tokenizer.indices(x), written.indices(x))
    spec = tokenizer.spec
    assert (spec.kind, spec.layout, spec.channels, spec.codebook_size) == ("vq", "sequence", 6, 40)
    assert tokenizer.encode(x).shape == (2, 8, 6) and tokenizer.decode(tokenizer.encode(x)).shape == x.shape
    assert torch.equal(tokenizer.normalize(tokenizer.encode(x)), tokenizer.encode(x))


def test_averaged_weights_are_the_default_and_the_two_never_share_a_name(tmp_path: Path) -> None:
    averaged = build().state_dict()
    path = publish(tmp_path, ema=averaged, model={name: 2 * tensor for name, tensor in averaged.items()})
    default = load_tokenizer("gigatok", weights=path, architecture=ALL)
    raw = load_tokenizer("gigatok", weights=path, architecture={**ALL, "use_ema": False})
    name = "post_quant_conv.weight"
    assert torch.equal(default.state_dict()[name], averaged[name])
    assert torch.equal(raw.state_dict()[name], 2 * averaged[name])
    assert raw.spec.release == f"{default.spec.release}-raw"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"use_attn": True}, "use_attn: Input should be False"),
        ({"codebook_l2_norm": False}, "codebook_l2_norm: Input should be True"),
        ({"encoder_size": "giant"}, "encoder_size: Input should be 'tiny', 'small', 'base'"),
        ({"num_latent_tokens": 48}, "num_latent_tokens 48 must be a power of 2 up to 16"),
        ({"decoder_ch_mult": [1, 2]}, "3 levels of the encoder and 2 of the decoder must be equally many"),
        ({"code_size": 3}, r"unknown architecture field 'code_size'. Did you mean .*codebook_size"),
        ({"codebook_size": 41}, r"1 of another shape \(quantize.embedding.weight is \[40, 6\] instead of \[41, 6\]\)"),
    ],
)
def test_mistakes_are_one_clear_line(tmp_path: Path, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        load_tokenizer("gigatok", weights=publish(tmp_path), architecture={**ALL, **fields})
    assert "\n" not in str(caught.value)


def test_wrong_keys_and_sizes(tmp_path: Path) -> None:
    state = build().state_dict()
    del state["s2to1encoder.global_proj.bias"]
    path = publish(tmp_path, model={**state, "s1to2decoder.q_2d": torch.zeros(1)})
    with pytest.raises(
        UserError, match=r"1 missing \(s2to1encoder.global_proj.bias\); 1 unexpected \(s1to2decoder.q_2d\)"
    ):
        load_tokenizer("gigatok", weights=path, architecture=ALL)
    with pytest.raises(UserError, match=r"images of 32x32 pixels do not fit 'gigatok': .* for 16x16 only"):
        build().encode(torch.zeros(1, 3, 32, 32))


def test_listed_with_addresses() -> None:
    entries = {entry.release: entry for entry in zoo_entries() if entry.name == "gigatok"}
    assert {"s-s", "s-b", "b-l", "b-l-dino-disc"} <= set(entries)
    for entry in entries.values():
        assert (entry.kind, entry.latent_shape, entry.codebook_size, entry.licence) == (
            "vq-cosine",
            (256, 8),
            16384,
            "MIT",
        )
        assert entry.source is not None and entry.source.url is not None and entry.source.filename.startswith("VQ_")


def test_store_holds_codes_and_their_vectors(tmp_path: Path) -> None:
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)).save(tmp_path / "a.png")
    Image.fromarray(np.random.default_rng(1).integers(0, 256, (30, 20, 3), dtype=np.uint8)).save(tmp_path / "b.png")
    tokenizer, images = build(), open_data(f"imagefolder:{tmp_path}", image_size=16)
    store = encode_images(tokenizer, images, tmp_path / "store", batch_size=1)
    codes = store.codes(slice(None))
    assert store.shape == (6, 8) and store.has_codes and codes.shape == (2, 8)
    assert torch.equal(codes, tokenizer.indices(to_unit_range(images.images(np.arange(2)))))
    torch.testing.assert_close(store.take(slice(None)), tokenizer.codebook[codes].transpose(1, 2))
