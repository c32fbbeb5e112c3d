"""A run that is killed or stopped, anywhere, ends with the bits of one that is not."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from latentlab.checkpoints import load_checkpoint, save_checkpoint
from latentlab.run_folder import Interrupted, RunFolder
from latentlab.weights import read_metadata
from mind.mind_recipe import MindTrainer as Trainer
from mind.mind_recipe import train_mind as train
from mind.preview import Preview
from mind.train_config import TrainConfig, load_config

from .tiny_run import CPU, assert_same_bits, encoded_training_images, logged, tiny, weights

KILL_ITSELF = """
import os, signal, sys
from pathlib import Path
import torch
from mind.mind_recipe import MindTrainer as Trainer
from mind.train_config import TrainConfig

class Killed(Trainer):
    def train_step(self, stop=False):
        if self.step == 5:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().train_step(stop)

Killed(TrainConfig.model_validate_json(sys.argv[1]), Path(sys.argv[2]), torch.device("cpu")).run()
"""


def test_a_run_killed_between_checkpoints_ends_with_the_same_bits(
    config_file: Path, straight: Path, tmp_path: Path
) -> None:
    config, out = load_config(config_file), tmp_path / "killed run"
    command = [sys.executable, "-c", KILL_ITSELF, config.model_dump_json(), str(out)]
    assert subprocess.run(command, check=False, stderr=subprocess.DEVNULL, cwd=tmp_path).returncode == -signal.SIGKILL
    assert [line["step"] for line in logged(out)] == [1, 2, 3, 4, 5]
    assert RunFolder(out).newest() == out / "checkpoints" / "step_00000003.safetensors"
    train(config, out, device="cpu")
    assert_same_bits(out, straight)
    assert read_metadata(out / "mind.safetensors") == read_metadata(straight / "mind.safetensors")


LOOKING = [
    "validate_every=3", "validation_images=20",
    "preview={grid_every: 3, classes: 2, per_class: 2, batch_size: 4, score_every: 6, score_images: 4, sampler: {steps: 2}}",
]  # fmt: skip


@pytest.fixture(scope="module")
def looking(config_file: Path, straight: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[TrainConfig, Path]:
    """A run that measures and shows what it has learned, and its folder when nothing interrupts it."""
    config = load_config(config_file, [*LOOKING, encoded_training_images()])
    out = tmp_path_factory.mktemp("looking") / "run"
    train(config, out, device="cpu")
    return config, out


@pytest.mark.parametrize(
    ("begun", "step"), [("validate", 3), ("validate", 6), ("_grid", 3), ("_grid", 6), ("_score", 6), ("export", 6)]
)
def test_a_run_killed_while_it_measures_leaves_what_it_would_have_left(
    looking: tuple[TrainConfig, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, begun: str, step: int
) -> None:
    config, uninterrupted = looking
    trainer = Trainer(config, tmp_path, CPU)
    owner = Trainer if hasattr(Trainer, begun) else Preview
    method = getattr(owner, begun)

    def killed(self: Any, *arguments: Any) -> Any:
        if trainer.step == step:
            raise InterruptedError
        return method(self, *arguments)

    with monkeypatch.context() as patch, pytest.raises(InterruptedError):
        patch.setattr(owner, begun, killed)
        trainer.run()
    train(config, tmp_path, device="cpu")
    assert_same_bits(tmp_path, uninterrupted)
    assert [line["step"] for line in logged(tmp_path) if "validation_loss" in line] == [3, 6]
    pictures = [
        {file.name: file.read_bytes() for file in (out / "samples").iterdir()} for out in (tmp_path, uninterrupted)
    ]
    assert pictures[0] == pictures[1] and len(pictures[0]) == 2


def test_a_line_is_of_all_its_steps_whatever_restarts_lie_between(config_file: Path, tmp_path: Path) -> None:
    rarely = "log_every=4"
    train(load_config(config_file, [rarely]), tmp_path / "straight", device="cpu")
    trainer = tiny(config_file, tmp_path / "restarted", rarely)
    for _ in range(3):
        trainer.train_step()
    trainer.save()
    train(load_config(config_file, [rarely]), tmp_path / "restarted", device="cpu")
    assert logged(tmp_path / "restarted") == logged(tmp_path / "straight")


def test_a_checkpoint_of_an_earlier_version_continues(config_file: Path, straight: Path, tmp_path: Path) -> None:
    """One that does not know the steps since the last line."""
    trainer = tiny(config_file, tmp_path)
    for _ in range(3):
        trainer.train_step()
    trainer.save()
    step, state = load_checkpoint(tmp_path / "checkpoints" / "step_00000003.safetensors")
    del state["line"]
    save_checkpoint(tmp_path / "checkpoints", step, state)
    train(load_config(config_file), tmp_path, device="cpu")
    assert logged(tmp_path) == logged(straight)[3:]


def test_a_run_stopped_before_its_first_checkpoint_begins_anew(
    config_file: Path, straight: Path, tmp_path: Path
) -> None:
    RunFolder(tmp_path).append(1, {"loss": 1.0})
    train(load_config(config_file), tmp_path, device="cpu")
    assert_same_bits(tmp_path, straight)


def test_a_finished_run_is_not_taken_again(config_file: Path, straight: Path) -> None:
    before = (straight / "metrics.jsonl").read_bytes()
    assert train(load_config(config_file), straight, device="cpu") == straight / "mind.safetensors"
    assert (straight / "metrics.jsonl").read_bytes() == before


def test_every_checkpoint_continues_with_the_same_bits_in_bfloat16(config_file: Path, tmp_path: Path) -> None:
    overrides = ("precision=autocast", "optimiser.accumulate=2", "recompute=blocks", "optimiser.steps=3")
    train(load_config(config_file, overrides), tmp_path / "straight", device="cpu")
    for _ in range(3):
        trainer = tiny(config_file, tmp_path / "pieces", *overrides)
        trainer.train_step()
        trainer.save()
    train(load_config(config_file, overrides), tmp_path / "pieces", device="cpu")
    mine, theirs = weights(tmp_path / "pieces"), weights(tmp_path / "straight")
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)


def test_sigterm_saves_and_exits_with_130(config_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    command = [
        sys.executable, "-m", "latentlab", "train", "mind", "--config", str(config_file), "--out", str(out),
        "--set", "optimiser.steps=100000", "--set", "checkpoint_every=100000", "--device", "cpu",
    ]  # fmt: skip
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=tmp_path)
    deadline = time.monotonic() + 180
    while not (out / "metrics.jsonl").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    process.terminate()
    _, errors = process.communicate(timeout=180)
    assert process.returncode == 130
    assert "the same command continues" in errors and "Traceback" not in errors
    (saved,) = (out / "checkpoints").iterdir()
    assert saved.name == f"step_{logged(out)[-1]['step']:08d}.safetensors"


def test_an_interruption_is_not_an_error_of_the_step(
    config_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = tiny(config_file, tmp_path)
    taken = Trainer.train_step

    def interrupted(self: Trainer, stop: bool = False) -> tuple[dict[str, float], bool]:
        os.kill(os.getpid(), signal.SIGINT)
        return taken(self, True)

    monkeypatch.setattr(Trainer, "train_step", interrupted)
    with pytest.raises(Interrupted, match="stopped at step 1 of 6; the same command continues from there"):
        trainer.run()
    assert RunFolder(tmp_path).newest() == tmp_path / "checkpoints" / "step_00000001.safetensors"
