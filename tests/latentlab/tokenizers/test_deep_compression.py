"""DC-AE: published sizes, the odd parts written out a second time, and files in the published layout."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from latentlab import UserError
from latentlab.tokenizers import load_tokenizer, zoo_entries
from latentlab.tokenizers.architecture import read_architecture
from latentlab.tokenizers.deep_compression import DeepCompressionAutoencoder
from latentlab.tokenizers.deep_compression_network import ChannelNorm, Down, LinearAttention, Up
from latentlab.tokenizers.hub_architecture import DCArchitecture
from latentlab.tokenizers.zoo import find_release

NARROW: dict[str, Any] = {
    "latent_channels": 4,
    "attention_head_dim": 8,
    "encoder_block_types": ["ResBlock", "ResBlock", "EfficientViTBlock"],
    "decoder_block_types": ["ResBlock", "ResBlock", "EfficientViTBlock"],
    "encoder_block_out_channels": [8, 16, 32],
    "decoder_block_out_channels": [8, 16, 32],
    "encoder_layers_per_block": [0, 1, 1],
    "decoder_layers_per_block": [0, 2, 1],
    "encoder_qkv_multiscales": [[], [], []],
    "decoder_qkv_multiscales": [[], [], [5]],
    "decoder_norm_types": ["batch_norm", "batch_norm", "rms_norm"],
    "decoder_act_fns": ["relu", "relu", "silu"],
}


def build(fields: dict[str, Any], seed: int = 0) -> DeepCompressionAutoencoder:
    torch.manual_seed(seed)
    network = DeepCompressionAutoencoder(read_architecture(fields, DCArchitecture), spec=None)  # type: ignore[arg-type]
    randomise(network)
    return network.eval()


def randomise(network: nn.Module) -> None:
    """Norms and their statistics too, so that swapped or ignored ones show."""
    with torch.no_grad():
        for name, tensor in network.state_dict().items():
            if tensor.ndim == 1 and tensor.is_floating_point():
                tensor.uniform_(0.5, 1.5) if name.endswith(("weight", "var")) else tensor.normal_(0, 0.1)


def pictures() -> Tensor:
    return torch.rand(2, 3, 16, 24, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.mark.parametrize(
    ("release", "parameters", "keys"),
    [("in-1.0", 323_356_460, 362), ("mix-1.0", 323_356_460, 362), ("sana-1.0", 312_250_275, 375)],
)
def test_full_size_counts(release: str, parameters: int, keys: int) -> None:
    """Counted in diffusers' network; four bytes each are the published 1.29 and 1.25 GB."""
    fields = dict(find_release("dc-ae", release).architecture or {})
    with torch.device("meta"):
        network = DeepCompressionAutoencoder(read_architecture(fields, DCArchitecture), spec=None)  # type: ignore[arg-type]
    assert sum(parameter.numel() for parameter in network.parameters()) == parameters
    assert len(network.state_dict()) == keys


def test_published_names() -> None:
    names = set(build(NARROW).state_dict())
    for name in (
        "encoder.conv_in.conv.weight",  # the first level is left out
        "encoder.down_blocks.1.0.conv1.bias",
        "encoder.down_blocks.1.1.conv.weight",
        "encoder.down_blocks.2.0.attn.to_q.weight",
        "encoder.down_blocks.2.0.attn.norm_out.bias",
        "encoder.down_blocks.2.0.conv_out.conv_depth.bias",
        "decoder.up_blocks.2.0.attn.to_qkv_multiscale.0.proj_in.weight",
        "decoder.up_blocks.2.0.conv_out.norm.weight",
        "decoder.up_blocks.1.0.conv.bias",
        "decoder.up_blocks.1.2.norm.running_var",
        "decoder.norm_out.weight",
        "decoder.conv_out.conv.bias",
    ):
        assert name in names
    for name in ("encoder.down_blocks.1.0.conv2.bias", "encoder.down_blocks.2.0.attn.to_q.bias"):
        assert name not in names


# --- parts ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kernels", [(), (3, 5)])
def test_attention_cell_by_cell(kernels: tuple[int, ...]) -> None:
    """Heads are neighbouring channels of what is stacked: queries, keys and values, then those of each further scale."""
    torch.manual_seed(0)
    layer = LinearAttention(12, 4, kernels, "rms_norm").double()
    randomise(layer)
    x = torch.randn(2, 12, 3, 5, dtype=torch.float64)
    maps = torch.cat([layer.to_q.weight, layer.to_k.weight, layer.to_v.weight])
    stacked = [torch.einsum("oc,nchw->nohw", maps, x)]
    for gather in layer.to_qkv_multiscale:
        inner = F.conv2d(stacked[0], gather.proj_in.weight, padding="same", groups=36)
        grouped = gather.proj_out.weight[:, :, 0, 0].view(9, 4, 4)  # 3 x 3 groups of 4 channels
        stacked.append(
            torch.einsum("goi,nghwi->ngohw", grouped, inner.view(2, 9, 4, 3, 5).movedim(2, -1)).flatten(1, 2)
        )
    channels = torch.cat(stacked, dim=1).flatten(2)
    heads = []
    for start in range(0, channels.shape[1], 12):
        q, k, v = (channels[:, start + 4 * i : start + 4 * (i + 1)] for i in range(3))
        weights = torch.einsum("nci,ncj->nij", q.clamp(min=0), k.clamp(min=0))
        heads.append(torch.einsum("nij,ncj->nci", weights / (weights.sum(2, keepdim=True) + 1e-15), v))
    mixed = torch.cat(heads, dim=1).view(2, -1, 3, 5)
    out = torch.einsum("oc,nchw->nohw", layer.to_out.weight, mixed)
    root = (out.square().mean(1, keepdim=True) + 1e-5).sqrt()
    norm = layer.norm_out
    assert isinstance(norm, ChannelNorm)
    expected = x + out / root * norm.weight.view(1, -1, 1, 1) + norm.bias.view(1, -1, 1, 1)
    torch.testing.assert_close(layer(x), expected, atol=1e-6, rtol=0)  # it sums in float32


@pytest.mark.parametrize("unshuffle", [True, False])
def test_halving_adds_means_of_the_cells(unshuffle: bool) -> None:
    """8 -> 16 channels: cell (row, column) of channel c is number 4 c + 2 row + column, and pairs are averaged."""
    torch.manual_seed(0)
    layer, x = Down(8, 16, unshuffle), torch.randn(1, 8, 4, 6)
    cells = [x[:, c, row::2, column::2] for c in range(8) for row in range(2) for column in range(2)]
    shortcut = torch.stack([(cells[2 * i] + cells[2 * i + 1]) / 2 for i in range(16)], dim=1)
    if unshuffle:
        made = F.conv2d(x, layer.conv.weight, layer.conv.bias, padding=1)
        own = torch.stack([made[:, i // 4, (i % 4) // 2 :: 2, i % 2 :: 2] for i in range(16)], dim=1)
    else:
        own = F.conv2d(x, layer.conv.weight, layer.conv.bias, stride=2, padding=1)
    torch.testing.assert_close(layer(x), own + shortcut)


@pytest.mark.parametrize("interpolate", [True, False])
def test_doubling_adds_repeated_channels(interpolate: bool) -> None:
    """8 -> 4 channels: every channel is repeated twice, and four in a row are the cells of one."""
    torch.manual_seed(0)
    layer, x = Up(8, 4, interpolate), torch.randn(1, 8, 3, 2)
    shortcut = torch.zeros(1, 4, 6, 4)
    for i in range(16):
        shortcut[:, i // 4, (i % 4) // 2 :: 2, i % 2 :: 2] = x[:, i // 2]
    if interpolate:
        doubled = x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
        own = F.conv2d(doubled, layer.conv.weight, layer.conv.bias, padding=1)
    else:
        own = F.pixel_shuffle(F.conv2d(x, layer.conv.weight, layer.conv.bias, padding=1), 2)
    torch.testing.assert_close(layer(x), own + shortcut)


def test_ends_have_shortcuts_too() -> None:
    network = build(NARROW)
    last = network.encoder.conv_out
    with torch.no_grad():
        last.weight.zero_(), last.bias.zero_()
    features: list[Tensor] = []
    network.encoder.down_blocks[2].register_forward_hook(lambda _module, _inputs, out: features.append(out))
    with torch.no_grad():
        latents = network.encoder(pictures())
    torch.testing.assert_close(latents, features[0].view(2, 4, 8, *latents.shape[2:]).mean(2))
    first = network.decoder.conv_in
    with torch.no_grad():
        first.weight.zero_(), first.bias.zero_()
    network.decoder.up_blocks[2].register_forward_pre_hook(lambda _module, inputs: features.append(inputs[0]))
    with torch.no_grad():
        network.decoder(latents)
    assert torch.equal(features[1][:, 8:16], latents[:, 1:2].expand(-1, 8, -1, -1))


# --- files ------------------------------------------------------------------------------------------------------------


def write(folder: Path, network: DeepCompressionAutoencoder, config: dict[str, Any] | None = None) -> Path:
    file = folder / "diffusion_pytorch_model.safetensors"
    save_file({key: tensor.clone() for key, tensor in network.state_dict().items()}, file)
    if config is not None:
        (folder / "config.json").write_text(json.dumps({"_class_name": "AutoencoderDC", "_commit": "x", **config}))
    return file


@pytest.mark.parametrize("beside", [True, False])
def test_sizes_come_from_the_configuration_or_the_user(beside: bool, tmp_path: Path) -> None:
    expected = build(NARROW)
    file = write(tmp_path, expected, NARROW | {"scaling_factor": 0.4552} if beside else None)
    tokenizer = load_tokenizer("dc-ae", weights=file, architecture=None if beside else NARROW)
    expected.to(memory_format=torch.channels_last)  # as loaded ones are: equal to the last bit
    latents = tokenizer.encode(pictures())
    assert latents.shape == (2, 4, 4, 6)
    with torch.no_grad():
        assert torch.equal(latents, expected.encoder(pictures()))
        assert torch.equal(tokenizer.decode(latents), expected.decoder(latents).clamp(-1, 1))
    assert torch.equal(tokenizer.encode(pictures(), sample=True), latents)
    scale = 0.4552 if beside else 0.3189
    torch.testing.assert_close(tokenizer.normalize(latents), latents * scale)
    torch.testing.assert_close(tokenizer.denormalize(latents * scale), latents)
    spec = tokenizer.spec
    assert (spec.kind, spec.channels, spec.downsampling, spec.scale) == ("continuous", 4, 4, (scale,))


def test_mistakes_are_one_clear_line(tmp_path: Path) -> None:
    network = build(NARROW)
    file = write(tmp_path, network)
    tokenizer = load_tokenizer("dc-ae", weights=file, architecture=NARROW)
    with pytest.raises(UserError, match="images of 18x24 pixels do not fit 'dc-ae': sides must be multiples of 4"):
        tokenizer.encode(torch.zeros(1, 3, 18, 24))
    with pytest.raises(UserError, match=r"latents must be \[n,4,h,w\]"):
        tokenizer.decode(torch.zeros(1, 3, 4, 4))
    mistakes: list[tuple[dict[str, Any], str]] = [
        ({"encoder_layers_per_block": [1, 1]}, "encoder_layers_per_block needs 3 entries, one per level, got 2"),
        ({"decoder_act_fns": "gelu"}, "decoder_act_fns"),
        ({"latent_chanels": 4}, "unknown architecture field 'latent_chanels'. Did you mean latent_channels"),
        ({"decoder_layers_per_block": [0, 1, 1]}, r"8 unexpected \(decoder\.up_blocks\.1\.2\."),
    ]
    for fields, message in mistakes:
        with pytest.raises(UserError, match=message) as caught:
            load_tokenizer("dc-ae", weights=file, architecture=NARROW | fields)
        assert "\n" not in str(caught.value)
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": "AutoencoderKL"}))
    with pytest.raises(UserError, match=r"config\.json describes AutoencoderKL, not AutoencoderDC"):
        load_tokenizer("dc-ae", weights=file, architecture=NARROW)


def test_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LATENTLAB_HOME", str(tmp_path))
    found = {entry.release: entry for entry in zoo_entries() if entry.name == "dc-ae"}
    assert set(found) == {"in-1.0", "mix-1.0", "sana-1.0"}
    assert {entry.latent_shape for entry in found.values()} == {(32, 8, 8)}
