"""Devices and CPUs a process may use, folders it may write to, and progress that stays quiet unless somebody watches."""

import io
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from latentlab import UserError, runtime


def test_cpu_and_auto_are_always_there() -> None:
    assert runtime.choose_device("cpu") == torch.device("cpu")
    assert str(runtime.choose_device("auto")) in ("cpu", "cuda:0", "mps")


def test_a_gpu_is_named_with_its_number(monkeypatch: pytest.MonkeyPatch) -> None:
    """`torch.cuda.set_device` takes no other name. Of torchrun's processes on a machine each has its own."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    for name in ("auto", "cuda", "cuda:0"):
        assert runtime.choose_device(name) == torch.device("cuda", 0)
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert runtime.choose_device("auto") == runtime.choose_device("cuda") == torch.device("cuda", 1)
    assert runtime.choose_device("cuda:0") == torch.device("cuda", 0)
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(UserError, match=r"no device 'cuda:2'\. Available: auto, cpu, cuda:0, cuda:1$"):
        runtime.choose_device("cuda")


@pytest.mark.parametrize("name", ["gpu", "cuda:x", "cpu:0", "cuda:-1", "", "mps:1"])
def test_unknown_device_names_what_is_available(name: str) -> None:
    with pytest.raises(UserError, match=rf"unknown device '{name}'.*Available: auto, cpu"):
        runtime.choose_device(name)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
def test_absent_device_is_refused() -> None:
    for name in ("cuda", "cuda:3"):
        with pytest.raises(UserError, match=f"this machine has no device '{name}'.*Available: auto, cpu"):
            runtime.choose_device(name)


FAULTS = """
import resource, sys, torch
from latentlab.runtime import keep_freed_memory
if sys.argv[1] == "kept":
    sys.exit(77) if not keep_freed_memory() else None
def fill():
    torch.ones(1 << 24)  # 64 MB
fill()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(30):
    fill()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def test_memory_of_freed_arrays_is_used_again() -> None:
    """Counted in page faults: without, each of thirty arrays of 64 MB brings every page in anew.

    With it the heap settles after a few.
    """

    def faults(kind: str) -> int:
        result = subprocess.run([sys.executable, "-c", FAULTS, kind], capture_output=True, text=True)
        if result.returncode == 77:
            pytest.skip("this C library has no such option")
        return int(result.stdout)

    assert faults("kept") < faults("given back") / 3


@pytest.mark.parametrize(("quota", "expected"), [("max 100000", 8), ("200000 100000", 2), ("50000 100000", 1), ("", 8)])
def test_container_quota_cuts_the_number_of_cpus(
    quota: str, expected: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cpu.max").write_text(quota)
    monkeypatch.setattr(runtime, "_CPU_QUOTA", tmp_path / "cpu.max")
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(8)), raising=False)
    assert runtime.usable_cpus() == expected


def test_container_limit_cuts_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "_MEMORY_LIMIT", tmp_path / "memory.max")
    whole = runtime.usable_memory()
    (tmp_path / "memory.max").write_text("1000000\n")
    assert runtime.usable_memory() == 1_000_000 < whole
    (tmp_path / "memory.max").write_text("max\n")
    assert runtime.usable_memory() == whole


def test_threads_asked_for_by_the_environment_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.get_num_threads()
    monkeypatch.setenv("OMP_NUM_THREADS", str(before))
    monkeypatch.setattr(runtime, "usable_cpus", lambda: before + 1)
    assert runtime.prepare_threads() == before
    monkeypatch.delenv("OMP_NUM_THREADS")
    try:
        assert runtime.prepare_threads() == before + 1
    finally:
        torch.set_num_threads(before)


def test_make_writable(tmp_path: Path) -> None:
    runtime.make_writable(tmp_path / "a" / "b c")
    assert (tmp_path / "a" / "b c").is_dir() and not list((tmp_path / "a" / "b c").iterdir())
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file is a file: choose another folder"):
        runtime.make_writable(tmp_path / "file")
    with pytest.raises(UserError, match="cannot write"):
        runtime.make_writable(tmp_path / "file" / "below")


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_is_silent_without_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with runtime.progress("working", 3) as advance:
        advance(3)
    assert capsys.readouterr() == ("", "")


def test_progress_draws_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = _Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    with runtime.progress("working [hard]", 3, done=1) as advance:
        advance(2)
    assert "working [hard]" in terminal.getvalue() and "3/3" in terminal.getvalue()
