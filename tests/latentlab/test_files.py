"""Writes are whole or absent; fingerprints notice changes; unreadable JSON is named."""

import os
from dataclasses import dataclass
from pathlib import Path

import pytest
from safetensors import SafetensorError

from latentlab.errors import UserError
from latentlab.files import atomic_path, digest, home, quick_fingerprint, read_json, read_json_as, write_json


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    write_json(file, [1])
    with pytest.raises(RuntimeError, match="killed"), atomic_path(file) as temporary:
        temporary.write_text("half")
        raise RuntimeError("killed")
    assert read_json(file) == [1]
    assert list(tmp_path.iterdir()) == [file]


def test_two_machines_may_write_the_same_file_from_processes_of_the_same_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "getpid", lambda: 7)
    file = tmp_path / "a.json"
    with atomic_path(file) as theirs:
        theirs.write_text("theirs")
        with atomic_path(file) as ours:
            ours.write_text("ours")
        assert file.read_text() == "ours" and theirs.read_text() == "theirs"
    assert file.read_text() == "theirs" and list(tmp_path.iterdir()) == [file]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full, a device that is always full")
def test_a_full_disk_is_one_clear_line(tmp_path: Path) -> None:
    match = "No space left on device; free space"
    with pytest.raises(UserError, match=match), atomic_path(tmp_path / "a"), open("/dev/full", "w") as full:
        full.write("x")
    told = SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
    match = r"cannot write .*/b: .*No space left on device.*; free space"
    with pytest.raises(UserError, match=match), atomic_path(tmp_path / "b"):
        raise told  # as safetensors says it


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match="cannot write"):
        write_json(tmp_path / "file" / "a.json", 1)


def test_quick_fingerprint_notices_size_date_and_content(tmp_path: Path) -> None:
    file = tmp_path / "big"
    file.write_bytes(bytes(3 << 20))
    os.utime(file, ns=(0, 0))
    first = quick_fingerprint(file)
    changed = bytearray(3 << 20)
    changed[-1] = 1
    file.write_bytes(changed)
    os.utime(file, ns=(0, 0))
    assert quick_fingerprint(file) != first
    file.write_bytes(bytes(3 << 20))
    os.utime(file, ns=(0, 0))
    assert quick_fingerprint(file) == first
    os.utime(file, ns=(0, 1))
    assert quick_fingerprint(file) != first


def test_digest_does_not_depend_on_the_order_of_keys() -> None:
    assert digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1}) != digest({"a": 2, "b": 2})


def test_json_that_does_not_fit_is_named(tmp_path: Path) -> None:
    @dataclass
    class Wanted:
        n: int

    file = tmp_path / "a.json"
    with pytest.raises(UserError, match="does not exist"):
        read_json(file)
    file.write_text("{")
    with pytest.raises(UserError, match="not a readable JSON"):
        read_json(file)
    write_json(file, {"n": "many"})
    with pytest.raises(UserError, match="n: Input should be a valid integer"):
        read_json_as(Wanted, file)
    write_json(file, {"n": 3})
    assert read_json_as(Wanted, file).n == 3


def test_home_follows_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LATENTLAB_HOME", "/somewhere")
    assert home() == Path("/somewhere")
    monkeypatch.delenv("LATENTLAB_HOME")
    monkeypatch.setenv("XDG_CACHE_HOME", "/cache")
    assert home() == Path("/cache/latentlab")
    monkeypatch.setenv("HOME", "/home/me")
    for unset in (lambda: monkeypatch.setenv("XDG_CACHE_HOME", ""), lambda: monkeypatch.delenv("XDG_CACHE_HOME")):
        unset()
        assert home() == Path("/home/me/.cache/latentlab")
