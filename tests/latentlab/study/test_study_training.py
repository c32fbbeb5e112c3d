"""Trained runs of a grid: which rows share one, how processes are started side by side, and what a failed one says."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from latentlab.errors import UserError
from latentlab.study.training import runs as study_training
from latentlab.study.training.ablation import plan_training
from latentlab.study.training.runs import Training, final_losses, norm_history, train_all
from mind.ablation import Grid, Row, load_grid
from mind.config import MindConfig, sized
from mind.kinds import read_run

WEIGHTS = "mind_ema.safetensors"
"""What a run writes last."""

GRID = Grid(title="T", base="mind-fashion", samples=1, rows=(Row(label="a"),), train={"optimiser.steps": 10})


def planned(label: str, **row: Any) -> Training:
    return plan_training(GRID, Row(label=label, **row), row.pop("seed", 0))


def test_equal_training_has_one_name() -> None:
    a, same, other = (planned("a"), planned("b", sample={"eta": 0.5}), planned("c", train={"model.noise_factor": 1.0}))
    assert a.name == same.name != other.name
    assert plan_training(GRID, Row(label="a"), 1).name != a.name
    assert "optimiser.steps=10" in a.overrides and a.config.optimiser.steps == 10


SPELLED_OUT: dict[str, Any] = {
    "model.signal_factor": 1, "model.noise_factor": 0.6, "model.grid": [8, 8], "model.use_residual": True,
    "model.embedding_init": "released", "model.vocab_size": 512.0, "optimiser.learning_rate": 1, "loss.mse_weight": 1,
}  # fmt: skip
"""What `GRID` trains anyway, its learning rate aside, with whole numbers where the fields are not."""


def test_a_default_that_is_spelled_out_makes_no_other_run() -> None:
    """Nor does the order of the settings, nor 1 for 1.0."""
    rate = {"optimiser.learning_rate": 1.0}
    assert planned("a", train=rate).name == planned("b", train=SPELLED_OUT).name
    backwards = dict(reversed(SPELLED_OUT.items()))
    assert planned("a", train=backwards).name == planned("b", train=SPELLED_OUT).name
    whole = {f"model.{name}": value for name, value in sized("mind-fashion").model_dump(mode="json").items()}
    assert planned("a", train=whole).name == planned("b").name


OTHER: dict[str, Any] = {
    "vocab_size": 256, "embed_dim": 32, "subvector_size": 2, "hidden_size": 96, "num_heads": 2, "num_blocks": 4, "cond_dim": 32,
    "num_classes": 11, "tokens": 128, "grid": [4, 16], "noise_process": "cosine", "noise_factor": 0.61, "signal_factor": 1.1,
    "normalise": False, "embedding_init": "xavier", "freq_init": "normal", "freq_std": 9.0, "use_residual": False, "rope": "1d",
    "rope_dtype": "bfloat16", "mapper_width": 512,
}  # fmt: skip
"""Another value for every field of the model."""


def test_every_field_of_the_model_makes_another_run() -> None:
    assert OTHER.keys() == MindConfig.model_fields.keys()
    changes = [{f"model.{name}": value} for name, value in OTHER.items()]
    changes[list(OTHER).index("tokens")]["model.grid"] = [8, 16]  # which must hold the tokens
    assert len({planned("a", train=change).name for change in ({}, *changes)}) == 1 + len(OTHER)


def test_shipped_grids_share_what_they_train_alike() -> None:
    """Table 6 without the hypersphere is table 5's row B, and its row C is table 5's row A: 52.10 both."""

    def name(grid: str, label: str) -> str:
        read = load_grid(grid)
        return plan_training(read, next(row for row in read.rows if row.label == label), 0).name

    without = name("components", "A without hypersphere")
    assert without == name("hypersphere", "B no sphere, xavier") != name("hypersphere", "C no sphere, normal")
    assert name("components", "C MIND") == name("hypersphere", "A sphere, xavier") != without
    assert name("residual", "d=16, without") == name("embedding-noise", "d=16, g=4, K1=0.6")


def test_longer_training_is_a_multiple_of_what_the_grid_says() -> None:
    longer = planned("a", times_steps=2.5)
    assert longer.config.optimiser.steps == 25 and longer.overrides[-1] == "optimiser.steps=25"


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"train": {"model.embed_dim": 24}}, "embed_dim must divide 1024"),
        ({"train": {"model.normalize": True}}, "normalize"),
        ({"train": {"optimizer.steps": 1}}, "optimizer"),
    ],
)
def test_a_row_that_cannot_be_trained_is_found_at_once(row: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        planned("a", **row)


# --- processes --------------------------------------------------------------------------------------------------------


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for runs, where `shell` instead of a training is started."""
    monkeypatch.setattr(study_training, "_POLL_SECONDS", 0.01)
    return tmp_path / "runs"


def shell(monkeypatch: pytest.MonkeyPatch, scripts: dict[str, str]) -> list[tuple[str, float, int]]:
    """Start ``scripts[seed of the run]`` in its place; returns the list of starts: seed, time, number running."""
    started: list[tuple[str, float, int]] = []
    processes: list[subprocess.Popen[bytes]] = []

    def start(training: Training, runs: Path, jobs: int, device: str) -> "subprocess.Popen[bytes]":
        seed = str(training.config.seed)
        folder = runs / training.name
        folder.mkdir(parents=True, exist_ok=True)
        alive = sum(process.poll() is None for process in processes)
        started.append((seed, time.monotonic(), alive))
        with open(training.log(runs), "ab") as log:
            process = subprocess.Popen(["sh", "-c", scripts[seed]], cwd=folder, stdout=log, stderr=log)
        processes.append(process)
        return process

    monkeypatch.setattr(study_training, "_start", start)
    return started


def seeded(n: int) -> list[Training]:
    return [plan_training(GRID, Row(label="a"), seed) for seed in range(n)]


def test_side_by_side_but_never_more_than_asked(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started = shell(monkeypatch, {str(i): f"sleep 0.5; : > {WEIGHTS}" for i in range(4)})
    trainings = seeded(4)
    assert train_all([*trainings, trainings[0]], runs, jobs=2) == {}
    assert [seed for seed, _, _ in started] == ["0", "1", "2", "3"]
    assert [alive for _, _, alive in started[:2]] == [0, 1]  # the second beside the first
    assert max(alive for _, _, alive in started) == 1 and started[2][1] - started[0][1] >= 0.4


def test_finished_runs_are_not_started_and_failures_cost_no_other(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainings = seeded(3)
    trainings[0].folder(runs).mkdir(parents=True)
    trainings[0].weights(runs, averaged=True).touch()
    failing = "echo step 1; echo 'error: the loss is not finite' >&2; echo goodbye; exit 2"
    started = shell(monkeypatch, {"1": failing, "2": f": > {WEIGHTS}"})
    assert train_all(trainings, runs, jobs=1) == {trainings[1].name: "the loss is not finite"}
    assert [seed for seed, _, _ in started] == ["1", "2"]
    shell(monkeypatch, {"1": "echo step 2; kill -9 $$"})
    assert train_all(trainings, runs) == {trainings[1].name: "ended by signal 9 after: step 2"}


def test_an_interruption_reaches_the_trainings(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The process is asked to stop and waited for, so that it can write a checkpoint."""
    started = shell(monkeypatch, {"0": "trap 'echo saved > checkpoint; exit 130' TERM; sleep 30 & wait"})

    def stop_us(seconds: float) -> None:
        if started and time.monotonic() - started[0][1] > 0.3:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(study_training.time, "sleep", stop_us)
    with pytest.raises(KeyboardInterrupt):
        train_all(seeded(1), runs)
    assert (runs / seeded(1)[0].name / "checkpoint").read_text() == "saved\n"


def test_one_run_is_started_alike_however_it_is_written(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second grid goes on with what a first one began: a run folder takes the very same configuration only."""
    commands: list[list[str]] = []
    monkeypatch.setattr(subprocess, "Popen", lambda command, **_: commands.append(command))
    written = []
    for training in (planned("a", train={"optimiser.learning_rate": 1.0}), planned("b", train=SPELLED_OUT)):
        study_training._start(training, runs, 1, "cpu")
        file = commands[-1][commands[-1].index("--config") + 1]
        written.append(Path(file).read_text())
        assert read_run("mind", file).model_dump(mode="json") == training.settings
        assert training.settings["model"] == sized("mind-fashion").model_dump(mode="json")
        assert training.settings["optimiser"] == training.config.optimiser.model_dump(mode="json")
    assert commands[0] == commands[1] and written[0] == written[1]


# --- metrics ----------------------------------------------------------------------------------------------------------


def test_final_loss_is_the_mean_of_the_last_tenth(tmp_path: Path) -> None:
    """Of 100 steps, logged every 5: those of steps 95 and 100; validation lines have no loss."""
    lines = [{"step": step, "loss": float(step), "ce": 1.0, "mse": 0.5, "latent_norm": 2.0, "raw_norm": 0.1,
              "nearest_angle": 45.0} for step in range(5, 101, 5)]  # fmt: skip
    lines.append({"step": 100, "validation_loss": 9.0})
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 105, "lo')
    assert final_losses(tmp_path) == {"loss": 97.5, "ce": 1.0, "mse": 0.5}
    history = norm_history(tmp_path)
    assert history["step"] == list(range(5, 101, 5)) and history["nearest_angle"] == [45.0] * 20
    assert final_losses(tmp_path / "absent") == {} and norm_history(tmp_path / "absent")["step"] == []
