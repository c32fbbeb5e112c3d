"""Hostile and damaged checkpoints: nothing in them is ever run by the conversion, and what misleads is refused.

Payloads are real ones: each test runs them freely afterwards to show that they would have worked.
"""

import argparse
import contextlib
import json
import os
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from latentlab.cli.main import app
from latentlab.conversion import convert_checkpoint
from latentlab.errors import UserError
from latentlab.inert_pickle import read_pickle
from latentlab.pickle_names import is_ordinary
from latentlab.weights import read_metadata, read_state_dict


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "last.ckpt"


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "last.safetensors"


class Attack:
    """Runs a command when unpickled freely."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {self.marker}",)


class StateAttack:
    """The state of a harmless-looking object carries the payload to its `__setstate__`."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __getstate__(self) -> dict[str, Path]:
        return {"marker": self.marker}

    def __setstate__(self, state: dict[str, Path]) -> None:
        state["marker"].touch()


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def program(marker: Path) -> dict[str, bytes]:
    """Pickle programs that run a command: every way to name a function, and every way to call one."""
    command = text(f"touch {marker}")
    by_name = b"cposix\nsystem\n"
    by_stack = text("posix") + text("system") + b"\x93"
    return {
        "REDUCE": b"\x80\x02" + by_name + command + b"\x85R.",
        "STACK_GLOBAL": b"\x80\x04" + by_stack + command + b"\x85R.",
        "INST": b"(" + command + b"iposix\nsystem\n.",
        "OBJ": b"(" + by_name + command + b"o.",
        "eval": b"\x80\x02cbuiltins\neval\n" + text(f"__import__('os').system('touch {marker}')") + b"\x85R.",
        "getattr": b"\x80\x04cbuiltins\ngetattr\ncos\nsystem\n" + text("__call__") + b"\x86R" + command + b"\x85R.",
        "memo": b"\x80\x02" + by_name + b"q\x00" + command + b"\x85q\x01" + b"h\x00h\x01R.",
        "in a key": b"\x80\x02}" + by_name + command + b"\x85R" + b"K\x01s.",
    }


def stored(path: Path, pickled: bytes, **members: bytes) -> None:
    """Write an archive as torch lays it out, around any pickle."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, content in {"data.pkl": pickled, "version": b"3\n", **members}.items():
            archive.writestr(f"archive/{name}", content)


def around(pickled: bytes) -> bytes:
    """Return a pickle of {'x': what ``pickled`` makes, 'w': a tensor of 4 float32 numbers}."""
    body = pickled.removeprefix(b"\x80\x02").removeprefix(b"\x80\x04").removesuffix(b".")
    return b"\x80\x04}(" + text("x") + body + text("w") + tensor() + b"u."


def tensor(
    size: tuple[int, ...] = (4,), stride: tuple[int, ...] = (1,), offset: int = 0, count: int = 4, key: str = "0"
) -> bytes:
    """Return the instructions that make one float32 tensor."""

    def whole(value: int) -> bytes:
        digits = value.to_bytes((value.bit_length() + 8) // 8, "little", signed=True)
        return b"\x8a" + bytes([len(digits)]) + digits

    def group(values: tuple[int, ...]) -> bytes:
        return b"(" + b"".join(map(whole, values)) + b"t"

    persistent = b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text(key) + text("cpu") + whole(count) + b"tQ"
    hooks = b"ccollections\nOrderedDict\n)R"
    return (
        b"ctorch._utils\n_rebuild_tensor_v2\n("
        + persistent
        + whole(offset)
        + group(size)
        + group(stride)
        + b"\x89"
        + hooks
        + b"tR"
    )


NUMBERS = {"data/0": struct.pack("<4f", 1, 2, 3, 4)}


@pytest.mark.parametrize("name", sorted(program(Path())))
def test_calls_are_inert(name: str, path: Path, out: Path, tmp_path: Path) -> None:
    """The tensor beside the payload is taken out; the payload is not run, though it is a real one."""
    marker = tmp_path / "owned"
    payload = program(marker)[name]
    stored(path, around(payload), **NUMBERS)
    found = convert_checkpoint(path, out)
    assert not marker.exists()
    assert torch.equal(read_state_dict(out)["w"], torch.tensor([1.0, 2, 3, 4]))
    assert [line.split(" ")[0] for line in found.dropped] == ([] if name == "in a key" else ["x"])
    with contextlib.suppress(TypeError):  # of what is done with the result afterwards
        pickle.loads(payload)
    assert marker.exists(), "the payload is a real one"


NAMED = {"eval": ["builtins.eval"], "getattr": ["builtins.getattr", "os.system"]}


@pytest.mark.parametrize("name", sorted(program(Path())))
def test_what_no_checkpoint_needs_is_named_as_not_run(name: str, path: Path, out: Path, tmp_path: Path) -> None:
    """In the result, in the header of the new file, and on the screen; also where nothing else shows of it."""
    stored(path, around(program(tmp_path / "owned")[name]), **NUMBERS)
    expected = NAMED.get(name, ["posix.system"])
    result = CliRunner().invoke(app, ["convert", str(path)], prog_name="latentlab")
    assert result.exit_code == 0, result.output
    for asked in expected:
        assert f"NOT RUN  {asked}" in result.stdout
    assert "warning  " in result.stdout and "Nothing of it was run or imported" in result.stdout
    assert json.loads(read_metadata(out)["not_run"]) == expected
    out.unlink()
    assert convert_checkpoint(path, out).not_run == expected and not (tmp_path / "owned").exists()


@pytest.mark.parametrize("place", range(5))
def test_every_pickle_of_the_older_layout_is_searched(place: int, path: Path, out: Path, tmp_path: Path) -> None:
    torch.save({"w": torch.ones(2)}, path, _use_new_zipfile_serialization=False)
    parts, whole = [], path.read_bytes()
    with open(path, "rb") as file:
        for _ in range(5):
            start = file.tell()
            read_pickle(file)
            parts.append(whole[start : file.tell()])
    body = parts[place].removeprefix(b"\x80\x02")
    payload = (
        b"cposix\nsystem\n" + text(f"touch {tmp_path / 'owned'}") + b"\x85R0"
    )  # called, and its result thrown away
    rest = whole[sum(map(len, parts)) :]
    path.write_bytes(b"".join([*parts[:place], b"\x80\x02" + payload + body, *parts[place + 1 :], rest]))
    assert convert_checkpoint(path, out).not_run == ["posix.system"]
    assert torch.equal(read_state_dict(out)["w"], torch.ones(2)) and not (tmp_path / "owned").exists()


def test_many_names_do_not_hide_the_dangerous_one(path: Path, out: Path) -> None:
    made = [f"cpackage{i}\nThing\n0".encode() for i in range(200)] + [b"cposix\nsystem\n0"]
    stored(path, b"\x80\x04" + b"".join(made) + b"}" + text("w") + tensor() + b"s.", **NUMBERS)
    shown = CliRunner().invoke(app, ["convert", str(path)], prog_name="latentlab").stdout
    assert "NOT RUN  posix.system" in shown and "NOT RUN  191 more" in shown
    assert json.loads(read_metadata(out)["not_run"])[0] == "posix.system"


def test_a_file_without_tensors_still_says_what_it_asked_for(path: Path, out: Path, tmp_path: Path) -> None:
    torch.save({"bad": Attack(tmp_path / "owned")}, path)
    with pytest.raises(UserError, match=r"nothing to convert \(it asks for posix\.system: not run\)"):
        convert_checkpoint(path, out)
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize(
    ("name", "ordinary"),
    [
        ("torch._utils._rebuild_tensor_v2", True),
        ("torch._utils._rebuild_sparse_tensor", True),
        ("torch.cuda.BFloat16Storage", True),
        ("torch.storage.UntypedStorage", True),
        ("torch.bfloat16", True),
        ("torch.optim.adamw.AdamW", True),
        ("omegaconf.dictconfig.DictConfig", True),
        ("pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint", True),
        ("lightning.fabric.utilities.data.AttributeDict", True),
        ("numpy.core.multiarray.scalar", True),
        ("numpy._core.multiarray._reconstruct", True),
        ("numpy.dtypes.Float64DType", True),
        ("numpy.random._pickle.__generator_ctor", True),
        ("posix.system", False),
        ("builtins.eval", False),
        ("builtins.getattr", False),
        ("torch.load", False),
        ("torch.hub.load", False),
        ("torch.storage._load_from_bytes", False),
        ("torch.optim.adamw.AdamW.__init__", False),
        ("torch.nn.modules.module.os.system", False),
        ("numpy.load", False),
        ("numpy.testing._private.utils.runstring", False),
        ("omegaconf.omegaconf.os.system", False),
        ("pytorch_lightning.callbacks.subprocess.Popen.__init__", False),
        ("evil.collections.OrderedDict", False),
        ("collections.OrderedDict ", False),
        ("torch._utils._rebuild_tensor_v2.__globals__", False),
        ("somebodys.Callback", False),
    ],
)
def test_ordinary_names(name: str, ordinary: bool) -> None:
    assert is_ordinary(name) == ordinary


@pytest.mark.parametrize("attack", [Attack, StateAttack])
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "older layout"])
def test_objects_are_never_made(
    attack: Callable[[Path], object], zipped: bool, path: Path, out: Path, tmp_path: Path
) -> None:
    marker = tmp_path / "owned"
    torch.save({"w": torch.ones(2), "bad": attack(marker)}, path, _use_new_zipfile_serialization=zipped)
    assert [line.split(" ")[0] for line in convert_checkpoint(path, out).dropped] == ["bad"]
    assert not marker.exists()
    torch.load(path, weights_only=False)
    assert marker.exists(), "the payload is a real one"


def test_state_given_to_a_rebuilder_is_ignored(path: Path, out: Path) -> None:
    """BUILD on names, tensors and dictionaries: nothing has a state, so nothing of ours can be changed by it."""
    state = b"}" + text("storage") + b"K\x01sb"
    pickled = b"\x80\x04}(" + text("w") + tensor() + state + text("f") + b"ctorch._utils\n_rebuild_tensor_v2\n" + state
    stored(path, pickled + text("d") + b"}" + state + b"u.", **NUMBERS)
    assert convert_checkpoint(path, out).dropped == ["f (the name torch._utils._rebuild_tensor_v2)"]
    assert torch.equal(read_state_dict(out)["w"], torch.tensor([1.0, 2, 3, 4]))


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("torch._utils", "_rebuild_tensor_v2.__globals__"),
        ("torch", "_utils._rebuild_tensor_v2"),
        ("torch._utils ", "_rebuild_tensor_v2"),
    ],
)
def test_only_the_exact_names_rebuild_tensors(module: str, name: str, path: Path, out: Path) -> None:
    lookalike = tensor().replace(b"ctorch._utils\n_rebuild_tensor_v2\n", text(module) + text(name) + b"\x93", 1)
    stored(path, b"\x80\x04}(" + text("w") + tensor() + text("x") + lookalike + b"u.", **NUMBERS)
    found = convert_checkpoint(path, out)
    if (module, name) == ("torch", "_utils._rebuild_tensor_v2"):  # spelled apart elsewhere, the same name
        assert set(found.tensors) == {"w", "x"}
    else:
        assert set(found.tensors) == {"w"} and found.dropped[0].startswith("x (")


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (tensor(size=(5,)), "reaches beyond the 4 numbers"),
        (tensor(offset=1), "reaches beyond the 4 numbers"),
        (tensor(size=(2,), stride=(4,)), "reaches beyond the 4 numbers"),
        (tensor(size=(10**12,), stride=(0,)), "reaches beyond the 4 numbers"),
        (tensor(size=(2**70,), stride=(1,)), "reaches beyond the 4 numbers"),
        (tensor(size=(-1,)), "negative"),
        (tensor(stride=(-1,), offset=3), "negative"),
        (tensor(size=(1,) * 17, stride=(1,) * 17), "whole numbers"),
        (tensor(size=(1, 1)), "more sizes than strides"),
        (tensor(key="1"), "'1' of a tensor are missing"),
        (tensor(key="../version"), "'../version' of a tensor are missing"),
        (tensor().replace(b"\x8a\x01\x00", text("0"), 1), "whole numbers"),
        (tensor().replace(b"tQ", b"t"), "something else than a storage"),
        (b"ctorch._utils\n_rebuild_tensor_v2\n)R", "missing 4 required"),
        (b"ctorch._utils\n_rebuild_tensor_v2\n(" + b"N" * 17 + b"tR", "from 17 arguments"),
        (text("elsewhere") + b"Q", "no storage of torch"),
        (b"\x97", "NEXT_BUFFER has no place"),
        (b"Pname\n", "PERSID has no place"),
        (b"R", "is not a readable torch checkpoint"),
        (b"N" + text("a") + b"s", "is not a readable torch checkpoint"),
        (b"\x8b\xff\xff\xff\x7f", "is not a readable torch checkpoint"),
        (b"\x8d" + struct.pack("<Q", 2**62), "is not a readable torch checkpoint"),
        (b"L" + b"9" * 5000 + b"L\n", "is not a readable torch checkpoint"),
        (b"h\x63", "is not a readable torch checkpoint"),
    ],
)
def test_what_no_checkpoint_does_is_refused(made: bytes, message: str, path: Path, out: Path) -> None:
    stored(path, b"\x80\x04}(" + text("w") + made + b"u.", **NUMBERS)
    with pytest.raises(UserError, match=message) as refused:
        convert_checkpoint(path, out)
    assert str(path) in str(refused.value) and "\n" not in str(refused.value)
    assert not out.exists() and not list(out.parent.glob(".*tmp"))


def test_one_storage_many_times_is_refused(path: Path, out: Path) -> None:
    """A thousand names for the same numbers would make a large file of a small one."""
    entries = b"".join(text(f"w{i}") + b"h\x05" for i in range(1000))
    numbers = tensor(size=(4000,), count=4000)
    stored(path, b"\x80\x04}(" + text("w") + numbers + b"q\x05" + entries + b"u.", **{"data/0": bytes(16000)})
    with pytest.raises(UserError, match="they repeat themselves"):
        convert_checkpoint(path, out)


def test_nested_and_circular_containers_cost_nothing(path: Path, out: Path) -> None:
    """Lists of lists that double at every level, a dictionary in itself, and 100,000 nested tuples."""
    doubling = b"]q\x01" + b"".join(
        b"0](h" + bytes([i]) + b"h" + bytes([i]) + b"eq" + bytes([i + 1]) for i in range(1, 60)
    )
    circular = b"}q\x64" + text("again") + b"h\x64s"
    deep = b")" + b"\x85" * 100_000
    body = (
        text("lists") + doubling + text("circle") + circular + deep + text("the tuples as a key") + text("w") + tensor()
    )
    stored(path, b"\x80\x04}(" + body + b"u.", **NUMBERS)
    assert set(convert_checkpoint(path, out).tensors) == {"w"}


def test_deeply_nested_dictionaries_are_refused(path: Path, out: Path) -> None:
    nested = tensor()
    for _ in range(40):
        nested = b"}" + text("a") + nested + b"s"
    stored(path, b"\x80\x04" + nested + b".", **NUMBERS)
    with pytest.raises(UserError, match="nests more than 16 dictionaries"):
        convert_checkpoint(path, out)


@pytest.mark.parametrize(
    "content",
    [
        {"model": {"w": torch.ones(1)}, "model.w": torch.zeros(1)},
        {"a": {"b.w": torch.ones(1)}, "a.b": {"v": torch.zeros(1)}},
        {"a": {"w": torch.ones(1)}, "a.b": torch.zeros(1)},
    ],
)
def test_ambiguous_names_are_refused(content: dict[str, Any], path: Path, out: Path) -> None:
    torch.save(content, path)
    with pytest.raises(UserError, match="ambiguous"):
        convert_checkpoint(path, out)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([torch.ones(1)], "has no tensors in dictionaries with text keys, only list of 1"),
        ({"model": torch.nn.Linear(1, 1)}, r"only model \(torch.nn.modules.linear.Linear\): nothing to convert"),
        ({"state": {0: torch.ones(1)}}, "has no tensors"),
        ({"\x1b[2Jevil\n": argparse.Namespace()}, r"only \?\[2Jevil\? \(argparse.Namespace\)"),
    ],
)
def test_nothing_to_convert(content: object, message: str, path: Path, out: Path) -> None:
    torch.save(content, path)
    with pytest.raises(UserError, match=message):
        convert_checkpoint(path, out)
    assert not out.exists()


def test_archives_that_mislead_are_refused(path: Path, out: Path) -> None:
    honest = b"\x80\x04}" + text("w") + tensor() + b"s."

    def refusal() -> str:
        with pytest.raises(UserError) as refused:
            convert_checkpoint(path, out)
        return str(refused.value)

    for name in ("../evil/data.pkl", "/etc/data.pkl", "C:/data.pkl"):
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr(name, honest)
        assert "points outside the archive" in refusal()
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(1 << 24))
    assert "is compressed" in refusal()
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/data.pkl", honest)
        archive.writestr("b/data.pkl", honest)
    assert "more than one data.pkl" in refusal()
    with pytest.warns(UserWarning, match="Duplicate"), zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/data.pkl", honest)
        archive.writestr("a/data.pkl", honest)
    assert "members of one name" in refusal()
    stored(path, honest, **NUMBERS, byteorder=b"big")
    assert "other byte order" in refusal()
    stored(path, honest, **NUMBERS)
    content = path.read_bytes()
    directory = content.index(b"PK\x01\x02")
    path.write_bytes(
        content[:directory] + content[directory:].replace(bytes(4) + b"archive/data.pkl", b"\x09\0\0\0archive/data.pkl")
    )
    assert "is not where the archive says" in refusal()
    inner = path.read_bytes()
    stored(path, inner)  # an archive where the pickle should be
    assert "is not a readable torch checkpoint" in refusal()


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "older layout"])
def test_damage_is_one_line_wherever_it_is(zipped: bool, path: Path, out: Path) -> None:
    content = {
        "state_dict": {"w": torch.arange(24.0).view(4, 6).T, "b": torch.ones(5, dtype=torch.bfloat16)},
        "args": argparse.Namespace(),
    }
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    whole = path.read_bytes()
    damaged = [whole[:keep] for keep in range(1, len(whole), 97)]
    for position in range(0, len(whole), 53):
        flipped = bytearray(whole)
        flipped[position] ^= 0xFF
        damaged.append(bytes(flipped))
    for version in damaged:
        path.write_bytes(version)
        out.unlink(missing_ok=True)
        try:
            convert_checkpoint(path, out)
        except UserError as error:
            assert "\n" not in str(error)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"<html>404</html>", "is not a torch checkpoint, neither a zip archive nor a pickle: check the file"),
        (b"a photograph", "is not a torch checkpoint, neither a zip archive nor a pickle: check the file"),
        (b"PK", "is not a readable torch checkpoint"),
        (b"\x80\x02a.", r"\(an instruction takes what no other has put there\)"),
        (b"\x80\x02h\x07.", r"\(an instruction takes what no other has put there\)"),
        (pickle.dumps({"w": 1}), "neither a zip archive nor what torch wrote before 1.6"),
    ],
)
def test_other_files(content: bytes, message: str, path: Path, out: Path) -> None:
    path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        convert_checkpoint(path, out)
    with pytest.raises(UserError, match="does not exist"):
        convert_checkpoint(path.with_name("absent"), out)
    with pytest.raises(UserError, match="is a folder"):
        convert_checkpoint(path.parent, out)
    with pytest.raises(UserError, match=r"must end in \.safetensors"):
        convert_checkpoint(path, out.with_suffix(".pt"))
