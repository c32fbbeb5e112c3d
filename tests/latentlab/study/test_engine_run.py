"""A study from its file to its table, with real parts: what is kept, what fails, and what a kill costs."""

import json
import math
import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import psutil
import pytest
import yaml
from huggingface_hub.utils import WeakFileLock
from PIL import Image
from safetensors.torch import load_file
from typer.testing import CliRunner

from latentlab.cli.main import app
from latentlab.study.cells.cell import Cell, Graph
from latentlab.study.cells.graph import build_graph
from latentlab.study.cells.process import INTERRUPTED
from latentlab.study.cells.state import prepare, result_of, states
from latentlab.study.collect import collect
from latentlab.study.engine.board import Board
from latentlab.study.engine.local import Ended, Job
from latentlab.study.engine.report import status_of
from latentlab.study.engine.run import _Run, planned, run_cells
from latentlab.study.engine.schedule import Schedule
from latentlab.study.plan_file import load_study
from latentlab.study.table import StudyTable

from .engine_world import (
    TOKENIZER,
    ForkEngine,
    checkpoints,
    fork,
    opened,
    run_study,
    tiny_study,
    training,
    wait_for,
    written,
)

pytestmark = pytest.mark.usefixtures("home")

AE, MIXED = tiny_study()["tokenizers"]
SIT = tiny_study()["generators"][0]


@pytest.fixture(scope="module")
def finished(home: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Schedule]:
    """A finished study, whose folder the other tests leave as it is."""
    folder = tmp_path_factory.mktemp("study")
    schedule, _ = run_study(folder, tiny_study())
    return folder / "out", schedule


def cell_of(graph: Graph, stage: str, title: str = "") -> Cell:
    return next(cell for cell in graph.cells if cell.stage == stage and title in cell.title)


# --- a finished study -------------------------------------------------------------------------------------------------


def test_all_cells_are_done_and_timed(finished: tuple[Path, Schedule]) -> None:
    out, schedule = finished
    assert not schedule.failed and len(schedule.done) == len(schedule.graph.cells) == 35
    for cell in schedule.graph.cells:
        done = json.loads((cell.folder(out) / "done.json").read_text())
        assert done["key"] == cell.key and done["seconds"] > 0 and done["device"] == "cpu" and done["host"]
        assert (cell.folder(out) / "log.txt").is_file()


def test_the_table_holds_what_the_cells_found(finished: tuple[Path, Schedule]) -> None:
    out, schedule = finished
    table = collect(out)
    again = StudyTable.read(out)
    assert len(again.rows) == 4 and list(again.rows["error"]) == [""] * 4
    wanted = {
        "m_rmsc", "psnr", "ssim", "st_lpips", "rfd_fashion_classifier", "decoder_sensitivity", "decoder_image_0.1",
        "decoder_feature_0.1", "gfd_fashion_classifier", "gfd_reconstructions_fashion_classifier", "fd_latents",
        "precision_fashion_classifier", "recall_fashion_classifier", "held_out_loss", "straightness", "efficiency",
        "length_ratio", "n_samples", "n_latents", "minutes", "error",
    }  # fmt: skip
    assert wanted <= set(table.names()) and not any(name.startswith("m_codebook") for name in table.names())
    assert all(column.meaning.endswith(".") for column in again.columns)
    ae = again.rows[again.rows["tokenizer"] == "ae"]
    assert list(ae["guidance"]) == [1.0, 2.0] and ae["fd_latents"].nunique() == 2
    sample = cell_of(schedule.graph, "evaluate", "judge sit on ae, guidance 2")
    assert ae["gfd_fashion_classifier"].iloc[1] == result_of(sample.folder(out))["gfd_fashion_classifier"]


def test_a_control_reconstructs_as_its_original(finished: tuple[Path, Schedule]) -> None:
    rows = collect(finished[0]).rows.groupby("tokenizer").first()
    assert rows.loc["mixed", "control"] == "orthogonal" and rows.loc["mixed", "control_of"] == "ae"
    assert rows.loc["mixed", "psnr"] == pytest.approx(rows.loc["ae", "psnr"], rel=1e-4)
    assert rows.loc["mixed", "m_rmsc"] != rows.loc["ae", "m_rmsc"]


def test_pictures_details_and_floors_lie_beside_the_table(finished: tuple[Path, Schedule]) -> None:
    out, _ = finished
    collect(out)
    for label in ("ae", "mixed"):
        for name, least in (("reconstructions", 32 * 16), ("sit", 1)):
            with Image.open(out / "pictures" / label / f"{name}.png") as picture:
                assert picture.size[0] > least
        assert len(json.loads((out / "details" / label / "sit" / "straightness.json").read_text())["length_ratio"]) == 4
        assert (out / "details" / label / "rmsc.json").is_file() and not (
            out / "details" / label / "codebook.json"
        ).exists()
    assert json.loads((out / "floors.json").read_text())["fashion_classifier"] > 0


@pytest.mark.parametrize("common", [False, True])
def test_another_variant_of_a_measurement_is_left_out_where_most_rows_have_one(
    common: bool, finished: tuple[Path, Schedule], tmp_path: Path
) -> None:
    """Two rows of either tokenizer have no common variant; six of eight have one."""
    out = tmp_path / "out"
    shutil.copytree(finished[0], out)
    mixed = cell_of(finished[1].graph, "measure", "rmsc of mixed").folder(out) / "result.json"
    mixed.write_text(json.dumps(json.loads(mixed.read_text()) | {"variant": "of another kind"}))
    told = json.loads((out / "graph.json").read_text())
    ae = [row for row in told["rows"] if row["identity"]["tokenizer"] == "ae"]
    for seed in (1, 2) if common else ():
        told["rows"] += [{**row, "identity": {**row["identity"], "generator_seed": seed}} for row in ae]
    (out / "graph.json").write_text(json.dumps(told))
    table, before = collect(out), collect(finished[0])
    known = table.rows.groupby("tokenizer")["m_rmsc"].first()
    plain = before.rows.groupby("tokenizer")["m_rmsc"].first()
    assert known["ae"] == plain["ae"] and (math.isnan(known["mixed"]) if common else known["mixed"] == plain["mixed"])
    end = (
        "Left out where only another variant could be measured: mixed (of another kind)."
        if common
        else ("Other rows are of other variants, which may not compare: of another kind.")
    )
    assert table.column("m_rmsc").meaning == f"{before.column('m_rmsc').meaning} {end}"
    assert table.rows["gfd_fashion_classifier"].notna().all() and set(table.rows["error"]) == {""}


def test_a_column_says_of_which_tokenizers_it_cannot_be(finished: tuple[Path, Schedule], tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(finished[0], out)
    mixed = cell_of(finished[1].graph, "measure", "rmsc of mixed").folder(out) / "result.json"
    mixed.write_text(json.dumps({"refused": "these latents have no grid"}))
    table, before = collect(out), collect(finished[0])
    assert table.rows.loc[table.rows["tokenizer"] == "mixed", "m_rmsc"].isna().all()
    meaning = before.column("m_rmsc").meaning
    assert table.column("m_rmsc").meaning == f"{meaning} Not there for mixed (these latents have no grid)."
    assert set(table.rows["error"]) == {""} and not [one for one in before.columns if "Not there for" in one.meaning]


def test_companions_that_only_left_out_rows_have_are_no_columns(
    finished: tuple[Path, Schedule], tmp_path: Path
) -> None:
    """As `gmm` names them after the best number of components: the table can be read again."""
    out = tmp_path / "out"
    shutil.copytree(finished[0], out)
    mixed = cell_of(finished[1].graph, "measure", "rmsc of mixed").folder(out) / "result.json"
    own = {"variant": "of another kind", "companions": {"of its own": {"value": 1.0, "interval": [0.5, 2.0]}}}
    mixed.write_text(json.dumps(json.loads(mixed.read_text()) | own))
    told = json.loads((out / "graph.json").read_text())
    ae = [row for row in told["rows"] if row["identity"]["tokenizer"] == "ae"]
    for seed in (1, 2):
        told["rows"] += [{**row, "identity": {**row["identity"], "generator_seed": seed}} for row in ae]
    (out / "graph.json").write_text(json.dumps(told))
    collect(out)
    assert "m_rmsc.of its own" not in StudyTable.read(out).names()


def test_nothing_is_done_twice(finished: tuple[Path, Schedule]) -> None:
    out, _ = finished
    schedule, started = run_study(out.parent, tiny_study())
    assert started == [] and len(schedule.done) == 35


def test_status_says_that_all_is_done(finished: tuple[Path, Schedule]) -> None:
    out, _ = finished
    found = status_of(out)
    assert (found["done"], found["rows_done"], found["failed"], found["seconds_of_work_left"]) == (35, 4, [], 0)
    result = CliRunner().invoke(app, ["study", "status", str(out)])
    assert result.exit_code == 0 and "Tiny: 35 of 35 cells, 4 of 4 rows done" in result.output
    told = json.loads(CliRunner().invoke(app, ["study", "status", str(out), "--json"]).output)
    assert told["stages"]["sample"] == {"done": 4, "running": 0, "waiting": 0, "failed": 0, "blocked": 0}


def test_a_dry_run_says_what_an_addition_costs_and_does_nothing(
    finished: tuple[Path, Schedule], tmp_path: Path
) -> None:
    out, _ = finished
    file = written(tmp_path, tiny_study(generators=[{**SIT, "guidance": [1.0, 2.0, 3.0]}]))
    before = sorted(out.rglob("*"))
    result = CliRunner().invoke(app, ["study", "run", str(file), "--out", str(out), "--dry-run", "--workers", "2"])
    assert result.exit_code == 0, result.output
    lines = {line.split()[0]: line.split() for line in result.output.splitlines()}
    assert lines["sample"][1:3] == ["6", "2"] and lines["sample"][-1] == "measured"
    assert lines["train_generator"][1:3] == ["2", "0"]
    assert "6 of 41 cells to do, 6 rows" in result.output and "with 2 workers" in result.output
    assert sorted(out.rglob("*")) == before


# --- failures ---------------------------------------------------------------------------------------------------------


def test_a_failing_cell_costs_only_what_needs_it(finished: tuple[Path, Schedule], tmp_path: Path) -> None:
    """A learning rate that blows up, in the folder of a finished study: its rows say why, all others are as they were."""
    wild = {**AE, "label": "wild", "set": [*TOKENIZER, "optimiser.learning_rate=1e30", "optimiser.steps=6"]}
    content = tiny_study(tokenizers=[wild, AE, MIXED])
    out = tmp_path / "out"
    _copy_cells(finished[0], out)
    schedule, started = run_study(tmp_path, content)
    assert started == ["train wild", "train wild"]  # once more, as the file says by default
    (reason,) = schedule.failed.values()
    assert "not finite" in reason
    rows = collect(out).rows.set_index(["tokenizer", "guidance"])
    assert all("train wild: " in text and "not finite" in text for text in rows.loc["wild", "error"])
    assert rows.loc["wild", "gfd_fashion_classifier"].isna().all()
    assert (rows.loc["ae", "error"] == "").all() and rows.loc["ae", "gfd_fashion_classifier"].notna().all()
    found = status_of(out)
    assert [one["reason"] for one in found["failed"]] == [reason] and found["stages"]["encode"]["blocked"] == 2
    assert found["rows_done"] == 4
    assert run_study(tmp_path, {**content, "retries": 0})[1] == [
        "train wild"
    ]  # another call tries again, here without a retry


def _copy_cells(source: Path, target: Path) -> None:
    """Make the finished cells of one study those of another, without copying them."""
    for folder in (source / "cells").glob("*/*"):
        place = target / folder.relative_to(source)
        place.parent.mkdir(parents=True, exist_ok=True)
        os.symlink(folder, place)


def test_a_table_of_an_unfinished_study(finished: tuple[Path, Schedule], tmp_path: Path) -> None:
    _, graph = opened(tmp_path, tiny_study())
    out = tmp_path / "out"
    _copy_cells(finished[0], out)
    os.unlink(cell_of(graph, "sample", "sit on mixed, guidance 2").folder(out))
    graph.write(out)
    rows = collect(out).rows.set_index(["tokenizer", "guidance"])
    assert rows.loc[("mixed", 2.0), "error"] == "sample sit on mixed, guidance 2: not done yet"
    assert math.isnan(rows.loc[("mixed", 2.0), "n_samples"]) and rows.loc[("mixed", 2.0), "psnr"] > 0
    assert (rows["error"] != "").sum() == 1


def test_folders_that_hold_no_study(tmp_path: Path) -> None:
    for command in ("status", "table"):
        result = CliRunner().invoke(app, ["study", command, str(tmp_path)])
        assert result.exit_code == 2 and f"{tmp_path} holds no study" in result.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere.yaml"], "there is no study file nowhere.yaml"),
        (["x.yaml", "--engine", "slurm"], "--engine must be local or ray, got 'slurm'"),
        (["x.yaml", "--ray-address", "auto"], "--ray-address goes with --engine ray"),
        (["x.yaml", "--workers", "0"], "--workers must be at least 1"),
    ],
)
def test_mistakes_on_the_command_line(arguments: list[str], message: str) -> None:
    result = CliRunner().invoke(app, ["study", "run", *arguments])
    assert result.exit_code == 2 and message in result.output and len(result.output.splitlines()) == 1


def test_a_study_below_a_file_is_refused(home: None, tmp_path: Path) -> None:
    plan, file = tmp_path / "plan.yaml", tmp_path / "a file"
    plan.write_text(yaml.safe_dump(tiny_study()))
    file.touch()
    result = CliRunner().invoke(app, ["study", "run", str(plan), "--out", str(file / "below")])
    assert result.exit_code == 2 and f"cannot write {file / 'below'}" in result.output


def test_one_run_per_folder(home: None, tmp_path: Path) -> None:
    """A second one is refused, and leaves the plan of the first as it is."""
    out, other = tmp_path / "out", tmp_path / "other.yaml"
    other.write_text(yaml.safe_dump(tiny_study()))
    out.mkdir()
    for name in ("plan.yaml", "graph.json"):
        (out / name).write_text("of the first")
    with WeakFileLock(out / ".lock"):
        result = CliRunner().invoke(app, ["study", "run", str(other), "--out", str(out)])
    assert result.exit_code == 2 and "another `latentlab study run`" in result.output
    assert {(out / name).read_text() for name in ("plan.yaml", "graph.json")} == {"of the first"}


# --- kills ------------------------------------------------------------------------------------------------------------


def run_to_the_end(folder: Path) -> int:
    process = fork([str(folder)])
    process.join()
    return int(process.exitcode)


def test_a_training_killed_in_the_middle_ends_as_if_it_had_not_been(home: None, tmp_path: Path) -> None:
    folder, undisturbed = training(tmp_path / "killed"), training(tmp_path / "whole")
    process = fork([str(folder)])
    wait_for(lambda: checkpoints(folder))
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert process.exitcode == -signal.SIGKILL and not (folder / "done.json").exists()
    assert run_to_the_end(folder) == run_to_the_end(undisturbed) == 0
    assert "continuing" in (folder / "log.txt").read_text()
    weights = [load_file(one / "run" / "tokenizer.safetensors") for one in (folder, undisturbed)]
    assert all((weights[0][name] == weights[1][name]).all() for name in weights[1])
    attempts = json.loads((folder / "attempts.json").read_text())
    assert len(attempts) == 2 and attempts[0]["seconds"] >= 0  # the first one's time counts too


def test_a_training_that_is_asked_to_stop_saves_and_continues(home: None, tmp_path: Path) -> None:
    folder = training(tmp_path, steps=80)
    process = fork([str(folder)])
    wait_for(lambda: checkpoints(folder))
    process.terminate()
    process.join()
    assert process.exitcode == 130 and "the same command continues" in (folder / "log.txt").read_text()
    assert run_to_the_end(folder) == 0


def test_a_kill_while_results_are_written(home: None, tmp_path: Path) -> None:
    """What a kill can leave: no ``done.json``, a result cut off, a temporary file. The training itself is not done again."""
    folder = training(tmp_path, steps=4)
    assert run_to_the_end(folder) == 0
    weights, result = load_file(folder / "run" / "tokenizer.safetensors"), result_of(folder)
    (folder / "done.json").rename(folder / ".done.json.1.tmp")
    (folder / "result.json").write_text('{"name": "a')
    assert run_to_the_end(folder) == 0
    again = load_file(folder / "run" / "tokenizer.safetensors")
    assert all((again[name] == weights[name]).all() for name in weights) and result_of(folder) == result
    assert "continuing" in (folder / "log.txt").read_text()  # at the last step: nothing is trained again
    assert run_to_the_end(folder) == 0  # and a third time there is nothing to do
    assert len(json.loads((folder / "attempts.json").read_text())) == 2


class KilledEngine(ForkEngine):
    """Kills every process of the engine after a number of starts, as a machine that goes down would."""

    def start(self, job: Any) -> None:
        super().start(job)
        if len(self.jobs) == 3:
            for process in self._running.values():
                os.kill(process.pid, signal.SIGKILL)
            raise SystemExit("power cut")


def test_a_study_that_was_cut_off_between_cells_continues(finished: tuple[Path, Schedule], tmp_path: Path) -> None:
    content = tiny_study(tokenizers=[AE], trajectories=None, decoder_noise=[], measure={})
    study, graph = opened(tmp_path, content)
    out = tmp_path / "out"
    with pytest.raises(SystemExit):
        run_cells(study, graph, out, KilledEngine())
    before = {file: file.stat().st_mtime_ns for file in out.rglob("done.json")}
    assert 0 < len(before) < len(graph.cells)
    schedule, started = run_study(tmp_path, content)
    assert len(schedule.done) == len(graph.cells) and not schedule.failed
    assert len(started) == len(graph.cells) - len(before)
    assert {file: file.stat().st_mtime_ns for file in before} == before
    same = collect(out).rows.set_index("guidance")["gfd_fashion_classifier"]
    whole = collect(finished[0]).rows.query("tokenizer == 'ae'").set_index("guidance")["gfd_fashion_classifier"]
    assert same.to_dict() == whole.to_dict()


def test_the_command_killed_in_the_middle_ends_as_if_it_had_not_been(
    finished: tuple[Path, Schedule], tmp_path: Path
) -> None:
    """The whole command, and the processes that it had started: they stop without it."""
    file = written(tmp_path, tiny_study(tokenizers=[AE], trajectories=None, decoder_noise=[], measure={}))
    command = [
        sys.executable,
        "-m",
        "latentlab",
        "study",
        "run",
        str(file),
        "--out",
        str(tmp_path / "out"),
        "--workers",
        "2",
    ]
    killed = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_for(lambda: list((tmp_path / "out" / "cells").glob("train_tokenizer/*/run/checkpoints/step_*")))
    own = psutil.Process(killed.pid).children(recursive=True)
    killed.kill()
    killed.wait()
    psutil.wait_procs(own, timeout=60)
    assert own and not any(process.is_running() for process in own)
    assert "running" not in {state.state for state in states(Graph.read(tmp_path / "out"), tmp_path / "out").values()}
    again = subprocess.run(command, capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr
    same, whole = (collect(out).rows.query("tokenizer == 'ae'") for out in (tmp_path / "out", finished[0]))
    shared = [name for name in same if name not in ("minutes", "minutes_low")]
    pd.testing.assert_frame_equal(same[shared], whole[shared])


def test_a_number_of_a_process_that_another_one_has_now(home: None, tmp_path: Path) -> None:
    """A cell whose process is gone does not run because a later process got its number."""
    folder = training(tmp_path)
    graph = Graph.read(_planned(tmp_path))
    cell = next(cell for cell in graph.cells if cell.stage == "train_tokenizer")
    attempt = {"host": socket.gethostname(), "pid": os.getpid(), "began": psutil.Process().create_time() - 60}
    for began, state in ((attempt["began"], "waiting"), (attempt["began"] + 61, "running")):
        (folder / "attempts.json").write_text(json.dumps([{**attempt, "began": began}]))
        assert states(graph, tmp_path / "out")[cell.key].state == state


def _planned(folder: Path) -> Path:
    """Write the graph of the study that `training` has opened in a folder; return the study's folder."""
    study = load_study(folder / "study.yaml")
    build_graph(study).write(folder / "out")
    return folder / "out"


def test_what_is_stopped_costs_no_try_of_those_behind_it(tmp_path: Path) -> None:
    """A process that was stopped in its first cell has not come to the second one."""
    study, graph = opened(tmp_path, tiny_study(tokenizers=[AE], measure={"rmsc": {}, "codebook": {}}, retries=0))
    schedule = planned(graph, tmp_path / "out")
    run = _Run(study, tmp_path / "out", ForkEngine(), schedule, Board(schedule, ForkEngine()))
    cells = tuple(cell for cell in graph.cells if cell.stage == "measure")
    job = Job(cells, tuple(prepare(cell, tmp_path / "out") for cell in cells), study.takes("measure"))
    run._settle(Ended(job, INTERRUPTED))
    assert list(schedule.failed) == [cells[0].key]


def test_files_of_an_earlier_plan_are_removed(finished: tuple[Path, Schedule], tmp_path: Path) -> None:
    out = tmp_path / "out"
    _copy_cells(finished[0], out)
    opened(tmp_path, tiny_study())[1].write(out)
    collect(out)
    assert (out / "pictures" / "mixed" / "sit.png").is_file() and (out / "details" / "mixed" / "rmsc.json").is_file()
    opened(tmp_path, tiny_study(tokenizers=[AE], measure={}))[1].write(out)
    collect(out)
    left = {str(file.relative_to(out)) for name in ("pictures", "details") for file in (out / name).rglob("*.*")}
    assert left == {"pictures/ae/reconstructions.png", "pictures/ae/sit.png", "details/ae/sit/straightness.json"}


def test_a_dry_run_refuses_what_this_machine_cannot_do(tmp_path: Path) -> None:
    file = written(tmp_path, tiny_study(resources={"sample": {"memory": 1e6}}))
    result = CliRunner().invoke(app, ["study", "run", str(file), "--out", str(tmp_path / "out"), "--dry-run"])
    assert result.exit_code == 2 and "resources.sample asks for 1e+06 GiB of memory" in result.output
