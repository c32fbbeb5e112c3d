"""Stable Diffusion's autoencoder in both published layouts, on networks of reduced width."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from latentlab import UserError
from latentlab.tokenizers import build_tokenizer, load_tokenizer, zoo_entries
from latentlab.tokenizers.autoencoder import Autoencoder
from latentlab.tokenizers.layouts import DIFFUSERS
from latentlab.tokenizers.zoo import find_release

NARROW = {"ch": 32, "ch_mult": [1, 2], "num_res_blocks": 1}
LEFT_OVER = {"model_ema.decay": torch.tensor(0.9999), "model_ema.num_updates": torch.tensor(7, dtype=torch.int32)}

HAND_WRITTEN = {  # of every kind of part, for two levels of one block (two in the decoder)
    "encoder.conv_in.weight": "encoder.conv_in.weight",
    "encoder.down.0.block.0.norm1.weight": "encoder.down_blocks.0.resnets.0.norm1.weight",
    "encoder.down.0.downsample.conv.bias": "encoder.down_blocks.0.downsamplers.0.conv.bias",
    "encoder.down.1.block.0.nin_shortcut.weight": "encoder.down_blocks.1.resnets.0.conv_shortcut.weight",
    "encoder.mid.block_1.conv1.weight": "encoder.mid_block.resnets.0.conv1.weight",
    "encoder.mid.block_2.conv2.bias": "encoder.mid_block.resnets.1.conv2.bias",
    "encoder.mid.attn_1.norm.bias": "encoder.mid_block.attentions.0.group_norm.bias",
    "encoder.mid.attn_1.q.weight": "encoder.mid_block.attentions.0.to_q.weight",
    "encoder.mid.attn_1.k.weight": "encoder.mid_block.attentions.0.to_k.weight",
    "decoder.mid.attn_1.v.bias": "decoder.mid_block.attentions.0.to_v.bias",
    "decoder.mid.attn_1.proj_out.weight": "decoder.mid_block.attentions.0.to_out.0.weight",
    "decoder.up.1.block.1.conv2.weight": "decoder.up_blocks.0.resnets.1.conv2.weight",
    "decoder.up.1.upsample.conv.weight": "decoder.up_blocks.0.upsamplers.0.conv.weight",
    "decoder.up.0.block.0.nin_shortcut.bias": "decoder.up_blocks.1.resnets.0.conv_shortcut.bias",
    "decoder.norm_out.weight": "decoder.conv_norm_out.weight",
    "decoder.conv_out.bias": "decoder.conv_out.bias",
    "quant_conv.weight": "quant_conv.weight",
    "post_quant_conv.bias": "post_quant_conv.bias",
}


@pytest.fixture(autouse=True)
def empty_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LATENTLAB_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))


def published() -> dict[str, Any]:
    return dict(find_release("sd-vae", "ft-mse").architecture or {})


def narrow() -> Autoencoder:
    torch.manual_seed(0)
    return build_tokenizer(published() | NARROW)


def to_diffusers(state: Mapping[str, Tensor], old: bool) -> dict[str, Tensor]:
    """The tensors as diffusers stores them: other names, and attention by matrices."""
    names = DIFFUSERS.names(state, ["x.query.weight"] if old else [])
    return {
        names[key]: tensor[:, :, 0, 0] if ".attn_1." in key and tensor.ndim == 4 else tensor
        for key, tensor in state.items()
    }


def pictures() -> Tensor:
    return torch.rand(2, 3, 16, 24, generator=torch.Generator().manual_seed(0)) * 2 - 1


def file_size(shapes: Mapping[str, list[int]], *, aligned: bool, extra: Mapping[str, str] | None = None) -> int:
    """Bytes of a safetensors file of float32 tensors; ``extra`` names scalars of four bytes and their type."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for key in sorted([*shapes, *(extra or {})]):
        start, end = end, end + 4 * torch.Size(shapes.get(key, [])).numel()
        dtype = "F32" if key in shapes else (extra or {})[key]
        header[key] = {"dtype": dtype, "shape": shapes.get(key, []), "data_offsets": [start, end]}
    length = len(json.dumps(header, separators=(",", ":")))
    return 8 + (-(-length // 8) * 8 if aligned else length) + end


def test_full_size_count_and_bytes_are_the_published_ones() -> None:
    """The bytes fix every name and shape: diffusers' file has the names of 2022, the authors' two left-over entries."""
    with torch.device("meta"):
        tokenizer = build_tokenizer(published())
    assert sum(parameter.numel() for parameter in tokenizer.parameters()) == 83_653_863
    state = tokenizer.state_dict()
    assert len(state) == 248 and not [key for key in state if ".attn." in key]
    theirs = {key: list(tensor.shape) for key, tensor in to_diffusers(state, old=True).items()}
    file = find_release("sd-vae", "ft-mse").weights
    assert file is not None and file_size(theirs, aligned=True) == file.size == 334_643_276
    ours = {key: list(tensor.shape) for key, tensor in state.items()}
    extra = {"model_ema.decay": "F32", "model_ema.num_updates": "I32"}
    assert file_size(ours, aligned=False, extra=extra) == 334_641_190  # vae-ft-mse-840000-ema-pruned.safetensors


def test_names_of_both_layouts() -> None:
    state = narrow().state_dict()
    names = DIFFUSERS.names(state, [])
    assert {ours: names[ours] for ours in HAND_WRITTEN} == HAND_WRITTEN
    assert len(set(names.values())) == len(state)
    old = DIFFUSERS.names(state, ["encoder.mid_block.attentions.0.query.weight"])
    attention = {name.rsplit("attentions.0.")[1].rsplit(".", 1)[0] for name in old.values() if "attentions" in name}
    assert attention == {"group_norm", *(part.rstrip(".") for _, part in DIFFUSERS.dialect)}


@pytest.mark.parametrize("layout", ["authors", "diffusers", "diffusers of 2022"])
def test_every_layout_loads(layout: str, tmp_path: Path) -> None:
    expected, path = narrow(), tmp_path / "file.safetensors"
    state = expected.state_dict()
    written = {**state, **LEFT_OVER} if layout == "authors" else to_diffusers(state, old="2022" in layout)
    save_file({key: tensor.clone() for key, tensor in written.items()}, path, metadata={"format": "pt"})
    tokenizer = load_tokenizer("sd-vae", weights=path, release="ft-ema", architecture=NARROW)
    assert (tokenizer.spec.name, tokenizer.spec.release, tokenizer.spec.channels) == ("sd-vae", "ft-ema", 4)
    expected.to(memory_format=torch.channels_last)  # as loaded ones are: equal to the last bit
    latents = tokenizer.encode(pictures())
    assert latents.shape == (2, 4, 8, 12)
    torch.testing.assert_close(latents, expected.encode(pictures()), atol=0, rtol=0)
    torch.testing.assert_close(tokenizer.decode(latents), expected.decode(latents), atol=0, rtol=0)
    torch.testing.assert_close(tokenizer.normalize(latents), latents * 0.18215)
    torch.testing.assert_close(tokenizer.denormalize(tokenizer.normalize(latents)), latents)


def test_misfits_are_named_as_in_the_file(tmp_path: Path) -> None:
    written = to_diffusers(narrow().state_dict(), old=True)
    del written["decoder.mid_block.attentions.0.proj_attn.bias"]
    written |= {"encoder.down_blocks.7.resnets.0.conv1.weight": torch.zeros(1), "quant_conv.bias": torch.zeros(3)}
    save_file({key: tensor.clone() for key, tensor in written.items()}, tmp_path / "file.safetensors")
    with pytest.raises(UserError) as caught:
        load_tokenizer("sd-vae", weights=tmp_path / "file.safetensors", architecture=NARROW)
    for part in (
        "file.safetensors for 'sd-vae' does not fit the architecture",
        "1 missing (decoder.mid_block.attentions.0.proj_attn.bias)",
        "1 unexpected (encoder.down_blocks.7.resnets.0.conv1.weight)",
        "1 of another shape (quant_conv.bias is [3] instead of [8])",
    ):
        assert part in str(caught.value)


@pytest.mark.parametrize("release", ["ft-mse", "ft-ema"])
def test_listed_and_named_when_absent(release: str) -> None:
    entry = next(entry for entry in zoo_entries() if (entry.name, entry.release) == ("sd-vae", release))
    assert (entry.kind, entry.latent_shape, entry.codebook_size) == ("kl", (4, 32, 32), None)
    assert (entry.licence, entry.image_size, entry.present) == ("MIT", 256, False)
    with pytest.raises(UserError) as caught:
        load_tokenizer("sd-vae", release=release)
    message = str(caught.value)
    assert "diffusion_pytorch_model.safetensors (334.6 MB)" in message and "\n" not in message
    assert f"huggingface.co/stabilityai/sd-vae-{release} and put them at" in message
    assert f"weights/stabilityai--sd-vae-{release}/diffusion_pytorch_model.safetensors" in message
