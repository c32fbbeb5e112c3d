"""Open-MAGVIT2: the published layout, and the whole network written out a second time on the tensors of a file."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latentlab import UserError
from latentlab.tokenizers import load_tokenizer, zoo_entries
from latentlab.tokenizers.architecture import MagvitArchitecture, read_architecture
from latentlab.tokenizers.base import DiscreteTokenizer
from latentlab.tokenizers.magvit import MagvitTokenizer, depth_to_space
from latentlab.tokenizers.zoo import find_release

NARROW: dict[str, Any] = {"ch": 32, "ch_mult": [1, 2, 2], "num_res_blocks": 2, "z_channels": 5}
COUNTS = {  # published files of 921, 896, 921 and 921 MB hold every float32 number twice
    "imagenet256": 115_127_829,
    "imagenet128": 112_021_653,
    "pretrain256-262144": 115_127_829,
    "pretrain256-16384": 115_094_033,
}

State = dict[str, Tensor]


def full(release: str, **fields: Any) -> MagvitTokenizer:
    architecture = {**(find_release("open-magvit2", release).architecture or {}), **fields}
    return MagvitTokenizer(read_architecture(architecture, MagvitArchitecture), spec=None)  # type: ignore[arg-type]


def random_state(module: nn.Module, seed: int) -> State:
    """Tensors of its names and shapes; norms and biases too, so that swapped or ignored ones show."""
    source = torch.Generator().manual_seed(seed)
    return {
        name: (1.0 if "norm" in name and name.endswith("weight") else 0.0)
        + 0.1 * torch.randn(tensor.shape, generator=source)
        for name, tensor in module.state_dict().items()
    }


def published(raw: State, averaged: State) -> dict[str, Any]:
    """A checkpoint as it is published: both sets of weights under ``state_dict``, and what training left behind."""
    ema = {"model_ema." + name.replace(".", ""): tensor for name, tensor in averaged.items()}
    extra = {"model_ema.decay": torch.tensor(0.999), "model_ema.num_updates": torch.tensor(9, dtype=torch.int32)}
    return {"state_dict": {**raw, **ema, **extra, "loss.logvar": torch.zeros(1)}}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[bool, State]]:
    """The file, and the weights in it: averaged (True) and raw."""
    network = full("imagenet256", **NARROW)
    states = {True: random_state(network, 1), False: random_state(network, 2)}
    path = tmp_path_factory.mktemp("magvit") / "imagenet_256_L.ckpt"
    torch.save(published(states[False], states[True]), path)
    return path, states


def pictures() -> Tensor:
    return torch.rand(2, 3, 16, 24, generator=torch.Generator().manual_seed(0)) * 2 - 1


# --- the network from the description, on published names, in float64 -------------------------------------------------


def conv(s: State, name: str, x: Tensor, **options: Any) -> Tensor:
    return F.conv2d(
        x, s[f"{name}.weight"].double(), s[f"{name}.bias"].double() if f"{name}.bias" in s else None, **options
    )


def norm(s: State, name: str, x: Tensor) -> Tensor:
    return F.silu(F.group_norm(x, 32, s[f"{name}.weight"].double(), s[f"{name}.bias"].double(), eps=1e-6))


def block(s: State, name: str, x: Tensor) -> Tensor:
    h = conv(s, f"{name}.conv1", norm(s, f"{name}.norm1", x), padding=1)
    h = conv(s, f"{name}.conv2", norm(s, f"{name}.norm2", h), padding=1)
    return h + (conv(s, f"{name}.nin_shortcut", x) if f"{name}.nin_shortcut.weight" in s else x)


def blocks(s: State, name: str, x: Tensor) -> Tensor:
    for j in range(2):
        x = block(s, f"{name}.{j}", x)
    return x


def literal_encoder(s: State, images: Tensor) -> Tensor:
    h = conv(s, "encoder.conv_in", images.double(), padding=1)
    for i in range(3):
        h = blocks(s, f"encoder.down.{i}.block", h)
        if i < 2:
            h = conv(s, f"encoder.down.{i}.downsample", h, stride=2, padding=1)
    h = blocks(s, "encoder.mid_block", h)
    return conv(s, "encoder.conv_out", norm(s, "encoder.norm_out", h))


def literal_cells(x: Tensor) -> Tensor:
    """Depth to space, cell by cell: channel (2 dy + dx) C + c goes to row 2y+dy, column 2x+dx of channel c."""
    n, channels, height, width = x.shape
    out = torch.empty(n, channels // 4, 2 * height, 2 * width, dtype=x.dtype)
    for dy in range(2):
        for dx in range(2):
            start = (2 * dy + dx) * channels // 4
            out[:, :, dy::2, dx::2] = x[:, start : start + channels // 4]
    return out


def literal_adaptive(s: State, name: str, x: Tensor, code: Tensor) -> Tensor:
    cells = code.double().flatten(2)
    mean = cells.mean(2)
    variance = (cells - mean[:, :, None]).square().sum(2) / (cells.shape[2] - 1)
    gamma = (variance + 1e-6).sqrt() @ s[f"{name}.gamma.weight"].double().T + s[f"{name}.gamma.bias"].double()
    beta = mean @ s[f"{name}.beta.weight"].double().T + s[f"{name}.beta.bias"].double()
    groups = x.reshape(len(x), 32, -1)
    centred = groups - groups.mean(2, keepdim=True)
    normed = (centred / (centred.square().mean(2, keepdim=True) + 1e-6).sqrt()).view_as(x)
    return gamma[:, :, None, None] * normed + beta[:, :, None, None]


def literal_decoder(s: State, code: Tensor) -> Tensor:
    h = blocks(s, "decoder.mid_block", conv(s, "decoder.conv_in", code.double(), padding=1))
    for i in (2, 1, 0):
        h = blocks(s, f"decoder.up.{i}.block", literal_adaptive(s, f"decoder.adaptive.{i}", h, code))
        if i:
            h = literal_cells(conv(s, f"decoder.up.{i}.upsample.conv1", h, padding=1))
    return conv(s, "decoder.conv_out", norm(s, "decoder.norm_out", h), padding=1)


@pytest.mark.parametrize("ema", [True, False])
def test_the_network_is_the_described_one(checkpoint: tuple[Path, dict[bool, State]], ema: bool) -> None:
    path, states = checkpoint
    tokenizer = load_tokenizer("open-magvit2", weights=path, architecture=NARROW, ema=ema).double()
    assert isinstance(tokenizer, DiscreteTokenizer)
    assert tokenizer.spec.release == ("custom" if ema else "custom-raw")
    features = literal_encoder(states[ema], pictures())
    signs = torch.where(features > 0, 1.0, -1.0)
    latents = tokenizer.encode(pictures())
    assert latents.shape == (2, 5, 4, 6) and torch.equal(latents, signs)
    expected = literal_decoder(states[ema], signs)
    assert (expected.abs() < 1).double().mean() > 0.5  # most of what is compared is not clamped
    torch.testing.assert_close(tokenizer.decode(latents), expected.clamp(-1, 1), atol=1e-9, rtol=0)
    bits = (signs > 0).long()
    assert torch.equal(tokenizer.indices(pictures()), sum(bits[:, i] << i for i in range(5)))
    assert torch.equal(tokenizer.decode_indices(tokenizer.indices(pictures())), tokenizer.decode(latents))
    assert not torch.equal(latents, literal_encoder(states[not ema], pictures()).sign())


def test_depth_to_space_is_not_the_shuffle_of_torch() -> None:
    x = torch.randn(2, 12, 3, 4, generator=torch.Generator().manual_seed(0))
    assert torch.equal(depth_to_space(x), literal_cells(x))
    assert not torch.equal(depth_to_space(x), F.pixel_shuffle(x, 2))


# --- layout ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("release", COUNTS)
def test_full_size_counts_are_the_published_ones(release: str) -> None:
    with torch.device("meta"):
        network = full(release)
    assert sum(parameter.numel() for parameter in network.parameters()) == COUNTS[release]
    names = network.state_dict()
    assert not [name for name in names if "attn" in name or name.startswith("quant")]
    for name in ("encoder.conv_in", "encoder.down.0.block.0.conv1", "decoder.mid_block.3.conv2"):
        assert f"{name}.weight" in names and f"{name}.bias" not in names
    for name in (
        "encoder.down.0.downsample",
        "decoder.conv_in",
        "decoder.up.1.upsample.conv1",
        "decoder.adaptive.0.beta",
    ):
        assert f"{name}.bias" in names


def test_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LATENTLAB_HOME", str(tmp_path))
    found = {entry.release: entry for entry in zoo_entries() if entry.name == "open-magvit2"}
    shapes = {name: (entry.kind, entry.latent_shape, entry.codebook_size) for name, entry in found.items()}
    assert shapes["imagenet256"] == shapes["imagenet128"] == ("lfq", (18, 16, 16), 2**18)
    assert shapes["pretrain256-16384"] == ("lfq", (14, 16, 16), 2**14)
    assert found["imagenet128"].image_size == 128 and found["imagenet256"].licence == "Apache-2.0"


def test_codebook_is_in_the_order_of_the_indices(checkpoint: tuple[Path, dict[bool, State]]) -> None:
    tokenizer = load_tokenizer("open-magvit2", weights=checkpoint[0], architecture=NARROW)
    assert isinstance(tokenizer, DiscreteTokenizer)
    spec = tokenizer.spec
    assert (spec.kind, spec.channels, spec.downsampling, spec.codebook_size) == ("lfq", 5, 4, 32)
    indices = tokenizer.indices(pictures())
    assert torch.equal(tokenizer.codebook[indices].permute(0, 3, 1, 2), tokenizer.codes(indices))
    assert torch.equal(tokenizer.normalize(tokenizer.codes(indices)), tokenizer.codes(indices))
    with pytest.raises(UserError, match=r"indices must lie in 0\.\.31, got 0\.\.32"):
        tokenizer.codes(torch.tensor([[[0, 32]]]))


def test_a_file_without_averages_is_recorded_as_raw(checkpoint: tuple[Path, dict[bool, State]], tmp_path: Path) -> None:
    torch.save({"state_dict": dict(checkpoint[1][False])}, tmp_path / "a.ckpt")
    raw = load_tokenizer("open-magvit2", weights=tmp_path / "a.ckpt", architecture={"ddconfig": NARROW})
    assert raw.spec.release == "custom-raw"
    assert load_tokenizer("open-magvit2", weights=checkpoint[0], architecture=NARROW).spec.release == "custom"


def test_misfits_are_listed_by_name(checkpoint: tuple[Path, dict[bool, State]], tmp_path: Path) -> None:
    _, states = checkpoint
    content = published(states[False], states[True])
    del content["state_dict"]["model_ema.decoderadaptive0gammabias"]
    content["state_dict"]["model_ema.encodermidblock7"] = torch.zeros(1)
    torch.save(content, tmp_path / "a.ckpt")
    with pytest.raises(UserError) as caught:
        load_tokenizer("open-magvit2", weights=tmp_path / "a.ckpt", architecture=NARROW)
    assert "1 missing (model_ema.decoderadaptive0gammabias)" in str(caught.value)
    assert "1 unexpected (model_ema.encodermidblock7)" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"n_embed": 64}, "z_channels 5 needs embed_dim 5 and n_embed 32, got 5 and 64"),
        ({"embed_dim": 6}, "needs embed_dim 5"),
        ({"z_channels": 64}, "z_channels: .*less than 63"),
        ({"attn_resolutions": [16]}, "unknown architecture field 'attn_resolutions'"),
    ],
)
def test_impossible_architectures(
    checkpoint: tuple[Path, dict[bool, State]], fields: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        load_tokenizer("open-magvit2", weights=checkpoint[0], architecture=NARROW | fields)
