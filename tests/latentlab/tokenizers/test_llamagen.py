"""LlamaGen's tokenizers: its names, its load order, and codes of length one."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from latentlab import UserError
from latentlab.tokenizers import build_tokenizer, load_tokenizer
from latentlab.tokenizers.base import DiscreteTokenizer
from latentlab.tokenizers.layouts import LLAMAGEN
from latentlab.tokenizers.zoo import find_release

NARROW: dict[str, Any] = {"ch": 32, "ch_mult": [1, 2, 2], "num_res_blocks": 1, "n_embed": 40, "z_channels": 16}

State = dict[str, Tensor]


def full(name: str) -> dict[str, Any]:
    return dict(find_release(name, "c2i").architecture or {})


def published(seed: int) -> State:
    """Tensors under LlamaGen's names; codes of different lengths, and the buffer that training leaves behind."""
    torch.manual_seed(seed)
    state = build_tokenizer(full("llamagen-vq16") | NARROW).state_dict()
    state["quantize.embedding.weight"] = torch.randn(40, 8) * torch.rand(40, 1)
    names = LLAMAGEN.names(state, [])
    named = {names[name]: tensor.clone() for name, tensor in state.items()}
    return {**named, "quantize.codebook_used": torch.zeros(65536)}


def write(path: Path, content: dict[str, Any]) -> Path:
    torch.save(content, path)
    return path


def load(path: Path, **options: Any) -> DiscreteTokenizer:
    tokenizer = load_tokenizer("llamagen-vq16", weights=path, architecture=NARROW, **options)
    assert isinstance(tokenizer, DiscreteTokenizer)
    return tokenizer


def pictures() -> Tensor:
    return torch.rand(2, 3, 16, 24, generator=torch.Generator().manual_seed(0)) * 2 - 1


# --- the network from the description, on published names, in float64 -------------------------------------------------


def conv(s: State, name: str, x: Tensor, **options: Any) -> Tensor:
    return F.conv2d(x, s[f"{name}.weight"].double(), s[f"{name}.bias"].double(), **options)


def norm(s: State, name: str, x: Tensor) -> Tensor:
    return F.group_norm(x, 32, s[f"{name}.weight"].double(), s[f"{name}.bias"].double(), eps=1e-6)


def res(s: State, name: str, x: Tensor) -> Tensor:
    h = conv(s, f"{name}.conv1", F.silu(norm(s, f"{name}.norm1", x)), padding=1)
    h = conv(s, f"{name}.conv2", F.silu(norm(s, f"{name}.norm2", h)), padding=1)
    return h + (conv(s, f"{name}.nin_shortcut", x) if f"{name}.nin_shortcut.weight" in s else x)


def attn(s: State, name: str, x: Tensor) -> Tensor:
    q, k, v = (conv(s, f"{name}.{part}", norm(s, f"{name}.norm", x)).flatten(2) for part in "qkv")
    weights = (torch.einsum("nci,ncj->nij", q, k) * x.shape[1] ** -0.5).softmax(2)
    return x + conv(s, f"{name}.proj_out", torch.einsum("nij,ncj->nci", weights, v).view_as(x))


def mid(s: State, half: str, h: Tensor) -> Tensor:
    return res(s, f"{half}.mid.2", attn(s, f"{half}.mid.1", res(s, f"{half}.mid.0", h)))


def literal_vectors(s: State, images: Tensor) -> Tensor:
    """What is quantized, at length one. Attention at the coarsest level only, zeros on the right and at the bottom only."""
    h = conv(s, "encoder.conv_in", images.double(), padding=1)
    for i in range(3):
        h = res(s, f"encoder.conv_blocks.{i}.res.0", h)
        if i == 2:
            h = attn(s, "encoder.conv_blocks.2.attn.0", h)
        else:
            h = conv(s, f"encoder.conv_blocks.{i}.downsample.conv", F.pad(h, (0, 1, 0, 1)), stride=2)
    h = conv(s, "encoder.conv_out", F.silu(norm(s, "encoder.norm_out", mid(s, "encoder", h))), padding=1)
    z = conv(s, "quant_conv", h)
    return z / z.square().sum(1, keepdim=True).sqrt()


def literal_images(s: State, codes: Tensor) -> Tensor:
    """Levels in the order they run: 0 is the coarsest."""
    h = mid(s, "decoder", conv(s, "decoder.conv_in", conv(s, "post_quant_conv", codes), padding=1))
    for k in range(3):
        for j in range(2):
            h = res(s, f"decoder.conv_blocks.{k}.res.{j}", h)
            h = attn(s, f"decoder.conv_blocks.0.attn.{j}", h) if k == 0 else h
        if k < 2:
            doubled = h.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
            h = conv(s, f"decoder.conv_blocks.{k}.upsample.conv", doubled, padding=1)
    return conv(s, "decoder.conv_out", F.silu(norm(s, "decoder.norm_out", h)), padding=1)


def test_the_network_is_the_described_one(tmp_path: Path) -> None:
    s = published(1)
    tokenizer = load(write(tmp_path / "vq_ds16_c2i.pt", {"model": s})).double()
    rows = s["quantize.embedding.weight"].double()
    directions = rows / rows.norm(dim=1, keepdim=True)
    vectors = literal_vectors(s, pictures())
    distances = (vectors.permute(0, 2, 3, 1)[..., None, :] - directions).square().sum(-1)
    indices = distances.argmin(-1)
    assert torch.equal(tokenizer.indices(pictures()), indices)
    lengths = (vectors.permute(0, 2, 3, 1)[..., None, :] - rows).square().sum(-1).argmin(-1)
    assert (lengths != indices).double().mean() > 0.2  # the stored lengths would mislead
    codes = directions[indices].permute(0, 3, 1, 2)
    torch.testing.assert_close(tokenizer.encode(pictures()), codes, atol=1e-12, rtol=0)
    torch.testing.assert_close(tokenizer.codebook, directions, atol=1e-12, rtol=0)
    expected = literal_images(s, codes)
    assert (expected.abs() < 1).double().mean() > 0.5  # most of what is compared is not clamped
    torch.testing.assert_close(tokenizer.decode_indices(indices), expected.clamp(-1, 1), atol=1e-9, rtol=0)


# --- files ----------------------------------------------------------------------------------------------------------


def test_full_size_is_the_published_one() -> None:
    """287.8 and 281 MB: every parameter in four bytes, and 65536 counters."""
    for name, size, levels in (("llamagen-vq16", 287.8e6, 5), ("llamagen-vq8", 280.7e6, 4)):
        with torch.device("meta"):
            tokenizer = build_tokenizer(full(name))
        assert abs(4 * (65536 + sum(p.numel() for p in tokenizer.parameters())) - size) < 0.1e6
        keys = set(LLAMAGEN.names(tokenizer.state_dict(), []).values())
        attention = {key.rsplit(".attn.", 1)[0] for key in keys if ".attn." in key}
        assert attention == {f"encoder.conv_blocks.{levels - 1}", "decoder.conv_blocks.0"}
        for key in (f"decoder.conv_blocks.{levels - 2}.upsample.conv.weight", "decoder.conv_blocks.0.attn.2.q.weight"):
            assert key in keys
        assert f"decoder.conv_blocks.{levels - 1}.upsample.conv.weight" not in keys
        assert "encoder.mid.1.proj_out.bias" in keys and "decoder.conv_blocks.1.res.2.conv2.weight" in keys


def test_averaged_weights_come_first_then_model_then_state_dict(tmp_path: Path) -> None:
    states = {name: published(seed) for seed, name in enumerate(("ema", "model", "state_dict"))}
    expected = {
        name: load(write(tmp_path / "one.pt", {"model": state})).encode(pictures()) for name, state in states.items()
    }
    file = write(tmp_path / "all.pt", {**states, "steps": 3})
    assert torch.equal(load(file).encode(pictures()), expected["ema"])
    raw = load(file, ema=False)
    assert torch.equal(raw.encode(pictures()), expected["model"]) and raw.spec.release == "custom-raw"
    file = write(tmp_path / "last.pt", {"state_dict": states["state_dict"]})
    assert torch.equal(load(file).encode(pictures()), expected["state_dict"])
    with pytest.raises(UserError, match="not tensors: ema"):
        load(write(tmp_path / "only.pt", {"ema": states["ema"]}), ema=False)


def test_the_copy_on_the_hub_with_its_own_configuration(tmp_path: Path) -> None:
    """Flat tensors; sizes from the ``config.json`` beside them, under the names of ModelArgs."""
    torch.manual_seed(3)
    narrow = {"ch": 32, "ch_mult": [1, 2], "n_embed": 30, "embed_dim": 6}
    expected = build_tokenizer(full("llamagen-vq16") | narrow)
    names = LLAMAGEN.names(expected.state_dict(), [])
    tensors = {names[name]: tensor.clone() for name, tensor in expected.state_dict().items()}
    save_file({**tensors, "quantize.codebook_used": torch.zeros(65536)}, tmp_path / "model.safetensors")
    config = {
        "codebook_size": 30, "codebook_embed_dim": 6, "codebook_l2_norm": True, "codebook_show_usage": True,
        "commit_loss_beta": 0.25, "entropy_loss_ratio": 0.0, "encoder_ch_mult": [1, 2], "decoder_ch_mult": [1, 2],
        "z_channels": 256, "dropout_p": 0.0,
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    file = tmp_path / "model.safetensors"
    tokenizer = load_tokenizer("llamagen-vq16", weights=file, release="c2i-safetensors", architecture={"ch": 32})
    torch.testing.assert_close(tokenizer.encode(pictures()), expected.encode(pictures()))
    assert (tokenizer.spec.channels, tokenizer.spec.codebook_size, tokenizer.spec.downsampling) == (6, 30, 2)
    (tmp_path / "config.json").write_text(json.dumps(config | {"codebook_l2_norm": False}))
    with pytest.raises(UserError, match=r"config\.json: codebook_l2_norm: .*True"):
        load_tokenizer("llamagen-vq16", weights=file, architecture={"ch": 32})
    (tmp_path / "config.json").unlink()
    theirs = {
        "ch": 32,
        "codebook_size": 30,
        "codebook_embed_dim": 6,
        "encoder_ch_mult": [1, 2],
        "decoder_ch_mult": [1, 2],
    }
    again = load_tokenizer("llamagen-vq16", weights=file, architecture=theirs)
    assert torch.equal(again.encode(pictures()), tokenizer.encode(pictures()))
    for half in ("encoder_ch_mult", "decoder_ch_mult"):  # one stands for both
        alone = {name: value for name, value in theirs.items() if name != half}
        again = load_tokenizer("llamagen-vq16", weights=file, architecture=alone)
        assert torch.equal(again.encode(pictures()), tokenizer.encode(pictures()))


def test_misfits_are_named_as_in_the_file(tmp_path: Path) -> None:
    s = published(1)
    del s["decoder.conv_blocks.0.attn.1.norm.bias"]
    s["encoder.mid.3.conv1.weight"] = torch.zeros(1)
    with pytest.raises(UserError) as caught:
        load(write(tmp_path / "vq.pt", {"model": s}))
    assert "1 missing (decoder.conv_blocks.0.attn.1.norm.bias)" in str(caught.value)
    assert "1 unexpected (encoder.mid.3.conv1.weight)" in str(caught.value) and "codebook_used" not in str(caught.value)
