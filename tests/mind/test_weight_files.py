"""Our own weight files: what their headers say, how they are found, and how wrong ones are refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import mind
from latentlab import UserError
from latentlab.weights import read_metadata
from mind.config import MindConfig
from mind.network import Mind
from mind.released import save_mind
from mind.weight_files import EMBEDDED, embedded_path, read_header

TINY = MindConfig(vocab_size=50, hidden_size=32, num_heads=4, num_blocks=3, cond_dim=24, num_classes=7)


# --- our own files ----------------------------------------------------------------------------------------------------

TOKENIZER = {"name": "ibq", "release": "fashion32", "weights_sha256": "0" * 64}


def own_model(config: MindConfig = TINY) -> Mind:
    torch.manual_seed(3)
    return Mind(config).eval()


def save(path: Path, model: Mind, dtype: torch.dtype = torch.float32) -> Path:
    state = {name: tensor.to(dtype) for name, tensor in model.state_dict().items()}
    save_mind(path, state, model.config, {"tokenizer": json.dumps(TOKENIZER), "release": "fashion32"})
    return path


def test_own_files_come_back(tmp_path: Path, released: Any) -> None:
    model = own_model(TINY.model_copy(update={"rope": "2d", "grid": (3, 4), "tokens": 12, "noise_factor": 0.8}))
    loaded = mind.load_mind(save(tmp_path / "mind.safetensors", model))
    inputs = released.inputs()
    assert torch.equal(loaded.logits(*inputs), model.logits(*inputs))
    assert loaded.config == model.config and loaded.precision == "float32" and not loaded.training
    assert not any(p.requires_grad for p in loaded.parameters())
    assert json.loads(loaded.metadata["tokenizer"]) == TOKENIZER and loaded.metadata["release"] == "fashion32"
    assert loaded.metadata["latentlab_version"]


def test_half_precision_files_are_read_as_float32(tmp_path: Path, released: Any) -> None:
    model = own_model()
    loaded = mind.load_mind(str(save(tmp_path / "mind.safetensors", model, torch.float16)))
    assert all(p.dtype == torch.float32 for p in loaded.parameters())
    inputs = released.inputs()
    torch.testing.assert_close(loaded.logits(*inputs), model.logits(*inputs), rtol=0, atol=0.02)


def test_headers_are_read_without_the_weights(tmp_path: Path) -> None:
    header = read_header(save(tmp_path / "mind.safetensors", own_model()))
    assert header.config == TINY and header.tokenizer is not None
    assert header.tokenizer.model_dump() == TOKENIZER


def test_a_file_need_not_name_its_tokenizer(tmp_path: Path) -> None:
    model = own_model()
    save_mind(tmp_path / "m.safetensors", model.state_dict(), model.config, {})
    assert read_header(tmp_path / "m.safetensors").tokenizer is None
    assert "tokenizer" not in mind.load_mind(tmp_path / "m.safetensors").metadata


def test_what_does_not_fit_is_not_written(tmp_path: Path) -> None:
    model = own_model()
    state = dict(model.state_dict())
    del state["head.linear.bias"]
    with pytest.raises(
        UserError, match=r"m\.safetensors does not fit this MIND model: 1 missing \(head\.linear\.bias\)"
    ):
        save_mind(tmp_path / "m.safetensors", state, model.config, {})
    with pytest.raises(UserError, match=r"must end in \.safetensors"):
        save_mind(tmp_path / "m.pt", model.state_dict(), model.config, {})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ({}, "holds no MIND weights written by latentlab"),
        ({"mind_config": "no json"}, "mind_config in the header is not JSON"),
        ({"mind_config": '{"heads": 3}'}, "mind_config in the header: heads"),
        ({"mind_config": "{}", "tokenizer": '{"name": "ibq"}'}, "tokenizer in the header: release"),
        ({"mind_config": TINY.model_dump_json()}, r"does not fit this MIND model: .* missing \(scalar"),
    ],
)
def test_files_that_are_not_ours(header: dict[str, str], message: str, tmp_path: Path) -> None:
    save_file({"a": torch.zeros(1)}, tmp_path / "m.safetensors", metadata=header)
    with pytest.raises(UserError, match=message) as caught:
        mind.load_mind(tmp_path / "m.safetensors")
    assert "\n" not in str(caught.value) and "m.safetensors" in str(caught.value)


def test_own_files_are_sent_to_the_right_function(tmp_path: Path) -> None:
    path = save(tmp_path / "mind.safetensors", own_model())
    with pytest.raises(UserError, match=r"was written by latentlab.*: read it with mind\.load_mind"):
        mind.load_released(path)


# --- finding them -----------------------------------------------------------------------------------------------------


def test_a_path_is_itself(tmp_path: Path) -> None:
    path = save(tmp_path / "mind.safetensors", own_model())
    assert mind.find_weights(path) == mind.find_weights(str(path)) == path


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("fashion", r"unknown MIND weights 'fashion'\. Did you mean fashion32"),
        ("absent.safetensors", r"absent\.safetensors does not exist"),
        ("some/where", "some/where does not exist"),
        (".", "is a folder: give the weight file in it"),
    ],
)
def test_what_cannot_be_found_is_one_clear_line(name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        mind.find_weights(name)


def test_lacking_embedded_weights_are_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mind.weight_files.WEIGHTS", tmp_path)
    with pytest.raises(
        UserError, match=r"the embedded weights .*mind_fashion32\.safetensors are missing: install latentlab"
    ):
        mind.load_mind("fashion32")


@pytest.mark.parametrize("name", EMBEDDED)
def test_embedded_weights(name: str) -> None:
    if not embedded_path(name).is_file():
        pytest.skip(f"{embedded_path(name)} is not there: it is made by training, see mind/configs")
    assert embedded_path(name).stat().st_size <= 8_000_000
    model = mind.load_mind(name)
    assert model.config.tokens == 64 and model.config.vocab_size == 512 and model.config.num_classes == 10
    header = json.loads(read_metadata(embedded_path(name))["tokenizer"])
    assert (header["name"], header["release"]) == ("ibq", "fashion32")


def test_own_weights_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    model = own_model()
    model.head.linear.bias.data[0] = torch.nan
    with pytest.raises(UserError, match=r"NaN or infinite weights \(head\.linear\.bias\)"):
        mind.load_mind(save(tmp_path / "a.safetensors", model))
