"""Processes of this machine: what there is room for, which GPU they see, how many threads they have, and how they are stopped."""

import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil
import pytest

from latentlab.errors import UserError
from latentlab.study.engine import local as engine_local
from latentlab.study.engine.local import Job, LocalEngine, visible_gpu
from latentlab.study.engine.processes import start_process, stop_processes
from latentlab.study.plan_file import Resources

from .engine_world import checkpoints, training, wait_for


@pytest.fixture
def environments(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Mapping[str, str]]]:
    """Start ``sleep`` instead of cells; what they would have got as environment is noted."""
    seen: list[Mapping[str, str]] = []
    processes = []

    def sleeping(folders: Any, device: str, cpus: int, more: Mapping[str, str]) -> "subprocess.Popen[bytes]":
        seen.append(more)
        processes.append(subprocess.Popen(["sleep", "60"]))
        return processes[-1]

    monkeypatch.setattr(engine_local, "start_process", sleeping)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    yield seen
    for process in processes:
        process.kill()
        process.wait()


def job(**wants: Any) -> Job:
    return Job((), (), Resources(**wants))


def test_cpus_are_shared_out(environments: list[Mapping[str, str]]) -> None:
    engine = LocalEngine(3)
    engine.start(job(cpus=2))
    assert engine.room(Resources()) and not engine.room(Resources(cpus=2))
    engine.start(job())
    assert not engine.room(Resources()) and engine.ended() == []
    engine.stop()
    assert engine.room(Resources(cpus=99))  # more than there are: it runs alone


def test_a_gpu_is_shared_by_those_that_take_half_of_one(environments: list[Mapping[str, str]]) -> None:
    engine = LocalEngine(9, gpus=2)
    for _ in range(4):
        assert engine.room(Resources(gpus=0.5))
        engine.start(job(gpus=0.5))
    assert sorted(one["CUDA_VISIBLE_DEVICES"] for one in environments) == ["0", "0", "1", "1"]
    assert not engine.room(Resources(gpus=0.1)) and engine.room(Resources())
    engine.start(job())
    assert environments[-1] == {}
    engine.stop()


def test_memory_is_shared_out(environments: list[Mapping[str, str]]) -> None:
    engine = LocalEngine(9)
    half = engine._memory / 2
    engine.start(job(memory=0.9 * half))
    assert engine.room(Resources(memory=half)) and not engine.room(Resources(memory=1.2 * half))
    engine.stop()


def test_what_this_machine_never_has_is_said_at_once() -> None:
    engine = LocalEngine(2)
    engine.check(Resources(cpus=64), "sample")
    with pytest.raises(UserError, match=r"resources.sample asks for 1 GPUs, this machine has 0"):
        engine.check(Resources(gpus=1), "sample")
    with pytest.raises(UserError, match="GiB of memory"):
        engine.check(Resources(memory=1e6), "sample")


def test_gpus_are_those_that_may_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
    assert [visible_gpu(number) for number in (0, 1)] == ["4", "7"]


def test_a_process_has_its_threads_and_says_why_it_fails(tmp_path: Path) -> None:
    """A folder without a cell: one line in its log. The process has a session of its own, and ends when asked."""
    process = start_process([tmp_path], "cpu", 3)
    started = psutil.Process(process.pid)
    for name in ("OMP_NUM_THREADS", "NUMBA_NUM_THREADS"):  # its own environment is there once it has begun
        wait_for(lambda name=name: started.environ().get(name) == "3")
    assert process.wait() == 2
    assert f"error: {tmp_path / 'cell.json'} does not exist" in (tmp_path / "log.txt").read_text()
    again = start_process([tmp_path], "cpu", 1)
    stop_processes([again])
    assert again.returncode == -signal.SIGTERM


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process that its parent is gone")
def test_a_cell_does_not_outlive_whoever_started_it(tmp_path: Path) -> None:
    """Kill -9 of the engine: the training saves a checkpoint and ends."""
    folder = training(tmp_path, steps=2000)
    start = "from latentlab.study.engine.processes import start_process; from pathlib import Path; "
    start += f"start_process([Path({str(folder)!r})], 'cpu', 1).wait()"
    engine = subprocess.Popen([sys.executable, "-c", start])
    wait_for(lambda: checkpoints(folder))
    engine.kill()
    engine.wait()
    log = folder / "log.txt"
    wait_for(lambda: "the same command continues from there" in log.read_text())


def test_more_than_one_gpu_for_a_cell_is_refused() -> None:
    with pytest.raises(UserError, match="a local cell gets one"):
        LocalEngine(2, gpus=4).check(Resources(gpus=2), "train_generator")
