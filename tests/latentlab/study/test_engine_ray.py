"""The same cells on a local Ray cluster, a worker of which is killed in the middle."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from latentlab.errors import UserError
from latentlab.study.cells.cell import Graph
from latentlab.study.cells.state import prepare
from latentlab.study.engine.cluster import RayEngine
from latentlab.study.engine.local import Job
from latentlab.study.engine.run import run_cells
from latentlab.study.plan_file import Resources, StudyFile

from .engine_world import TOKENIZER, checkpoints, opened, tiny_study, training, wait_for

pytest.importorskip("ray")
pytestmark = pytest.mark.filterwarnings("ignore")  # Ray's own

AE, _ = tiny_study()["tokenizers"]


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayEngine]:
    """One cluster of two CPUs for all tests; it is stopped at the end, not by a study."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LATENTLAB_HOME", str(tmp_path_factory.mktemp("home")))
        cluster = KeptOpen(workers=2)
        yield cluster
        super(KeptOpen, cluster).stop()


class KeptOpen(RayEngine):
    """Kills the worker of the first training as soon as that has saved a checkpoint."""

    victims = 0

    def ended(self) -> list[Any]:
        for job in self._running.values():
            saved = job.cells[0].stage == "train_tokenizer" and checkpoints(job.folders[0])
            if saved and not self.victims:
                self.victims += 1
                kill_worker_of(job.folders[0])
        return super().ended()

    def stop(self) -> None:
        pass


def kill_worker_of(folder: Path) -> None:
    """Kill -9 the Ray worker whose child does the cell in ``folder``."""
    for process in psutil.process_iter(["cmdline"]):
        if str(folder.resolve()) in (process.info["cmdline"] or []):
            os.kill(process.ppid(), signal.SIGKILL)


def only_a_tokenizer(folder: Path, steps: int = 60, **changes: Any) -> tuple[StudyFile, Graph]:
    """Return a study cut down to a training and an encoding."""
    longer = {**AE, "set": [*TOKENIZER, f"optimiser.steps={steps}", f"validate_every={steps}"]}
    study, graph = opened(folder, tiny_study(tokenizers=[longer], **changes))
    cells = [cell for cell in graph.cells if cell.stage == "train_tokenizer"]
    cells += [cell for cell in graph.cells if cell.stage == "encode" and "test" in cell.title]
    return study, Graph(tuple(cells), (), graph.owners, {})


def test_a_killed_worker_costs_its_cell_only(engine: RayEngine, tmp_path: Path) -> None:
    study, graph = only_a_tokenizer(tmp_path)
    schedule = run_cells(study, graph, tmp_path / "out", engine)
    assert isinstance(engine, KeptOpen) and engine.victims == 1
    assert not schedule.failed and len(schedule.done) == len(graph.cells) == 2
    log = (graph.cells[0].folder(tmp_path / "out") / "log.txt").read_text()
    assert "continuing" in log  # from the checkpoint that was there


def test_a_cell_that_always_loses_its_worker_is_given_up(engine: RayEngine, tmp_path: Path) -> None:
    study, graph = only_a_tokenizer(tmp_path, retries=0)
    assert isinstance(engine, KeptOpen)
    engine.victims = 0
    schedule = run_cells(study, graph, tmp_path / "out", engine)
    assert "the worker was lost" in schedule.failed[graph.cells[0].key] and len(schedule.blocked) == 1


def test_what_the_cluster_does_not_have_is_said_at_once(engine: RayEngine) -> None:
    engine.check(Resources(cpus=2), "sample")
    with pytest.raises(
        UserError, match=r"resources.sample asks for 3 CPU, which no machine of the cluster has \(2 CPU\)"
    ):
        engine.check(Resources(cpus=3), "sample")
    with pytest.raises(
        UserError, match=r"asks for 1 CPU and 0.5 GPU, which no machine of the cluster has \(2 CPU, 0 GPU\)"
    ):
        engine.check(Resources(gpus=0.5), "train_generator")
    with pytest.raises(
        UserError, match=r"asks for 1 CPU and 1e\+06 GiB of memory, which no machine of the cluster has"
    ):
        engine.check(Resources(memory=1e6), "sample")
    assert engine.room(Resources(cpus=2)) and not engine.room(Resources(cpus=3))


def test_when_asked_to_stop_trainings_save(engine: RayEngine, tmp_path: Path) -> None:
    """The last test with the cluster: it is gone afterwards."""
    study, graph = only_a_tokenizer(tmp_path, steps=100_000)  # it cannot be done before it is stopped
    training = graph.cells[0]
    job = Job((training,), (prepare(training, tmp_path / "out"),), study.takes(training.stage))
    engine.start(job)
    wait_for(lambda: checkpoints(job.folders[0]))
    RayEngine.stop(engine)
    assert "the same command continues from there" in (job.folders[0] / "log.txt").read_text()
    assert not (job.folders[0] / "done.json").exists()


WITHOUT_SIGINT = """
import _thread, os, signal, sys, threading, time
from pathlib import Path
signal.signal(signal.SIGINT, signal.SIG_IGN)
from latentlab.study.engine.cluster import do_cells

def cancel():  # as Ray does it
    while not list(Path(sys.argv[1]).glob("run/checkpoints/step_*")):
        time.sleep(0.05)
    _thread.interrupt_main()

threading.Thread(target=cancel, daemon=True).start()
print(do_cells([sys.argv[1]], os.getcwd(), "cpu", 1, {}))
"""


def test_a_cancelled_task_stops_where_interrupts_are_ignored(tmp_path: Path) -> None:
    """As in the workers of a cluster that a script has started in its background."""
    folder = training(tmp_path, steps=100_000)  # it cannot be done before it is stopped
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_SIGINT, str(folder)], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.stdout == "130\n", done.stderr
    assert "the same command continues from there" in (folder / "log.txt").read_text()


def test_without_ray_there_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=r"pip install latentlab\[cluster\]"):
        RayEngine()
