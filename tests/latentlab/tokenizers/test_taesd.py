"""The TAESD family: published layout, arithmetic, ranges; and the real TAEF2 on real photographs where they are at hand."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from latentlab import UserError
from latentlab.data import open_data
from latentlab.files import file_sha256
from latentlab.pixels import to_unit_range
from latentlab.tokenizers import load_tokenizer, zoo_entries
from latentlab.tokenizers.architecture import TinyArchitecture
from latentlab.tokenizers.taesd import Block, build_decoder, build_encoder
from latentlab.tokenizers.zoo import ZOO

SHARED = Path(__file__).parents[4] / "shared" / "data"
TAEF2 = SHARED / "taef2"
PHOTOGRAPHS = SHARED / "imagenet_sample"
NARROW = {"width": 8}

needs_taef2 = pytest.mark.skipif(not TAEF2.is_dir(), reason="the published TAEF2 weights are not here")


def write_published(folder: Path, name: str, **fields: Any) -> dict[str, torch.nn.Sequential]:
    """Two narrow files in the published layout: half precision, layer numbers as keys; and the networks in them."""
    torch.manual_seed(0)
    config = TinyArchitecture(**NARROW, **fields)
    halves = {"encoder": build_encoder(config), "decoder": build_decoder(config)}
    for half, network in halves.items():
        torch.save(network.half().state_dict(), folder / f"{name}_{half}.pth")
        network.float()
    return halves


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LATENTLAB_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path


def pictures(side: int = 32) -> torch.Tensor:
    return torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(0)) * 2 - 1


# --- layout ---------------------------------------------------------------------------------------------------------


def test_full_size_networks_have_the_published_numbers_of_parameters() -> None:
    """Counted in the published files (of the last one only in the encoder's); TAESD's are what its authors state."""
    for fields, counts in (
        ({"latent_channels": 32, "pooled": True}, (1_338_528, 1_338_499)),
        ({"latent_channels": 4}, (1_222_532, 1_222_531)),
        ({"latent_channels": 32, "downsampling": 32}, (1_256_288, 8_301_763)),
    ):
        config = TinyArchitecture(**fields)
        found = [sum(p.numel() for p in build(config).parameters()) for build in (build_encoder, build_decoder)]
        assert tuple(found) == counts


def test_layers_are_numbered_as_published() -> None:
    config = TinyArchitecture(latent_channels=32, pooled=True, **NARROW)
    encoder, decoder = build_encoder(config).state_dict(), build_decoder(config).state_dict()
    assert len(encoder) == len(decoder) == 79
    assert [key for key in encoder if key.endswith("pool.0.weight")] == [f"{i}.pool.0.weight" for i in (11, 12, 13)]
    assert [key for key in decoder if key.endswith("pool.0.weight")] == [f"{i}.pool.0.weight" for i in (3, 4, 5)]
    without_bias = ("2.weight", "6.weight", "10.weight"), ("7.weight", "12.weight", "17.weight")
    for state, keys in zip((encoder, decoder), without_bias, strict=True):
        assert all(key in state and key.replace("weight", "bias") not in state for key in keys)
    assert encoder["14.weight"].shape == (32, 8, 3, 3) and decoder["19.weight"].shape == (3, 8, 3, 3)


def test_layers_of_the_one_that_shrinks_images_32_times() -> None:
    """TAESANA: encoder layers have the numbers of the published file; the decoder starts at four times the width."""
    config = TinyArchitecture(latent_channels=32, downsampling=32, **NARROW)
    encoder, decoder = build_encoder(config).state_dict(), build_decoder(config).state_dict()
    assert encoder["0.weight"].shape == (4, 3, 3, 3) and encoder["2.weight"].shape == (8, 4, 3, 3)
    assert [key for key in encoder if key.endswith("conv.0.weight")] == [
        f"{i}.conv.0.weight" for i in (4, 6, 7, 8, 10, 11, 12, 14, 15, 16)
    ]
    assert "5.bias" not in encoder and encoder["17.weight"].shape == (32, 8, 3, 3)
    widths = [decoder[f"{i}.weight"].shape[:2] for i in (1, 7, 12, 17, 22, 27)]
    assert widths == [(32, 32), (16, 32), (8, 16), (8, 8), (8, 8), (8, 8)]
    assert decoder["29.weight"].shape == (3, 8, 3, 3)


def test_pooled_block_is_the_published_arithmetic() -> None:
    torch.manual_seed(0)
    block = Block(8, pooled=True)
    state, x = block.state_dict(), torch.randn(2, 8, 5, 5)
    inside = F.relu(F.group_norm(F.conv2d(x, state["pool.0.weight"]), 4, state["pool.1.weight"], state["pool.1.bias"]))
    start = x + F.conv2d(inside, state["pool.3.weight"])
    y = start
    for layer in (0, 2, 4):
        y = F.conv2d(y, state[f"conv.{layer}.weight"], state[f"conv.{layer}.bias"], padding=1)
        y = F.relu(y) if layer < 4 else y
    with torch.no_grad():
        torch.testing.assert_close(block(x), F.relu(y + start))


# --- loading --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("given", ["", "taef2_encoder.pth", "taef2_decoder.pth"])
def test_folder_or_either_file_loads_both_halves(folder: Path, given: str) -> None:
    halves = write_published(folder, "taef2", latent_channels=32, pooled=True)
    tokenizer = load_tokenizer("taef2", weights=folder / given, architecture=NARROW)
    x = pictures()
    latents = tokenizer.encode(x)
    with torch.no_grad():
        torch.testing.assert_close(latents, halves["encoder"]((x + 1) / 2))  # pixels in [0,1] inside
        torch.testing.assert_close(tokenizer.decode(latents), halves["decoder"](latents).clamp(0, 1) * 2 - 1)
    spec = tokenizer.spec
    assert (spec.name, spec.release, spec.kind, spec.layout, spec.downsampling) == (
        "taef2", "custom", "continuous", "grid", 8,
    )  # fmt: skip
    assert latents.shape == (2, 32, 4, 4) and latents.dtype == torch.float32
    assert torch.equal(tokenizer.normalize(latents), latents)
    assert len(spec.weights_sha256 or "") == 64 and not any(p.requires_grad for p in tokenizer.parameters())


@pytest.mark.parametrize(("name", "channels"), [("taesd", 4), ("taesdxl", 4), ("taesd3", 16), ("taef1", 16)])
def test_the_rest_of_the_family_loads_too(folder: Path, name: str, channels: int) -> None:
    write_published(folder, name, latent_channels=channels)
    tokenizer = load_tokenizer(name, weights=folder, architecture=NARROW)
    assert tokenizer.encode(pictures()).shape == (2, channels, 4, 4)


def test_taesana_shrinks_images_32_times(folder: Path) -> None:
    write_published(folder, "taesana", latent_channels=32, downsampling=32)
    tokenizer = load_tokenizer("taesana", weights=folder, architecture=NARROW)
    latents = tokenizer.encode(pictures(64))
    assert latents.shape == (2, 32, 2, 2) and tokenizer.decode(latents).shape == (2, 3, 64, 64)
    with pytest.raises(UserError, match="sides must be multiples of 32"):
        tokenizer.encode(pictures(48))


@pytest.mark.parametrize("given", ["", "taef1.safetensors"])
def test_one_file_with_both_halves(folder: Path, given: str) -> None:
    """As on the hub: ``layers`` in every name, and the decoder's first layer, which has no weights, is not counted."""
    halves = write_published(folder, "taef1", latent_channels=16)
    tensors = {f"encoder.layers.{key}": tensor for key, tensor in halves["encoder"].state_dict().items()}
    for key, tensor in halves["decoder"].state_dict().items():
        number, _, rest = key.partition(".")
        tensors[f"decoder.layers.{int(number) - 1}.{rest}"] = tensor
    for file in folder.glob("*.pth"):
        file.unlink()
    file = folder / (given or "diffusion_pytorch_model.safetensors")
    save_file(tensors, file)
    tokenizer = load_tokenizer("taef1", weights=folder / given, architecture=NARROW)
    latents = tokenizer.encode(pictures())
    with torch.no_grad():
        torch.testing.assert_close(latents, halves["encoder"]((pictures() + 1) / 2))
        torch.testing.assert_close(tokenizer.decode(latents), halves["decoder"](latents).clamp(0, 1) * 2 - 1)
    assert tokenizer.spec.weights_sha256 == file_sha256(file)


def test_the_hash_covers_both_files(folder: Path) -> None:
    write_published(folder, "taesd")
    first = load_tokenizer("taesd", weights=folder, architecture=NARROW).spec.weights_sha256
    state = torch.load(folder / "taesd_decoder.pth", weights_only=True)
    torch.save({**state, "19.bias": state["19.bias"] + 1}, folder / "taesd_decoder.pth")
    assert load_tokenizer("taesd", weights=folder, architecture=NARROW).spec.weights_sha256 != first


def test_mistakes_are_one_clear_line(folder: Path) -> None:
    write_published(folder, "taef2", latent_channels=32, pooled=True)
    (folder / "empty").mkdir()
    (folder / "alone").mkdir()
    shutil.copy(folder / "taef2_encoder.pth", folder / "alone")
    shutil.copy(folder / "taef2_encoder.pth", folder / "weights.pth")
    narrow = {"weights": folder, "architecture": NARROW}
    mistakes: list[tuple[str, dict[str, Any], str]] = [
        ("taef2", {}, r"taef2_decoder\.pth \(2\.7 MB\) are not on this machine: get them from https://"),
        ("taef2", {"weights": folder / "absent"}, "absent does not exist: give the folder of taef2_encoder.pth"),
        ("taef2", {"weights": folder / "empty"}, r"empty has no taef2_encoder\.pth"),
        ("taef2", {"weights": folder / "alone"}, r"taef2_decoder\.pth is missing: 'taef2' needs it beside"),
        ("taef2", {"weights": folder / "weights.pth"}, r"weights\.pth must be named \*_encoder or \*_decoder"),
        (
            "taef1",
            narrow,
            r"has no taef1_encoder\.pth with taef1_decoder\.pth, and no diffusion_pytorch_model\.safetensors",
        ),
        ("taef2", {"weights": folder}, "does not fit the architecture: 156 of another shape"),
        ("taef2", {**narrow, "architecture": {**NARROW, "pooled": False}}, "24 unexpected .*pool"),
        ("taef2", {**narrow, "architecture": {"widht": 8}}, "unknown architecture field 'widht'. Did you mean width"),
    ]
    for name, arguments, message in mistakes:
        with pytest.raises(UserError, match=message) as caught:
            load_tokenizer(name, **arguments)
        assert "\n" not in str(caught.value)


def test_shapes_are_checked(folder: Path) -> None:
    write_published(folder, "taesd")
    tokenizer = load_tokenizer("taesd", weights=folder, architecture=NARROW)
    with pytest.raises(UserError, match=r"images of 30x32 pixels do not fit 'taesd': sides must be multiples of 8"):
        tokenizer.encode(torch.zeros(1, 3, 30, 32))
    with pytest.raises(UserError, match=r"float batch \[n,3,H,W\]"):
        tokenizer.encode(torch.zeros(1, 3, 32, 32, dtype=torch.uint8))
    with pytest.raises(UserError, match=r"images must be in \[-1,1\], got values up to 255: divide by 127\.5"):
        tokenizer.encode(torch.full((1, 3, 32, 32), 255.0))
    assert tokenizer.encode(torch.zeros(0, 3, 32, 32)).shape == (0, 4, 4, 4)
    with pytest.raises(UserError, match=r"latents must be \[n,4,h,w\]"):
        tokenizer.decode(torch.zeros(1, 16, 4, 4))


def test_listed_with_both_files(folder: Path) -> None:
    entry = next(entry for entry in zoo_entries() if entry.name == "taef2")
    assert (entry.release, entry.kind, entry.latent_shape, entry.licence) == ("flux2", "none", (32, 32, 32), "MIT")
    assert not entry.present and entry.source is not None and entry.source.filename == "taef2_encoder.pth"


# --- the real weights -----------------------------------------------------------------------------------------------


@needs_taef2
def test_published_files_are_those_of_the_table(folder: Path) -> None:
    """Hashes, sizes, and a home folder with both files makes the tokenizer present."""
    release = ZOO["taef2"][0]
    assert release.weights is not None
    for file in (release.weights, *release.companions):
        assert file_sha256(TAEF2 / file.filename) == file.sha256
        assert not next(entry for entry in zoo_entries() if entry.name == "taef2").present
        file.path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(TAEF2 / file.filename, file.path)
    assert next(entry for entry in zoo_entries() if entry.name == "taef2").present
    assert load_tokenizer("taef2").spec.release == "flux2"


@needs_taef2
@pytest.mark.skipif(not PHOTOGRAPHS.is_dir(), reason="the ImageNet sample is not here")
def test_taef2_reconstructs_photographs() -> None:
    """28.4 dB over 40 images of 256 pixels; a wrong range, order or missing pool costs more than 10 dB."""
    images = open_data(f"imagefolder:{PHOTOGRAPHS}", image_size=128, limit=6)
    x = to_unit_range(images.images(np.arange(6)))
    tokenizer = load_tokenizer("taef2", weights=TAEF2)
    latents = tokenizer.encode(x)
    psnr = 10 * torch.log10(4 / (tokenizer.decode(latents) - x).square().mean((1, 2, 3)))
    assert 22 < psnr.mean() < 32 and psnr.min() > 18
    assert latents.shape == (6, 32, 16, 16) and 0.5 < latents.std() < 1.2
