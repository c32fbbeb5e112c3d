"""FLUX.1, FLUX.2 and EQ-VAE: layouts, configurations beside the weights, and normalisation."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from latentlab import UserError
from latentlab.tokenizers import Tokenizer, build_tokenizer, load_tokenizer
from latentlab.tokenizers.autoencoder import Autoencoder, PatchNormalisedAutoencoder
from latentlab.tokenizers.layouts import DIFFUSERS, FLUX2
from latentlab.tokenizers.zoo import find_release, releases_of

NARROW: dict[str, Any] = {"ch": 32, "ch_mult": [1, 2], "num_res_blocks": 1}
CONFIG = {  # as diffusers writes it, for the same sizes
    "_class_name": "AutoencoderKL",
    "_diffusers_version": "0.30.0",
    "act_fn": "silu",
    "block_out_channels": [32, 64],
    "down_block_types": ["DownEncoderBlock2D", "DownEncoderBlock2D"],
    "up_block_types": ["UpDecoderBlock2D", "UpDecoderBlock2D"],
    "force_upcast": True,
    "in_channels": 3,
    "latents_mean": None,
    "latents_std": None,
    "layers_per_block": 1,
    "mid_block_add_attention": True,
    "norm_num_groups": 32,
    "out_channels": 3,
    "sample_size": 1024,
}
FLUX1_CONFIG = CONFIG | {
    "latent_channels": 16, "scaling_factor": 0.3611, "shift_factor": 0.1159,
    "use_quant_conv": False, "use_post_quant_conv": False,
}  # fmt: skip
FLUX2_CONFIG = {key: value for key, value in CONFIG.items() if not key.startswith("latents")} | {
    "_class_name": "AutoencoderKLFlux2", "latent_channels": 32, "patch_size": [2, 2],
    "batch_norm_eps": 1e-4, "batch_norm_momentum": 0.1, "use_quant_conv": True, "use_post_quant_conv": True,
}  # fmt: skip


def narrow(name: str, release: str | None = None, **fields: Any) -> Autoencoder:
    chosen = releases_of(name)[0] if release is None else find_release(name, release)
    torch.manual_seed(0)
    tokenizer = build_tokenizer({**(chosen.architecture or {}), **NARROW, **fields})
    if isinstance(tokenizer, PatchNormalisedAutoencoder):
        tokenizer.bn.running_mean.normal_()
        tokenizer.bn.running_var.uniform_(0.5, 2.0)
    return tokenizer.eval()


def to_diffusers(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    names = DIFFUSERS.names(state, [])
    return {
        names[key]: (tensor[:, :, 0, 0] if ".attn_1." in key and tensor.ndim == 4 else tensor).clone()
        for key, tensor in state.items()
    }


def pictures() -> Tensor:
    return torch.rand(2, 3, 16, 24, generator=torch.Generator().manual_seed(0)) * 2 - 1


def same(tokenizer: Tokenizer, expected: Autoencoder) -> bool:
    expected.to(memory_format=torch.channels_last)  # as loaded ones are: equal to the last bit
    latents = expected.encode(pictures())
    return torch.equal(tokenizer.encode(pictures()), latents) and torch.equal(
        tokenizer.decode(latents), expected.decode(latents)
    )


def write(folder: Path, tensors: Mapping[str, Tensor], config: Mapping[str, Any] | None = None) -> Path:
    file = folder / "diffusion_pytorch_model.safetensors"
    save_file({key: tensor.clone() for key, tensor in tensors.items()}, file)
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    return file


# --- sizes ----------------------------------------------------------------------------------------------------------


def file_size(entries: Mapping[str, tuple[str, list[int]]]) -> int:
    """Bytes of a safetensors file as torch writes it; entries are type and shape by name."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for key in sorted(entries):
        dtype, shape = entries[key]
        start, end = end, end + {"F32": 4, "I64": 8}[dtype] * torch.Size(shape).numel()
        header[key] = {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}
    length = len(json.dumps(header, separators=(",", ":")))
    return 8 + -(-length // 8) * 8 + end


@pytest.mark.parametrize(("name", "parameters"), [("flux1", 83_819_683), ("flux2", 84_046_115), ("eq-vae", 83_653_863)])
def test_full_size_counts(name: str, parameters: int) -> None:
    """Counted in diffusers' own networks; four bytes each are the published 335, 336 and 335 MB."""
    with torch.device("meta"):
        tokenizer = build_tokenizer(releases_of(name)[0].architecture or {})
    assert sum(parameter.numel() for parameter in tokenizer.parameters()) == parameters
    assert ("quant_conv.weight" in tokenizer.state_dict()) == (name != "flux1")


def test_flux2_in_full_size_has_the_published_bytes() -> None:
    """They fix every name and shape, the statistics' among them."""
    with torch.device("meta"):
        state = build_tokenizer(releases_of("flux2")[0].architecture or {}).state_dict()
    names = DIFFUSERS.names(state, [])
    shapes = {key: list(tensor.shape) for key, tensor in state.items()}
    entries = {names[key]: ("F32", shape[:2] if ".attn_1." in key else shape) for key, shape in shapes.items()}
    file = find_release("flux2", "dev-copy").weights
    size = file_size({**entries, "bn.num_batches_tracked": ("I64", [])})
    assert file is not None and size == file.size == 336_213_556


def test_small_decoder_of_flux2() -> None:
    with torch.device("meta"):
        tokenizer = build_tokenizer(find_release("flux2", "small-decoder").architecture or {})
    shapes = {key: list(tensor.shape)[:2] for key, tensor in tokenizer.state_dict().items()}
    assert shapes["encoder.conv_out.weight"] == [64, 512] and shapes["decoder.conv_in.weight"] == [384, 32]
    assert shapes["decoder.conv_out.weight"] == [3, 96]


# --- layouts --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["authors", "diffusers"])
def test_flux1_has_no_quant_convs_and_shifts_before_it_scales(layout: str, tmp_path: Path) -> None:
    expected = narrow("flux1")
    state = expected.state_dict()
    assert not [key for key in state if "quant" in key]
    file = write(tmp_path, state if layout == "authors" else to_diffusers(state))
    tokenizer = load_tokenizer("flux1", weights=file, architecture=NARROW)
    assert same(tokenizer, expected)
    latents = tokenizer.encode(pictures())
    assert latents.shape == (2, 16, 8, 12)
    torch.testing.assert_close(tokenizer.normalize(latents), (latents - 0.1159) * 0.3611)
    torch.testing.assert_close(tokenizer.denormalize(tokenizer.normalize(latents)), latents)


@pytest.mark.parametrize("layout", ["authors", "diffusers"])
def test_flux2_in_both_layouts(layout: str, tmp_path: Path) -> None:
    expected = narrow("flux2")
    state = expected.state_dict()
    if layout == "diffusers":
        named = to_diffusers(state)
    else:
        inner = {"quant_conv.": "encoder.quant_conv.", "post_quant_conv.": "decoder.post_quant_conv."}
        start = {key: next((part for part in inner if key.startswith(part)), "") for key in state}
        named = {inner.get(start[key], "") + key.removeprefix(start[key]): tensor for key, tensor in state.items()}
        assert FLUX2.names(state, []) == dict(zip(state, named, strict=True))
    assert "bn.running_mean" in named and "quant_conv.bias" in "".join(named)
    file = write(tmp_path, {**named, "bn.num_batches_tracked": torch.tensor(7)})
    tokenizer = load_tokenizer("flux2", weights=file, architecture=NARROW)
    assert same(tokenizer, expected)
    assert torch.equal(
        tokenizer.normalize(tokenizer.encode(pictures())), expected.normalize(expected.encode(pictures()))
    )


@pytest.mark.parametrize("layout", ["diffusers", "authors"])
def test_eq_vae_in_both_layouts(layout: str, tmp_path: Path) -> None:
    expected = narrow("eq-vae")
    if layout == "diffusers":
        file = write(tmp_path, to_diffusers(expected.state_dict()), CONFIG | {"latent_channels": 4})
        tokenizer = load_tokenizer("eq-vae", weights=file)
    else:
        torch.save({"state_dict": {**expected.state_dict(), "loss.logvar": torch.zeros(1)}}, tmp_path / "model.ckpt")
        tokenizer = load_tokenizer(
            "eq-vae", weights=tmp_path / "model.ckpt", release="imagenet-ema-ldm", architecture=NARROW
        )
    assert same(tokenizer, expected)
    latents = tokenizer.encode(pictures())
    torch.testing.assert_close(tokenizer.normalize(latents), latents * 0.18215)


# --- normalisation of FLUX.2 ----------------------------------------------------------------------------------------


def test_flux2_normalises_patches_of_two_by_two_cells() -> None:
    """Channel (c, row, column) of a patch, by torch's own batch norm with the statistics of the file."""
    tokenizer = narrow("flux2")
    latents = torch.randn(2, 32, 6, 8, generator=torch.Generator().manual_seed(1))
    patches = torch.stack(
        [latents[:, c, row::2, column::2] for c in range(32) for row in range(2) for column in range(2)], dim=1
    )
    statistics = tokenizer.state_dict()
    expected = F.batch_norm(patches, statistics["bn.running_mean"], statistics["bn.running_var"], eps=1e-4)
    normalized = tokenizer.normalize(latents)
    assert normalized.shape == (2, 128, 3, 4)
    torch.testing.assert_close(normalized, expected)
    torch.testing.assert_close(tokenizer.denormalize(normalized), latents)
    with pytest.raises(UserError, match=r"\[n,32,h,w\] with h and w multiples of 2, got shape \[1, 32, 3, 4\]"):
        tokenizer.normalize(latents[:1, :, :3, :4])
    with pytest.raises(UserError, match=r"normalised latents must be \[n,128,h,w\], got \[2, 32, 6, 8\]"):
        tokenizer.denormalize(latents)


def test_flux2_records_the_same_statistics_per_channel(tmp_path: Path) -> None:
    """Those of latents whose patches have them."""
    expected = narrow("flux2")
    latents = torch.randn(8, 32, 6, 8, generator=torch.Generator().manual_seed(2)) * 3 + 1
    latents[:, :, ::2] += 2  # rows of a patch differ
    patches = F.pixel_unshuffle(latents, 2)
    state = expected.state_dict()
    state["bn.running_mean"] = patches.mean((0, 2, 3))
    state["bn.running_var"] = patches.var((0, 2, 3), correction=0)
    spec = load_tokenizer("flux2", weights=write(tmp_path, to_diffusers(state)), architecture=NARROW).spec
    torch.testing.assert_close(torch.tensor(spec.shift), latents.mean((0, 2, 3)))
    variance = latents.var((0, 2, 3), correction=0)
    torch.testing.assert_close(torch.tensor(spec.scale), 1 / (variance + 1e-4).sqrt())


# --- config.json beside the weights -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "config"), [("flux1", FLUX1_CONFIG), ("flux2", FLUX2_CONFIG)])
def test_sizes_come_from_the_configuration_beside_the_weights(
    name: str, config: dict[str, Any], tmp_path: Path
) -> None:
    expected = narrow(name)
    file = write(tmp_path, to_diffusers(expected.state_dict()), config)
    assert same(load_tokenizer(name, weights=file), expected)


def test_overrides_under_the_published_names(tmp_path: Path) -> None:
    expected = narrow("flux1")
    file = write(tmp_path, to_diffusers(expected.state_dict()))
    fields = {"block_out_channels": [32, 64], "layers_per_block": 1}
    assert same(load_tokenizer("flux1", weights=file, architecture=fields), expected)
    (tmp_path / "config.json").write_text(json.dumps(FLUX1_CONFIG | {"block_out_channels": [64, 128]}))
    assert same(load_tokenizer("flux1", weights=file, architecture={"ch": 32}), expected)


def test_normalisation_comes_from_the_configuration_too(tmp_path: Path) -> None:
    config = FLUX1_CONFIG | {"scaling_factor": 0.5, "shift_factor": 0.25}
    file = write(tmp_path, to_diffusers(narrow("flux1").state_dict()), config)
    spec = load_tokenizer("flux1", weights=file).spec
    assert (spec.shift, spec.scale) == ((0.25,), (0.5,))
    (tmp_path / "config.json").write_text(json.dumps({k: v for k, v in config.items() if "factor" not in k}))
    spec = load_tokenizer("flux1", weights=file).spec
    assert (spec.shift, spec.scale) == ((0.1159,), (0.3611,))  # as in files of 2022, which lack them


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"act_fn": "relu"}, r"config\.json: act_fn: .*'silu'"),
        ({"mid_block_add_attention": False}, r"config\.json: mid_block_add_attention"),
        (
            {"down_block_types": ["AttnDownEncoderBlock2D"]},
            r"config\.json: down_block_types\.0: .*'DownEncoderBlock2D'",
        ),
        (
            {"block_out_channels": [32, 48]},
            r"config\.json: every width must be a multiple of the first, got \[32, 48\]",
        ),
        ({"block_out_channels": "wide"}, r"config\.json: block_out_channels: .*tuple"),
        ({"decoder_block_out_channels": [32, 96]}, r"config\.json: decoder_block_out_channels must be"),
        ({"patch_size": [2, 1]}, r"config\.json: patch_size must be square"),
    ],
)
def test_networks_that_are_not_ours_are_refused(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    file = write(tmp_path, to_diffusers(narrow("flux1").state_dict()), FLUX1_CONFIG | change)
    with pytest.raises(UserError, match=message) as caught:
        load_tokenizer("flux1", weights=file)
    assert "\n" not in str(caught.value)


def test_other_json_files_of_that_name_are_left_aside(tmp_path: Path) -> None:
    expected = narrow("flux1")
    file = write(tmp_path, to_diffusers(expected.state_dict()), {"model": "something", "in_channels": 77, "seed": 3})
    assert same(load_tokenizer("flux1", weights=file, architecture=NARROW), expected)
    (tmp_path / "config.json").write_text("not json")
    with pytest.raises(UserError, match=r"config\.json is not a readable JSON file"):
        load_tokenizer("flux1", weights=file, architecture=NARROW)


@pytest.mark.parametrize("config", [{"scaling_factor": 9.0}, {"_class_name": "DiTTransformer2DModel", "patch_size": 2}])
def test_beside_the_authors_layout_a_configuration_is_of_something_else(config: dict[str, Any], tmp_path: Path) -> None:
    expected = narrow("flux1")
    tokenizer = load_tokenizer("flux1", weights=write(tmp_path, expected.state_dict(), config), architecture=NARROW)
    assert same(tokenizer, expected) and tokenizer.spec.scale == (0.3611,)


def test_a_configuration_of_another_class_is_refused(tmp_path: Path) -> None:
    config = FLUX1_CONFIG | {"_class_name": "DiTTransformer2DModel"}
    file = write(tmp_path, to_diffusers(narrow("flux1").state_dict()), config)
    with pytest.raises(
        UserError, match=r"config\.json describes DiTTransformer2DModel, not AutoencoderKL or AutoencoderKLFlux2"
    ):
        load_tokenizer("flux1", weights=file)


def test_misfits_name_the_configuration_that_was_read(tmp_path: Path) -> None:
    file = write(tmp_path, to_diffusers(narrow("flux1").state_dict()), FLUX1_CONFIG | {"block_out_channels": [64, 128]})
    with pytest.raises(
        UserError, match=rf"of another shape .* fields of architecture that differ from {tmp_path}/config\.json"
    ):
        load_tokenizer("flux1", weights=file)


def test_unknown_fields_of_the_user_are_mistakes(tmp_path: Path) -> None:
    file = write(tmp_path, narrow("flux1").state_dict())
    with pytest.raises(UserError, match="unknown architecture field 'block_out_chanels'"):
        load_tokenizer("flux1", weights=file, architecture={"block_out_chanels": [32, 64]})
