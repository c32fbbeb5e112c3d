"""Weight files are read without running what is in them."""

import argparse
import io
import json
import os
import pickle
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from latentlab.errors import UserError
from latentlab.weights import ENTRIES, read_metadata, read_state_dict


def one_line(raised: pytest.ExceptionInfo[UserError]) -> str:
    text = str(raised.value)
    assert "\n" not in text
    return text


def test_listing_weights_does_not_import_torch() -> None:
    code = "import sys, latentlab.weights; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


STATE = {"conv.weight": torch.arange(24.0).view(2, 3, 2, 2), "conv.bias": torch.tensor([1, -2], dtype=torch.int64)}


def assert_state(found: dict[str, torch.Tensor]) -> None:
    assert list(found) == list(STATE)
    assert all(torch.equal(found[key], STATE[key]) for key in STATE)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.pt"


def refused(path: Path) -> str:
    """Return the one line with which the file is refused; it names the file."""
    with pytest.raises(UserError) as raised:
        read_state_dict(path)
    text = one_line(raised)
    assert str(path) in text
    return text


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_reads_torch_files(path: Path, zipped: bool) -> None:
    torch.save(STATE, path, _use_new_zipfile_serialization=zipped)
    assert_state(read_state_dict(path))


@pytest.mark.parametrize("name", ["model.safetensors", "model.bin"], ids=["by suffix", "by content"])
def test_reads_safetensors_and_its_metadata(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    save_file(dict(sorted(STATE.items())), path, metadata={"step": "7"})
    assert read_state_dict(path).keys() == STATE.keys()
    assert torch.equal(read_state_dict(path)["conv.weight"], STATE["conv.weight"])
    assert read_metadata(path) == {"step": "7"}


def test_metadata_may_be_absent_but_the_file_may_not_be_another_kind(tmp_path: Path, path: Path) -> None:
    save_file(STATE, tmp_path / "plain.safetensors")
    assert read_metadata(tmp_path / "plain.safetensors") == {}
    torch.save(STATE, path)
    with pytest.raises(UserError, match="not a readable safetensors file"):
        read_metadata(path)


def test_key_and_wrappers(path: Path) -> None:
    torch.save({"state_dict": STATE, "epoch": 3, "optimizer": {"lr": 0.1}}, path)
    assert_state(read_state_dict(path, key="state_dict"))
    assert_state(read_state_dict(path, wrappers=("ema", "state_dict")))
    with pytest.raises(UserError, match="no entry 'module'; it holds state_dict, epoch, optimizer"):
        read_state_dict(path, key="module")
    with pytest.raises(UserError, match="entry 'epoch' is a int, not a state dict"):
        read_state_dict(path, key="epoch")
    assert "not tensors: state_dict, epoch, optimizer" in refused(path)
    torch.save(STATE, path)
    assert_state(read_state_dict(path, wrappers=("ema", "state_dict")))


def test_tensors_are_private_copies_of_the_file(path: Path) -> None:
    """Memory-mapped, but writing to a tensor must not change the file."""
    torch.save(STATE, path)
    read_state_dict(path)["conv.weight"].zero_()
    assert_state(read_state_dict(path))


class Attack:
    """Creates ``marker`` when unpickled freely."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {self.marker}",)


@pytest.mark.parametrize("form", ["zip", "legacy", "plain pickle"])
def test_malicious_pickle_is_refused_and_does_not_run(path: Path, tmp_path: Path, form: str) -> None:
    marker = tmp_path / "owned"
    if form == "plain pickle":
        path.write_bytes(pickle.dumps(Attack(marker)))
    else:
        torch.save({"a": Attack(marker), **STATE}, path, _use_new_zipfile_serialization=form == "zip")
    text = refused(path)
    assert "could run code" in text and "safetensors" in text
    assert form == "plain pickle" or "asks for posix.system" in text
    assert not marker.exists()
    torch.load(path, weights_only=False) if form != "plain pickle" else pickle.loads(path.read_bytes())
    assert marker.exists(), "the payload is a real one"


def test_harmless_classes_are_refused_by_name_and_can_be_allowed(path: Path) -> None:
    torch.save({"model": STATE, "args": argparse.Namespace(depth=3)}, path)
    assert "argparse.Namespace" in refused(path)
    with torch.serialization.safe_globals([argparse.Namespace]):
        assert_state(read_state_dict(path, key="model"))


def zipped(path: Path, members: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> None:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(name, content)


def test_zip_bomb_is_refused_unexpanded(path: Path) -> None:
    zipped(path, {"archive/data.pkl": bytes(64 << 20), "archive/version": b"3\n"}, zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 1 << 20
    assert "'archive/data.pkl' is compressed" in refused(path)


def test_overlapping_zip_members_are_refused(path: Path) -> None:
    """Every entry of the directory pointing at the same bytes multiplies the content without compression."""
    zipped(path, {"archive/data.pkl": bytes(1000), "archive/aaaaaaaa": b""})
    content = path.read_bytes()
    directory = content.index(b"PK\x01\x02")
    second = content.index(b"PK\x01\x02", directory + 1)
    first_entry = content[directory:second].replace(b"archive/data.pkl", b"archive/aaaaaaaa")
    end = content.index(b"PK\x05\x06")
    path.write_bytes(content[:second] + first_entry + content[end:])
    assert "members are larger than the file" in refused(path)


@pytest.mark.parametrize(
    "name", ["../evil/data.pkl", "/etc/data.pkl", "a/../../data.pkl", "..\\evil/data.pkl", "C:/data.pkl"]
)
def test_members_outside_the_archive_are_refused(path: Path, name: str) -> None:
    zipped(path, {name: pickle.dumps({}), "archive/version": b"3\n"})
    assert "points outside the archive" in refused(path)


@pytest.mark.parametrize("name", ["", ".", "./"])
def test_members_without_a_name_are_refused(path: Path, name: str) -> None:
    zipped(path, {"archive/data.pkl": pickle.dumps({})})
    with zipfile.ZipFile(path, "a") as archive:
        nameless = zipfile.ZipInfo("later")
        nameless.filename = name  # which the constructor would not take
        archive.writestr(nameless, b"x")
    assert f"its member {name!r} names no file" in refused(path)


def test_storage_larger_than_the_file_is_refused(path: Path) -> None:
    """A pickle may claim any number of elements; reading past the file would show other memory."""
    torch.save({"a": torch.zeros(1000)}, path)
    content = path.read_bytes()
    claimed = content.replace(struct.pack("<BH", 0x4D, 1000), struct.pack("<BH", 0x4D, 65000))  # BININT2
    assert claimed != content
    path.write_bytes(claimed)
    assert "not a readable torch checkpoint" in refused(path)


@pytest.mark.parametrize("zipped_format", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("keep", [0.2, 0.6, 0.99])
def test_truncated_file(path: Path, zipped_format: bool, keep: float) -> None:
    torch.save({"a": torch.rand(500), "b": torch.rand(500)}, path, _use_new_zipfile_serialization=zipped_format)
    content = path.read_bytes()
    path.write_bytes(content[: int(keep * len(content))])
    assert "download it again" in refused(path)


def test_damaged_pickles_never_show_a_traceback(path: Path) -> None:
    torch.save(STATE, path, _use_new_zipfile_serialization=False)
    content = bytearray(path.read_bytes())
    for position in range(2, len(content), 11):
        damaged = bytearray(content)
        damaged[position] ^= 0xFF
        path.write_bytes(bytes(damaged))
        try:
            read_state_dict(path)
        except UserError as error:
            assert str(path) in str(error)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"nonsense", "neither a safetensors file nor a torch checkpoint but of an unknown kind"),
        (b"\n<!DOCTYPE html><html>", "nor a torch checkpoint but a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "but a pointer of Git LFS .*git lfs pull"),
        (b"\x80\x02", "not a readable torch checkpoint"),
        (b"PK", "not a readable torch checkpoint"),
        (pickle.dumps({}), "but a plain pickle, which could run code"),
        (pickle.dumps({}, protocol=2), "not a readable torch checkpoint"),
    ],
    ids=[
        "empty",
        "text",
        "web page",
        "Git LFS",
        "pickle magic only",
        "zip magic only",
        "plain pickle",
        "plain pickle of protocol 2",
    ],
)
def test_other_content(path: Path, content: bytes, message: str) -> None:
    path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_state_dict(path)


def test_what_came_in_place_of_a_safetensors_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    assert "is no safetensors file but a pointer of Git LFS" in refused(path)


def test_wrong_kinds_of_file(tmp_path: Path, path: Path) -> None:
    assert "does not exist" in refused(path)
    assert "is a folder" in refused(tmp_path)
    zipped(path, {"notes/readme.txt": b"hello"})
    assert "not a torch checkpoint" in refused(path)
    torch.save([torch.zeros(2)], path)
    assert "holds a list, not a state dict" in refused(path)
    with pytest.raises(UserError, match="does not exist"):
        read_metadata(tmp_path / "no.safetensors")


@pytest.mark.parametrize(
    "header",
    [
        {"a": {"dtype": "F32", "shape": [1000, 1000], "data_offsets": [0, 4_000_000]}},
        {"a": {"dtype": "F32", "shape": [3], "data_offsets": [0, 8]}},
        {"a": {"dtype": "F32", "shape": [2], "data_offsets": [-8, 0]}},
        {"a": {"dtype": "F99", "shape": [2], "data_offsets": [0, 8]}},
        {"a": {"dtype": "F32", "shape": [2**62, 4], "data_offsets": [0, 8]}},
        {"a": 3},
        [1],
    ],
    ids=["beyond the file", "shape", "negative", "dtype", "overflow", "not an entry", "not an object"],
)
def test_safetensors_with_a_lying_header(tmp_path: Path, header: object) -> None:
    path = tmp_path / "model.safetensors"
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(8))
    assert "not a readable safetensors file" in refused(path)


@pytest.mark.parametrize("length", [2**63, 10**12, 100])
def test_safetensors_with_a_lying_header_length(tmp_path: Path, length: int) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(struct.pack("<Q", length) + b"{}")
    assert "not a readable safetensors file" in refused(path)


def test_truncated_safetensors(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file(STATE, path)
    path.write_bytes(path.read_bytes()[:-4])
    assert "not a readable safetensors file" in refused(path)


def test_open_files_are_not_needed_afterwards(path: Path) -> None:
    """Tensors stay readable after the file is deleted."""
    buffer = io.BytesIO()
    torch.save(STATE, buffer)
    path.write_bytes(buffer.getvalue())
    found = read_state_dict(path)
    path.unlink()
    assert_state(found)


def test_no_advice_to_load_unsafely(path: Path) -> None:
    torch.save(STATE, path, pickle_protocol=4)
    text = refused(path)
    assert "Unsupported operand" in text and "weights_only" not in text


def test_converted_files_give_their_entries(tmp_path: Path) -> None:
    path = tmp_path / "converted.safetensors"
    tensors = {"ema.conv.bias": torch.ones(1), "model.conv.bias": torch.zeros(1), "step": torch.tensor(3)}
    save_file(tensors, path, metadata={ENTRIES: '["ema", "model"]'})
    assert read_state_dict(path, wrappers=("ema", "model")).keys() == {"conv.bias"}
    assert read_state_dict(path, key="model")["conv.bias"].item() == 0
    assert "not tensors: ema, model" in refused(path)
    for damaged in ("nonsense", '{"ema": 1}', "[1]"):
        save_file(tensors, path, metadata={ENTRIES: damaged})
        assert "the header is damaged" in refused(path)
