"""Two ranks, and parts of a step, give the numbers of one process."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from latentlab.ranks import Ranks
from mind.mind_recipe import train_mind as train
from mind.train_config import load_config

from .tiny_run import logged, tiny, weights

TWO_RANKS = """
import sys
from pathlib import Path
import torch
from latentlab.ranks import joined_ranks
from mind.mind_recipe import MindTrainer as Trainer
from mind.train_config import TrainConfig

with joined_ranks() as ranks:
    for text in sys.argv[2:]:
        config = TrainConfig.model_validate_json(text)
        def trainer():
            return Trainer(config, Path(sys.argv[1]) / config.name, torch.device("cpu"), ranks)
        first = trainer()
        for _ in range(3):
            first.train_step()
        first.save()
        if config.name != "left to one rank":
            trainer().run()
"""


def launch(code: str, folder: Path, *arguments: str) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node=2", f"--master-port={port}", "--no-python"]
    done = subprocess.run(
        [sys.executable, *launcher, sys.executable, "-c", code, str(folder), *arguments],
        cwd=folder, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, timeout=900, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_two_ranks_give_the_numbers_of_one(config_file: Path, straight: Path, tmp_path: Path) -> None:
    """Copies and shards of the model, resumed in the middle; one run goes from two ranks to one."""
    kinds = {"copies": "ddp", "shards": "fsdp", "left to one rank": "fsdp"}
    parts = ["optimiser.accumulate=2", "track=[]"]
    configs = [load_config(config_file, [f"name={n}", f"parallel={kind}", *parts]) for n, kind in kinds.items()]
    launch(TWO_RANKS, tmp_path, *(config.model_dump_json() for config in configs))
    train(configs[2], tmp_path / "left to one rank", device="cpu")
    theirs = weights(straight)
    for name in kinds:
        mine = weights(tmp_path / name)
        for key, wanted in theirs.items():
            torch.testing.assert_close(mine[key], wanted, rtol=1e-5, atol=1e-5, msg=lambda m, key=key: f"{key}: {m}")
        assert [line["step"] for line in logged(tmp_path / name)][-1] == 6
        assert logged(tmp_path / name)[-1]["loss"] == pytest.approx(logged(straight)[-1]["loss"], rel=1e-5)


ENCODE_TOGETHER = """
import json, os, sys
from functools import partial
from pathlib import Path
from latentlab import encoding
from mind.kinds import open_recipe
from mind.train_config import TrainConfig
from mind.training import train

columns, seen = encoding.BatchEncoder.columns, []

def counted(self, pixels, first):
    seen.append(first)
    return columns(self, pixels, first)

encoding.BatchEncoder.columns = counted
folder, config = Path(sys.argv[1]), TrainConfig.model_validate_json(sys.argv[2])
train(config, partial(open_recipe, "mind", config), folder / "run", device="cpu")
(folder / f"encoded{os.environ['RANK']}.json").write_text(json.dumps(seen))
"""


def test_two_ranks_share_the_encoding(config_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three batches of training images, and those of them mirrored."""
    monkeypatch.setenv("LATENTLAB_HOME", str(tmp_path / "home"))
    config = load_config(config_file, ["data.limit=384", "optimiser.steps=1"])
    launch(ENCODE_TOGETHER, tmp_path, config.model_dump_json())
    first, second = (json.loads((tmp_path / f"encoded{rank}.json").read_text()) for rank in range(2))
    assert first and second and sorted(first + second) == [0, 0, 128, 128, 256, 256]
    assert [line["step"] for line in logged(tmp_path / "run")] == [1]


def test_parts_of_a_step_add_up(config_file: Path, straight: Path, tmp_path: Path) -> None:
    train(load_config(config_file, ["optimiser.accumulate=4"]), tmp_path, device="cpu")
    mine, theirs = weights(tmp_path), weights(straight)
    for name in theirs:
        torch.testing.assert_close(mine[name], theirs[name], rtol=1e-5, atol=1e-5)


def test_ranks_and_parts_share_one_batch(config_file: Path, tmp_path: Path) -> None:
    trainer = tiny(config_file, tmp_path, "label_dropout=0.5")
    (whole,) = trainer.batch(7)
    trainer.config = load_config(config_file, ["label_dropout=0.5", "optimiser.accumulate=2"])
    found = []
    for rank in range(2):
        trainer.ranks = Ranks(rank, 2)
        found += list(trainer.batch(7))
    assert len(found) == 4
    for column, wanted in zip(zip(*found, strict=True), whole, strict=True):
        assert torch.equal(torch.cat(column), wanted)
