"""TiTok: published layout and configuration; each kind against a slow version that reads the tensors by their published names."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from latentlab import UserError
from latentlab.latents import TokenizerSpec
from latentlab.tokenizers import DiscreteTokenizer, Tokenizer, load_tokenizer, zoo_entries
from latentlab.tokenizers.maskgit_vqgan import ResnetBlock
from latentlab.tokenizers.releases import ZOO
from latentlab.tokenizers.titok import kind_of
from latentlab.tokenizers.titok_architecture import TiTokArchitecture

SPEC = TokenizerSpec("titok", "test", "vq", "sequence", 4)
VIT = {
    "vit_enc_model_size": "small",
    "vit_dec_model_size": "small",
    "vit_enc_patch_size": 16,
    "vit_dec_patch_size": 16,
    "num_latent_tokens": 6,
}
KINDS: dict[str, dict[str, Any]] = {
    "legacy": {**VIT, "codebook_size": 20, "token_size": 4, "use_l2_norm": True, "commitment_cost": 0.25},
    "vq8k": {
        **VIT, "codebook_size": 20, "token_size": 4, "use_l2_norm": False, "finetune_decoder": False, "is_legacy": False,
    },
    "vae": {**VIT, "quantize_mode": "vae", "token_size": 4, "finetune_decoder": False, "is_legacy": False},
}  # fmt: skip
NARROW = {"embed_dim": (24, 32), "num_heads": (2, 4), "depth": (2, 1), "hidden_channels": 32, "pixel_codebook_size": 16}
SIDE = 32


def names(kind: str) -> set[str]:
    """Every published name, written out from the description of the layout."""

    def half(prefix: str, depth: int) -> set[str]:
        block = (
            "ln_1.weight ln_1.bias attn.in_proj_weight attn.in_proj_bias attn.out_proj.weight attn.out_proj.bias "
            + ("ln_2.weight ln_2.bias mlp.c_fc.weight mlp.c_fc.bias mlp.c_proj.weight mlp.c_proj.bias")
        )
        tokens = "class_embedding positional_embedding latent_token_positional_embedding"
        norms = "ln_pre.weight ln_pre.bias ln_post.weight ln_post.bias"
        found = {f"{prefix}.{name}" for name in f"{tokens} {norms}".split()}
        return found | {f"{prefix}.transformer.{i}.{name}" for i in range(depth) for name in block.split()}

    def both(*modules: str) -> set[str]:
        return {f"{module}.{kind}" for module in modules for kind in ("weight", "bias")}

    def resnet(prefix: str, shortcut: bool = False) -> set[str]:
        found = both(f"{prefix}.norm1", f"{prefix}.norm2") | {f"{prefix}.conv{i}.weight" for i in (1, 2)}
        return found | ({f"{prefix}.nin_shortcut.weight"} if shortcut else set())

    found = {"latent_tokens", "decoder.mask_token"} | half("encoder", 2) | half("decoder", 1)
    found |= both("encoder.patch_embed", "encoder.conv_out", "decoder.decoder_embed", "decoder.ffn.0")
    if kind != "vae":
        found.add("quantize.embedding.weight")
    if kind != "legacy":
        return found | both("decoder.conv_out")
    found |= both("decoder.ffn.2", *(f"pixel_decoder.{name}" for name in ("conv_in", "norm_out", "conv_out")))
    found |= {"pixel_quantize.embedding.weight"} | resnet("pixel_decoder.mid.0") | resnet("pixel_decoder.mid.1")
    for level in range(5):  # widths 1, 1, 2, 2, 4, entered from the level above
        found |= resnet(f"pixel_decoder.up.{level}.block.0", shortcut=level in (1, 3))
        found |= resnet(f"pixel_decoder.up.{level}.block.1")
        found |= both(f"pixel_decoder.up.{level}.upsample_conv") if level else set()
    return found


def build(kind: str) -> Tokenizer:
    fields = {name: value for name, value in KINDS[kind].items() if name in TiTokArchitecture.model_fields}
    architecture = TiTokArchitecture(**fields, **NARROW, crop_size=SIDE)
    tokenizer = kind_of(architecture)(architecture, SPEC)
    generator = torch.Generator().manual_seed(0)
    for name, tensor in tokenizer.state_dict().items():
        spread = 1.0 if "embedding" in name or "tokens" in name else 0.3
        gain = 1.0 if "ln_" in name and name.endswith("weight") else 0.0
        tensor.copy_(torch.randn(tensor.shape, generator=generator) * spread + gain)
    return tokenizer.eval()


def publish(folder: Path, kind: str, **further: Tensor) -> Path:
    """A folder as on the hub: the configuration has sections, and one for a generator that nobody needs here."""
    config = {
        "experiment": {"output_dir": "titok"},
        "model": {"vq_model": KINDS[kind], "generator": {"hidden_size": 768}},
        "dataset": {"preprocessing": {"crop_size": SIDE}},
    }
    (folder / "config.json").write_text(json.dumps(config))
    save_file({**build(kind).state_dict(), **further}, folder / "model.safetensors")
    return folder / "model.safetensors"


def load(folder: Path, kind: str) -> Tokenizer:
    return load_tokenizer("titok", weights=publish(folder, kind), architecture=NARROW)


def pictures(n: int = 2) -> Tensor:
    return torch.rand(n, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1)) * 2 - 1


# --- the slow version -----------------------------------------------------------------------------------------------


def slow_transformer(state: dict[str, Tensor], half: str, image: Tensor, latent: Tensor, heads: int) -> Tensor:
    """[p,w] image and [l,w] latent tokens of one picture through one half; all tokens after ``ln_post``."""

    def linear(name: str, x: Tensor) -> Tensor:
        return x @ state[f"{half}.{name}.weight"].T + state[f"{half}.{name}.bias"]

    def norm(name: str, x: Tensor) -> Tensor:
        centred = x - x.mean(1, keepdim=True)
        unit = centred / (centred.square().mean(1, keepdim=True) + 1e-5).sqrt()
        return unit * state[f"{half}.{name}.weight"] + state[f"{half}.{name}.bias"]

    x = torch.cat([state[f"{half}.class_embedding"], image]) + state[f"{half}.positional_embedding"]
    x = norm("ln_pre", torch.cat([x, latent + state[f"{half}.latent_token_positional_embedding"]]))
    width = x.shape[1]
    for i in range(len({key.split(".")[2] for key in state if key.startswith(f"{half}.transformer.")})):
        block = f"transformer.{i}"
        normed = norm(f"{block}.ln_1", x)
        projected = normed @ state[f"{half}.{block}.attn.in_proj_weight"].T + state[f"{half}.{block}.attn.in_proj_bias"]
        mixed = []
        for head in range(heads):
            mine = slice(head * width // heads, (head + 1) * width // heads)
            q, k, v = (projected[:, part * width : (part + 1) * width][:, mine] for part in range(3))
            mixed.append(torch.softmax(q @ k.T / math.sqrt(width / heads), dim=1) @ v)
        x = x + linear(f"{block}.attn.out_proj", torch.cat(mixed, dim=1))
        x = x + linear(f"{block}.mlp.c_proj", F.gelu(linear(f"{block}.mlp.c_fc", norm(f"{block}.ln_2", x))))
    return norm("ln_post", x)


def slow_encode(state: dict[str, Tensor], picture: Tensor, legacy: bool) -> Tensor:
    """Tokens (or moments) [l,c] of one picture [3,S,S] in [0,1]."""
    weight, bias = state["encoder.patch_embed.weight"], state["encoder.patch_embed.bias"]
    patches = [
        (weight * picture[:, y : y + 16, x : x + 16]).sum((1, 2, 3)) + bias
        for y in range(0, SIDE, 16)
        for x in range(0, SIDE, 16)
    ]
    out = slow_transformer(state, "encoder", torch.stack(patches), state["latent_tokens"], heads=2)[1 + len(patches) :]
    if legacy:  # the numbers of [l,w], in their order, read as [w,l]
        out = torch.tensor(out.flatten().tolist()).view(out.shape[1], out.shape[0]).T
    return out @ state["encoder.conv_out.weight"][:, :, 0, 0].T + state["encoder.conv_out.bias"]


def slow_features(state: dict[str, Tensor], tokens: Tensor) -> Tensor:
    """What the decoder's transformer leaves at the image tokens of one picture, [p,w]."""
    cells = (SIDE // 16) ** 2
    embedded = tokens @ state["decoder.decoder_embed.weight"].T + state["decoder.decoder_embed.bias"]
    image = state["decoder.mask_token"][0].expand(cells, -1)
    return slow_transformer(state, "decoder", image, embedded, heads=4)[1 : 1 + cells]


def slow_pixels(state: dict[str, Tensor], tokens: Tensor) -> Tensor:
    """The picture [3,S,S] in about [0,1] of the later models: patch by patch, then a 3x3 convolution."""
    values = slow_features(state, tokens) @ state["decoder.ffn.0.weight"][:, :, 0, 0].T + state["decoder.ffn.0.bias"]
    picture = torch.zeros(3, SIDE, SIDE)
    for y in range(SIDE):
        for x in range(SIDE):
            cell, inside = (SIDE // 16) * (y // 16) + x // 16, 16 * (y % 16) + x % 16
            picture[:, y, x] = values[cell, 3 * inside : 3 * inside + 3]
    return F.conv2d(picture[None], state["decoder.conv_out.weight"], state["decoder.conv_out.bias"], padding=1)[0]


def slow_legacy_pixels(state: dict[str, Tensor], tokens: Tensor) -> Tensor:
    """The picture [3,S,S] in about [0,1] of the first models: expected codes of the VQGAN through its decoder."""
    hidden = slow_features(state, tokens) @ state["decoder.ffn.0.weight"][:, :, 0, 0].T + state["decoder.ffn.0.bias"]
    scores = hidden.tanh() @ state["decoder.ffn.2.weight"][:, :, 0, 0].T + state["decoder.ffn.2.bias"]
    codes = torch.softmax(scores, dim=1) @ state["pixel_quantize.embedding.weight"]
    x = codes.T.reshape(1, -1, SIDE // 16, SIDE // 16)

    def conv(name: str, x: Tensor) -> Tensor:
        weight = state[f"pixel_decoder.{name}.weight"]
        return F.conv2d(x, weight, state.get(f"pixel_decoder.{name}.bias"), padding=weight.shape[-1] // 2)

    def norm(name: str, x: Tensor) -> Tensor:
        weight, bias = (state[f"pixel_decoder.{name}.{kind}"] for kind in ("weight", "bias"))
        return F.silu(F.group_norm(x, 32, weight, bias, eps=1e-6))

    def resnet(name: str, x: Tensor) -> Tensor:
        y = conv(f"{name}.conv2", norm(f"{name}.norm2", conv(f"{name}.conv1", norm(f"{name}.norm1", x))))
        return y + (conv(f"{name}.nin_shortcut", y) if f"pixel_decoder.{name}.nin_shortcut.weight" in state else x)

    x = resnet("mid.1", resnet("mid.0", conv("conv_in", x)))
    for level in (4, 3, 2, 1, 0):
        x = resnet(f"up.{level}.block.1", resnet(f"up.{level}.block.0", x))
        if level:
            x = conv(f"up.{level}.upsample_conv", x.repeat_interleave(2, 2).repeat_interleave(2, 3))
    return conv("conv_out", norm("norm_out", x))[0]


# --- tests ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_names_are_the_published_ones(kind: str) -> None:
    assert set(build(kind).state_dict()) == names(kind)


@pytest.mark.parametrize("kind", KINDS)
def test_encoder_equals_the_slow_version(tmp_path: Path, kind: str) -> None:
    """Pixels in [0,1] inside, and the legacy models' mixed-up order."""
    tokenizer, x = load(tmp_path, kind), pictures()
    state = tokenizer.state_dict()
    expected = torch.stack([slow_encode(state, (picture + 1) / 2, kind == "legacy") for picture in x])
    torch.testing.assert_close(tokenizer.features(x), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_decoder_equals_the_slow_version(tmp_path: Path, kind: str) -> None:
    tokenizer = load(tmp_path, kind)
    state, latents = tokenizer.state_dict(), torch.randn(2, 6, 4, generator=torch.Generator().manual_seed(2))
    slow = slow_legacy_pixels if kind == "legacy" else slow_pixels
    expected = torch.stack([slow(state, tokens) for tokens in latents])
    torch.testing.assert_close(tokenizer.pixels(latents), expected, atol=1e-3, rtol=1e-4)
    images = tokenizer.decode(latents)
    torch.testing.assert_close(images, expected.clamp(0, 1) * 2 - 1, atol=2e-3, rtol=1e-4)
    assert images.min() >= -1 and images.max() <= 1 and images.std() > 0.1


@pytest.mark.parametrize(("kind", "cosine"), [("legacy", True), ("vq8k", False)])
def test_quantiser_equals_a_float64_search(tmp_path: Path, kind: str, cosine: bool) -> None:
    tokenizer, x = load(tmp_path, kind), pictures(4)
    assert isinstance(tokenizer, DiscreteTokenizer)
    codes, tokens = tokenizer.quantize.embedding.weight.double(), tokenizer.features(x).double()
    if cosine:
        codes, tokens = codes / codes.norm(dim=1, keepdim=True), tokens / tokens.norm(dim=2, keepdim=True)
    distances = (tokens[:, :, None] - codes).square().sum(3)
    indices = tokenizer.indices(x)
    assert torch.equal(indices, distances.argmin(2)) and len(indices.unique()) > 3
    torch.testing.assert_close(tokenizer.codebook.double(), codes, atol=1e-6, rtol=0)
    latents = tokenizer.encode(x)
    torch.testing.assert_close(latents.double(), codes[indices], atol=1e-6, rtol=0)
    torch.testing.assert_close(tokenizer.decode_indices(indices), tokenizer.decode(latents))
    assert (tokenizer.spec.kind, tokenizer.spec.codebook_size, tokenizer.spec.channels) == ("vq", 20, 4)


def test_posterior_gives_mean_or_seeded_samples(tmp_path: Path) -> None:
    tokenizer, x = load(tmp_path, "vae"), pictures()
    mean, logvar = tokenizer.features(x).split(4, dim=2)
    torch.testing.assert_close(tokenizer.encode(x), mean)
    draws = [tokenizer.encode(x, sample=True, generator=torch.Generator().manual_seed(seed)) for seed in (3, 3, 4)]
    assert torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])
    noise = torch.randn(2, 4, 6, generator=torch.Generator().manual_seed(3)).transpose(1, 2)
    torch.testing.assert_close(draws[0], mean + (logvar.clamp(-30, 20) / 2).exp() * noise)
    assert (tokenizer.spec.kind, tokenizer.spec.codebook_size) == ("continuous", None)


def test_shortcut_of_the_vqgan_reads_the_blocks_output() -> None:
    """With an identity for a shortcut the block gives twice its second convolution, and nothing of its input."""
    torch.manual_seed(0)
    block, x = ResnetBlock(32, 64), torch.randn(1, 32, 4, 4)
    torch.nn.init.dirac_(block.nin_shortcut.weight)
    inside = block.conv2(F.silu(block.norm2(block.conv1(F.silu(block.norm1(x))))))
    torch.testing.assert_close(block(x), 2 * inside)
    assert block.conv1.bias is None and block.nin_shortcut.bias is None


@pytest.mark.parametrize(
    ("release", "parameters"),
    [("l32", 641_054_735), ("b64", 204_814_095), ("s128", 83_674_639), ("bl64-vq8k", 390_016_148)],
)
def test_full_size_parameter_counts(release: str, parameters: int) -> None:
    """l32 is published as a number; the others match the sizes on the hub: 819 MB, 83.7 M parameters, 1.56 GB."""
    assert full_size(release) == parameters


@pytest.mark.parametrize(
    ("release", "gigabytes"),
    [("b64", 0.819), ("bl64-vq8k", 1.56), ("sl256-vq8k", 1.32), ("bl64-vae-c16", 1.56), ("l32", 2.56)],
)
def test_full_size_files_have_the_published_size(release: str, gigabytes: float) -> None:
    assert abs(4 * full_size(release) / 1e9 - gigabytes) <= (0.0005 if gigabytes < 1 else 0.005)


def full_size(release: str) -> int:
    architecture = TiTokArchitecture(**next(known for known in ZOO["titok"] if known.name == release).architecture)
    with torch.device("meta"):
        tokenizer = kind_of(architecture)(architecture, SPEC)
    return sum(tensor.numel() for tensor in tokenizer.state_dict().values())


def test_fields_may_be_given_flat_or_in_sections_and_by_the_modules_names(tmp_path: Path) -> None:
    path = publish(tmp_path, "vq8k")
    (tmp_path / "config.json").unlink()
    renamed = {{"embed_dim": "width", "depth": "num_layers"}.get(name, name): value for name, value in NARROW.items()}
    sections = {"model": {"vq_model": {**KINDS["vq8k"], **renamed}}, "dataset": {"preprocessing": {"crop_size": SIDE}}}
    expected = build("vq8k").encode(pictures())
    for fields in ({**KINDS["vq8k"], **NARROW, "crop_size": SIDE}, sections):
        tokenizer = load_tokenizer("titok", weights=path, release="bl64-vq8k", architecture=fields)
        assert torch.equal(tokenizer.encode(pictures()), expected)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"is_legacy": True}, "is_legacy and finetune_decoder must be both true or both false"),
        ({"codebook_size": None}, "quantize_mode 'vq' needs codebook_size"),
        ({"crop_size": 40}, "crop_size 40 is no multiple of the patch size 16"),
        ({"is_legacy": True, "finetune_decoder": True, "vit_dec_patch_size": 8}, "vit_dec_patch_size 16 as its VQGAN"),
        ({"vit_enc_model_size": "huge"}, "vit_enc_model_size: Input should be 'small', 'base' or 'large'"),
        ({"token_sizes": 3}, r"unknown architecture field 'token_sizes'\. Did you mean token_size"),
        ({"num_latent_tokens": 7}, r"2 of another shape \(.*is \[6, 24\] instead of \[7, 24\]|3 of another shape"),
    ],
)
def test_mistakes_are_one_clear_line(tmp_path: Path, fields: dict[str, Any], message: str) -> None:
    path = publish(tmp_path, "vq8k")
    with pytest.raises(UserError, match=message) as caught:
        load_tokenizer("titok", weights=path, architecture={**NARROW, **fields})
    assert "\n" not in str(caught.value)


def test_wrong_keys_and_shapes_of_inputs(tmp_path: Path) -> None:
    path = publish(tmp_path, "vq8k", **{"pixel_decoder.conv_in.weight": torch.zeros(1)})
    with pytest.raises(
        UserError, match=r"'titok' does not fit the architecture: 1 unexpected \(pixel_decoder.conv_in.weight\)"
    ):
        load_tokenizer("titok", weights=path, architecture=NARROW)
    tokenizer = load(tmp_path, "vq8k")
    assert isinstance(tokenizer, DiscreteTokenizer)
    with pytest.raises(UserError, match=r"images of 64x32 pixels do not fit 'titok': .* for 32x32 only"):
        tokenizer.encode(torch.zeros(1, 3, 64, 32))
    with pytest.raises(UserError, match=r"indices must be integers \[n,l\]"):
        tokenizer.codes(torch.zeros(1, 2, 3, dtype=torch.int64))
    with pytest.raises(UserError, match=r"indices must lie in 0\.\.19, got 0\.\.20"):
        tokenizer.codes(torch.tensor([[0, 20]]))


def test_listed() -> None:
    entries = {entry.release: entry for entry in zoo_entries() if entry.name == "titok"}
    assert (entries["l32"].kind, entries["l32"].latent_shape, entries["l32"].codebook_size) == (
        "vq-cosine",
        (32, 12),
        4096,
    )
    assert (entries["sl256-vq8k"].kind, entries["sl256-vq8k"].latent_shape) == ("vq", (256, 64))
    assert (entries["ll32-vae-c16"].kind, entries["ll32-vae-c16"].codebook_size) == ("kl", None)
    source = entries["bl128-vae-c16"].source
    assert source is not None and source.repo == "yucornetto/tokenizer_titok_bl128_vae_c16_imagenet"
