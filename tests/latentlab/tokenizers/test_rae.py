"""RAE: its encoder against timm's DINOv2, its decoder written out a second time, and files in the published layouts."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from latentlab import UserError
from latentlab.tokenizers import Tokenizer, load_tokenizer, zoo_entries
from latentlab.tokenizers.architecture import read_architecture
from latentlab.tokenizers.hub_architecture import RAEArchitecture
from latentlab.tokenizers.rae import RepresentationAutoencoder
from latentlab.tokenizers.rae_network import Encoder, grid_positions
from latentlab.tokenizers.zoo import find_release

NARROW: dict[str, Any] = {  # 4 x 4 patches of 14 pixels in, of 16 pixels out
    "encoder_hidden_size": 128,
    "encoder_num_hidden_layers": 2,
    "encoder_input_size": 56,
    "decoder_hidden_size": 24,
    "decoder_num_hidden_layers": 2,
    "decoder_num_attention_heads": 3,
    "decoder_intermediate_size": 40,
}
OLD = (
    ("attention.q_proj.", "attention.attention.query."),
    ("attention.k_proj.", "attention.attention.key."),
    ("attention.v_proj.", "attention.attention.value."),
    ("attention.o_proj.", "attention.output.dense."),
)

State = dict[str, Tensor]


def published(statistics: tuple[int, ...] = (128, 4, 4)) -> State:
    """Tensors of every published name, at random, norms, tokens and statistics too."""
    source = torch.Generator().manual_seed(0)
    with torch.device("meta"):
        config = read_architecture(NARROW, RAEArchitecture)
        shapes = RepresentationAutoencoder(config, None, torch.Size(statistics)).state_dict()  # type: ignore[arg-type]
    state = {name: torch.randn(tensor.shape, generator=source) for name, tensor in shapes.items()}
    for name, tensor in state.items():
        if name.endswith("std") or (tensor.ndim == 1 and name.endswith(("weight", "lambda1"))):
            tensor.abs_().add_(0.5)
        elif tensor.ndim >= 2 and name.endswith("weight"):
            tensor.div_(math.sqrt(tensor[0].numel()))
    for name in ("decoder.decoder_pred.weight", "decoder.decoder_pred.bias"):
        state[name] *= 0.5  # so that most pixels stay inside their range
    state["encoder_mean"] = torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1)
    state["encoder_std"] = torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1)
    return state


def write(folder: Path, state: State, config: dict[str, Any] | None = None) -> Path:
    file = folder / "diffusion_pytorch_model.safetensors"
    save_file({name: tensor.clone() for name, tensor in state.items()}, file)
    if config is not None:
        (folder / "config.json").write_text(json.dumps({"_class_name": "AutoencoderRAE", **config}))
    return file


@pytest.fixture(scope="module")
def state() -> State:
    return published()


@pytest.fixture(scope="module")
def tokenizer(state: State, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return load_tokenizer("rae", weights=write(tmp_path_factory.mktemp("rae"), state), architecture=NARROW)


def pictures(side: int = 64) -> Tensor:
    return torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(1)) * 2 - 1


# --- arithmetic -------------------------------------------------------------------------------------------------------


def dinov2_of_timm(state: State) -> torch.nn.Module:
    """timm's DINOv2 with registers, for images of any size, with these weights and a last norm without affine part."""
    model = timm.create_model(
        "vit_small_patch14_reg4_dinov2",
        pretrained=False, img_size=518, embed_dim=128, depth=2, num_heads=2, dynamic_img_size=True, num_classes=0,
    )  # fmt: skip
    own = {name.removeprefix("encoder."): tensor for name, tensor in state.items() if name.startswith("encoder.")}
    positions = own["embeddings.position_embeddings"]
    mapped = {
        "cls_token": own["embeddings.cls_token"] + positions[:, :1],  # timm's class token includes its position
        "reg_token": own["embeddings.register_tokens"],
        "pos_embed": positions[:, 1:],
        "patch_embed.proj.weight": own["embeddings.patch_embeddings.projection.weight"],
        "patch_embed.proj.bias": own["embeddings.patch_embeddings.projection.bias"],
        "norm.weight": torch.ones(128),
        "norm.bias": torch.zeros(128),
    }
    for i in range(2):
        start, theirs = f"encoder.layer.{i}.", f"blocks.{i}."
        for end in ("weight", "bias"):
            mapped[f"{theirs}attn.qkv.{end}"] = torch.cat([own[f"{start}attention.{p}_proj.{end}"] for p in "qkv"])
            mapped[f"{theirs}attn.proj.{end}"] = own[f"{start}attention.o_proj.{end}"]
            for part in ("norm1", "norm2", "mlp.fc1", "mlp.fc2"):
                mapped[f"{theirs}{part}.{end}"] = own[f"{start}{part}.{end}"]
        for scale in (1, 2):
            mapped[f"{theirs}ls{scale}.gamma"] = own[f"{start}layer_scale{scale}.lambda1"]
    model.load_state_dict(mapped)
    return model.eval()


@pytest.mark.parametrize("side", [56, 518])
def test_encoder_is_dinov2_of_timm(state: State, side: int) -> None:
    """At 518 pixels positions are used as they are, else they are interpolated."""
    encoder = Encoder(read_architecture(NARROW, RAEArchitecture)).eval()
    own = {name.removeprefix("encoder."): tensor for name, tensor in state.items() if name.startswith("encoder.")}
    encoder.load_state_dict(own)
    x = torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        expected = dinov2_of_timm(state).forward_features(x)[:, 5:]
        torch.testing.assert_close(encoder(x), expected, atol=2e-5, rtol=0)


def test_pixels_in_and_statistics_out(state: State, tokenizer: Tokenizer) -> None:
    """[0,1], bicubic to 56 pixels, ImageNet's statistics from the file; then (z - mean) / (std + 1e-5) cell by cell."""
    pixels = F.interpolate((pictures() + 1) / 2, size=(56, 56), mode="bicubic", align_corners=False)
    normed = (pixels - state["encoder_mean"]) / state["encoder_std"]
    with torch.no_grad():
        tokens = dinov2_of_timm(state).forward_features(normed)[:, 5:]
    z = tokens.transpose(1, 2).reshape(2, 128, 4, 4)
    expected = (z - state["_latents_mean"]) / (state["_latents_std"] + 1e-5)
    latents = tokenizer.encode(pictures())
    torch.testing.assert_close(latents, expected, atol=1e-4, rtol=0)
    assert torch.equal(tokenizer.normalize(latents), latents) and torch.equal(tokenizer.denormalize(latents), latents)
    assert tokenizer.encode(pictures(56)).shape == (2, 128, 4, 4)


def literal_positions(width: int, side: int) -> Tensor:
    rows = torch.zeros(side, side, width, dtype=torch.float64)
    for row in range(side):
        for column in range(side):
            for half, place in enumerate((column, row)):
                for i in range(width // 4):
                    angle = place * (16 / side) / 10000 ** (i / (width // 4))
                    rows[row, column, half * width // 2 + i] = math.sin(angle)
                    rows[row, column, half * width // 2 + width // 4 + i] = math.cos(angle)
    return rows.view(side * side, width)


@pytest.mark.parametrize(("width", "side"), [(24, 4), (8, 16), (12, 5)])
def test_positions_of_the_decoder(width: int, side: int) -> None:
    torch.testing.assert_close(grid_positions(width, side), literal_positions(width, side), atol=1e-12, rtol=0)


def literal_decoder(state: State, tokens: Tensor) -> Tensor:
    """The decoder on published names in float64, with torch's own attention."""
    s = {
        name.removeprefix("decoder."): tensor.double() for name, tensor in state.items() if name.startswith("decoder.")
    }

    def linear(name: str, x: Tensor) -> Tensor:
        return x @ s[f"{name}.weight"].T + s[f"{name}.bias"]

    def norm(name: str, x: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], s[f"{name}.weight"], s[f"{name}.bias"], eps=1e-12)

    x = linear("decoder_embed", tokens.double()) + literal_positions(24, 4)
    x = torch.cat([s["trainable_cls_token"].expand(len(x), 1, 24), x], dim=1)
    for i in range(2):
        start = f"decoder_layers.{i}."
        h = norm(f"{start}layernorm_before", x)
        q, k, v = (linear(f"{start}attention.to_{part}", h).view(*h.shape[:2], 3, 8) for part in "qkv")
        weights = (torch.einsum("nihc,njhc->nhij", q, k) / math.sqrt(8)).softmax(-1)
        x = x + linear(f"{start}attention.to_out.0", torch.einsum("nhij,njhc->nihc", weights, v).flatten(2))
        inner = linear(f"{start}intermediate.dense", norm(f"{start}layernorm_after", x))
        x = x + linear(f"{start}output.dense", inner * 0.5 * (1 + torch.erf(inner / math.sqrt(2))))
    values = linear("decoder_pred", norm("decoder_norm", x))[:, 1:]
    pixels = torch.zeros(len(x), 3, 64, 64, dtype=torch.float64)
    for cell in range(16):
        top, left = 16 * (cell // 4), 16 * (cell % 4)
        pixels[:, :, top : top + 16, left : left + 16] = values[:, cell].view(-1, 16, 16, 3).permute(0, 3, 1, 2)
    return pixels


def test_decoder_is_the_described_one(state: State, tokenizer: Tokenizer) -> None:
    latents = torch.randn(2, 128, 4, 4, generator=torch.Generator().manual_seed(3)) * 0.3
    raw = latents * (state["_latents_std"] + 1e-5) + state["_latents_mean"]
    pixels = literal_decoder(state, raw.flatten(2).transpose(1, 2))
    pixels = pixels * state["encoder_std"] + state["encoder_mean"]
    decoded = tokenizer.decode(latents)
    assert decoded.shape == (2, 3, 64, 64) and (decoded.abs() < 1).double().mean() > 0.5
    torch.testing.assert_close(decoded, (pixels * 2 - 1).clamp(-1, 1).float(), atol=1e-5, rtol=0)


# --- files ------------------------------------------------------------------------------------------------------------


def test_full_size_count_is_that_of_the_published_network() -> None:
    """Counted in diffusers' network with the encoder of transformers: 2.0 GB."""
    config = read_architecture(dict(find_release("rae", "dinov2-base").architecture or {}), RAEArchitecture)
    with torch.device("meta"):
        network = RepresentationAutoencoder(config, None, torch.Size([768, 16, 16]))  # type: ignore[arg-type]
    assert sum(parameter.numel() for parameter in network.parameters()) == 501_638_656
    state = network.state_dict()
    assert state["encoder.embeddings.position_embeddings"].shape == (1, 37 * 37 + 1, 768)
    assert not [name for name in state if name.startswith("encoder.layernorm")]
    assert (config.latent_shape, config.resolution) == ((768, 16, 16), 256)


@pytest.mark.parametrize("names", ["today's", "before version 5"])
def test_names_of_every_version_of_the_encoder(state: State, tokenizer: Tokenizer, names: str, tmp_path: Path) -> None:
    written = dict(state)
    if names != "today's":
        for ours, theirs in OLD:
            written = {name.replace(ours, theirs): tensor for name, tensor in written.items()}
        assert "encoder.encoder.layer.1.attention.output.dense.bias" in written
    written["decoder.decoder_pos_embed"] = torch.zeros(1, 17, 24)  # older files hold it
    config = {**NARROW, "image_size": 64, "latents_mean": state["_latents_mean"].tolist(), "noise_tau": 0.8}
    again = load_tokenizer("rae", weights=write(tmp_path, written, config))
    assert torch.equal(again.encode(pictures()), tokenizer.encode(pictures()))


@pytest.mark.parametrize("shape", [(1,), (128, 1, 1)])
def test_statistics_may_have_any_published_shape(shape: tuple[int, ...], tmp_path: Path) -> None:
    tokenizer = load_tokenizer("rae", weights=write(tmp_path, published(shape)), architecture=NARROW)
    assert tokenizer.encode(pictures()).shape == (2, 128, 4, 4)


def test_mistakes_are_one_clear_line(state: State, tokenizer: Tokenizer, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="images of 32x32 pixels do not fit 'rae': it takes 64x64"):
        tokenizer.encode(torch.zeros(1, 3, 32, 32))
    with pytest.raises(UserError, match=r"latents must be \[n,128,4,4\], got shape \[1, 128, 2, 2\]"):
        tokenizer.decode(torch.zeros(1, 128, 2, 2))
    written = {name: tensor for name, tensor in state.items() if name != "_latents_mean"}
    mistakes: list[tuple[dict[str, Any], str]] = [
        ({}, r"1 missing \(_latents_mean\)"),
        ({"encoder_type": "mae"}, "encoder_type: .*'dinov2'"),
        ({"image_size": 128}, "image_size must be 64, got 128"),
        ({"encoder_input_size": 60}, "encoder_input_size must be a multiple of encoder_patch_size, got 60 and 14"),
        ({"encoder_hidden_size": 100}, "encoder_hidden_size must be a multiple of 64"),
        ({"decoder_layers": 2}, "unknown architecture field 'decoder_layers'"),
    ]
    for fields, message in mistakes:
        with pytest.raises(UserError, match=message) as caught:
            load_tokenizer("rae", weights=write(tmp_path, written), architecture=NARROW | fields)
        assert "\n" not in str(caught.value)


def test_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LATENTLAB_HOME", str(tmp_path))
    (entry,) = [entry for entry in zoo_entries() if entry.name == "rae"]
    assert (entry.kind, entry.latent_shape, entry.image_size, entry.licence) == ("none", (768, 16, 16), 256, "MIT")
