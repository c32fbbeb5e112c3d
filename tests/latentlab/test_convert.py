"""Conversion of pickled checkpoints: what is kept, what is left out, and that loaders find the same in the new file."""

import argparse
import collections
import datetime
import functools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from latentlab.cli.main import app
from latentlab.conversion import convert_checkpoint
from latentlab.errors import UserError
from latentlab.tokenizers import build_tokenizer, load_tokenizer
from latentlab.tokenizers.zoo import find_release
from latentlab.weights import read_metadata, read_state_dict

WEIGHTS = {
    "conv.weight": torch.arange(24.0).view(2, 3, 2, 2).permute(0, 2, 3, 1),  # strides that are not those of its shape
    "conv.bias": torch.tensor([1.5, -2], dtype=torch.bfloat16),
    "steps": torch.tensor(7),
    "mask": torch.tensor([True, False]),
    "empty": torch.zeros(0, 3, dtype=torch.float16),
    "bytes": torch.arange(5, dtype=torch.uint8)[1:4],
}


class Callback:
    """A class of somebody else's package; unpickling it freely would call `__setstate__`."""

    def __init__(self) -> None:
        self.best = torch.ones(2)


def parameters(scale: float = 1.0) -> dict[str, torch.Tensor]:
    return collections.OrderedDict(
        (name, value * scale if value.is_floating_point() else value) for name, value in WEIGHTS.items()
    )


def lightning_checkpoint() -> dict[str, Any]:
    """What training leaves behind: weights and averaged weights in entries, and much else."""
    return {
        "epoch": 3,
        "state_dict": parameters() | {"head.weight": torch.nn.Parameter(torch.full((2,), 0.5))},
        "ema": parameters(2),
        "optimizer_states": [{"state": {0: {"exp_avg": torch.ones(2)}}, "param_groups": [{"lr": 0.1}]}],
        "callbacks": {"early": Callback()},
        "args": argparse.Namespace(depth=3),
        "seen": {1, 2},
    }


def assert_same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert set(found) == set(expected)
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype and torch.equal(found[name], tensor), name


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "last.ckpt"


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "last.safetensors"


# --- what is kept -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "older layout"])
def test_entries_keep_their_tensors(zipped: bool, protocol: int, path: Path, out: Path) -> None:
    torch.save(lightning_checkpoint(), path, _use_new_zipfile_serialization=zipped, pickle_protocol=protocol)
    with pytest.raises(UserError):
        read_state_dict(path, key="state_dict")
    found = convert_checkpoint(path, out)
    assert found.entries == ["state_dict", "ema"]
    assert_same(read_state_dict(out, wrappers=("ema", "model")), parameters(2))
    assert_same(read_state_dict(out, key="state_dict"), parameters() | {"head.weight": torch.full((2,), 0.5)})
    dropped = "; ".join(found.dropped)
    for part in (
        "epoch (int)",
        "optimizer_states (list of 1)",
        "callbacks.early (",
        "Callback)",
        "args (argparse.Namespace)",
    ):
        assert part in dropped
    note = read_metadata(out)
    assert note["converted_from"] == "last.ckpt" and len(note["converted_sha256"]) == 64
    assert json.loads(note["dropped"]) == found.dropped


def test_a_flat_state_dict_stays_flat(path: Path, out: Path) -> None:
    torch.save({**WEIGHTS, "args": argparse.Namespace()}, path)
    assert convert_checkpoint(path, out).entries == []
    assert_same(read_state_dict(out), WEIGHTS)


def test_shared_and_attributed_tensors_are_written_each(path: Path, out: Path) -> None:
    """Tied weights, a parameter with an attribute of its own (torch rebuilds it by another function), a nested entry."""
    shared, marked = torch.arange(6.0), torch.nn.Parameter(torch.ones(2))
    marked.is_norm = True
    content = {
        "model": {"a": shared, "b": shared[2:4], "c": marked, "inner": {"d": shared.view(2, 3)}},
        "x": Callback(),
    }
    torch.save(content, path)
    convert_checkpoint(path, out)
    found = read_state_dict(out, key="model")
    expected = {"a": shared, "b": shared[2:4], "c": torch.ones(2), "inner.d": shared.view(2, 3)}
    assert_same(found, expected)


def test_result_equals_what_torch_reads_where_it_can(path: Path, out: Path) -> None:
    torch.save({"state_dict": WEIGHTS}, path)
    convert_checkpoint(path, out)
    assert_same(read_state_dict(out, key="state_dict"), torch.load(path, weights_only=True)["state_dict"])


def test_a_tokenizer_reads_the_converted_file_as_its_own(path: Path, out: Path) -> None:
    """Lightning's checkpoint of IBQ, with averaged weights and objects of the training loop: the averaged weights are found."""
    narrow = {"ch": 32, "ch_mult": [1, 1], "num_res_blocks": 1, "n_embed": 12, "z_channels": 8, "embed_dim": 8}
    fields = {**(find_release("ibq", "imagenet256").architecture or {}), **narrow}
    raw, averaged = (build_tokenizer(fields).state_dict() for _ in range(2))
    ema = {"model_ema." + name.replace(".", ""): value for name, value in averaged.items()}
    ema |= {"model_ema.decay": torch.tensor(0.999), "model_ema.num_updates": torch.tensor(7, dtype=torch.int32)}
    torch.save({"state_dict": {**raw, **ema, "loss.w": torch.ones(1)}, "callbacks": {"early": Callback()}}, path)
    with pytest.raises(UserError, match=rf"latentlab convert {path} {out}`"):
        load_tokenizer("ibq", weights=path, architecture=narrow)
    convert_checkpoint(path, out)
    for ema_wanted, expected in ((True, averaged), (False, raw)):
        assert_same(load_tokenizer("ibq", weights=out, architecture=narrow, ema=ema_wanted).state_dict(), expected)


# --- the command ------------------------------------------------------------------------------------------------------


def test_the_reader_points_to_the_command_and_the_command_mends_it(tmp_path: Path) -> None:
    path = tmp_path / "my model.ckpt"
    torch.save(lightning_checkpoint(), path)
    with pytest.raises(UserError) as refused:
        read_state_dict(path, wrappers=("state_dict",))
    command = str(refused.value).split("`")[1]
    assert command == f"latentlab convert '{path}' '{tmp_path / 'my model.safetensors'}'"
    words = [str(path), str(tmp_path / "my model.safetensors")]
    result = CliRunner().invoke(app, ["convert", *words], prog_name="latentlab")
    assert result.exit_code == 0, result.output
    assert f"tensors  13 in {words[1]} (entries: state_dict, ema)" in result.stdout
    assert "dropped  args (argparse.Namespace)" in result.stdout
    assert_same(read_state_dict(Path(words[1]), wrappers=("ema",)), parameters(2))
    again = CliRunner().invoke(app, ["convert", *words], prog_name="latentlab")
    assert again.exit_code == 2 and "is there already" in again.stderr


def test_without_a_name_the_new_file_lies_beside_the_old_one_and_nothing_is_overwritten(path: Path, out: Path) -> None:
    torch.save(WEIGHTS, path)
    result = CliRunner().invoke(app, ["convert", str(path)], prog_name="latentlab")
    assert result.exit_code == 0 and result.stdout == f"tensors  6 in {out}\n"
    assert_same(read_state_dict(out), WEIGHTS)
    before = out.read_bytes()
    torch.save({"w": torch.ones(1)}, path)
    again = CliRunner().invoke(app, ["convert", str(path)], prog_name="latentlab")
    assert again.exit_code == 2 and f"{out} is there already: delete it or choose another name" in again.stderr
    assert out.read_bytes() == before
    already = CliRunner().invoke(app, ["convert", str(out)], prog_name="latentlab")
    assert already.exit_code == 2 and "is a safetensors file already: there is nothing to convert" in already.stderr


def test_a_folder_is_no_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, ["convert", "."], prog_name="latentlab")
    assert result.exit_code == 2 and "is a folder: give the weight file in it" in result.stderr


def test_what_training_leaves_behind_is_dropped_without_a_warning(path: Path, out: Path) -> None:
    """Settings of OmegaConf, scalars and arrays of NumPy, dates, an optimiser: listed, and no cause for alarm."""
    content = {
        "state_dict": parameters(),
        "args": argparse.Namespace(depth=3),
        "best": np.float64(0.5),
        "scores": np.arange(3.0),
        "random": np.random.default_rng(0),
        "when": datetime.datetime(2026, 1, 2),
        "folder": Path("runs"),
        "kind": torch.bfloat16,
        "device": torch.device("cpu"),
        "optimizer": torch.optim.AdamW([torch.zeros(1)]),
        "scheduler": functools.partial(collections.Counter, "ab"),
        "seen": {1, 2},
        "bytes": b"\x00\xff",
    }
    torch.save(content, path)
    found = convert_checkpoint(path, out)
    assert found.not_run == [] and json.loads(read_metadata(out)["not_run"]) == []
    assert {line.split(" ")[0] for line in found.dropped} == set(content) - {"state_dict"}
    shown = CliRunner().invoke(app, ["convert", str(path), str(out.with_stem("b"))], prog_name="latentlab").stdout
    assert "NOT RUN" not in shown and "warning" not in shown


def test_classes_of_packages_that_are_not_known_are_named(path: Path, out: Path) -> None:
    torch.save(lightning_checkpoint(), path)
    assert convert_checkpoint(path, out).not_run == [f"{Callback.__module__}.Callback"]
