"""The MIND trainer: it learns, gives the same bits after kill -9 and the same numbers on two ranks, and stops with a reason."""

import json
import math
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from latentlab.checkpoints import load_checkpoint, save_checkpoint
from latentlab.errors import UserError
from latentlab.ranks import Ranks
from latentlab.run_folder import Interrupted, RunFolder
from latentlab.weights import read_metadata
from mind.config import MindConfig
from mind.mind_recipe import MindTrainer as Trainer
from mind.mind_recipe import train_mind as train
from mind.network import Mind
from mind.preview import Preview
from mind.released import load_mind
from mind.train_config import CONFIGS, TrainConfig, load_config
from mind.training import kept_weights

CPU = torch.device("cpu")
TINY = {
    "name": "tiny",
    "model": {
        "size": "mind-fashion", "hidden_size": 16, "num_heads": 2, "num_blocks": 2, "cond_dim": 8, "mapper_width": 16,
    },
    "data": {"tokenizer": "ibq", "release": "fashion32", "train": "fashion:test", "limit": 40},
    # A large epsilon and no clipping: with AdamW's usual ones a gradient of the wrong size would change nothing.
    "optimiser": {
        "steps": 6, "batch_size": 8, "learning_rate": 0.01, "warmup_steps": 2, "epsilon": 1e-3, "clip_norm": 1e3,
    },
    "loss": {"soft_top_k": 10},
    "precision": "float32", "log_every": 1, "checkpoint_every": 3,
}  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LATENTLAB_HOME", str(tmp_path_factory.mktemp("home")))
        yield


@pytest.fixture(scope="module")
def config_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("config") / "tiny.yaml"
    file.write_text(yaml.safe_dump(TINY))
    return file


@pytest.fixture(scope="module")
def straight(config_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an uninterrupted run in one process."""
    out = tmp_path_factory.mktemp("straight") / "run"
    train(load_config(config_file), out, device="cpu")
    return out


@pytest.fixture
def held_out(straight: Path) -> str:
    return encoded_training_images()


def encoded_training_images() -> str:
    """Override that takes the encoded training images as held-out ones, so that nothing more is encoded."""
    stores = Path(os.environ["LATENTLAB_HOME"], "stores")
    (store,) = (path for path in stores.iterdir() if "mirrored" not in path.name)
    return f"data.validation_store={store}"


def test_weights_are_kept_after_chosen_steps(config_file: Path, tmp_path: Path) -> None:
    """They are those that a run of so many steps ends with, and the run itself ends as it would without them."""
    constant = ["optimiser.warmup_steps=0"]
    out = tmp_path / "kept"
    train(load_config(config_file, [*constant, "keep_steps=[2,6]"]), out, device="cpu")
    train(load_config(config_file, [*constant, "optimiser.steps=2"]), tmp_path / "short", device="cpu")
    folder = kept_weights(out, 2)
    for name in ("mind.safetensors", "mind_ema.safetensors"):
        kept, short = load_file(folder / name), load_file(tmp_path / "short" / name)
        assert kept.keys() == short.keys() and all(torch.equal(kept[key], short[key]) for key in kept)
    assert read_metadata(folder / "mind.safetensors")["steps"] == "2"
    assert not kept_weights(out, 6).exists()  # the end is in the run folder itself
    load_mind(folder / "mind.safetensors")


def tiny(config_file: Path, out: Path, *overrides: str) -> Trainer:
    return Trainer(load_config(config_file, overrides), out, CPU)


def weights(out: Path) -> dict[str, Tensor]:
    both = {name: load_file(out / f"{name}.safetensors") for name in ("mind", "mind_ema")}
    return {f"{file}.{name}": tensor for file, state in both.items() for name, tensor in state.items()}


def logged(out: Path) -> list[dict[str, Any]]:
    timing = ("seconds_per_step", "peak_memory_gib")
    return [{k: v for k, v in line.items() if k not in timing} for line in RunFolder(out).metrics()]


def assert_same_bits(out: Path, straight: Path) -> None:
    mine, theirs = weights(out), weights(straight)
    assert list(mine) == list(theirs) and all(torch.equal(mine[name], theirs[name]) for name in mine)
    assert logged(out) == logged(straight)


@pytest.mark.parametrize(("asked", "used"), [((), "nothing"), (("recompute=cheap",), "cheap")])
def test_a_small_network_keeps_its_activations_unless_asked(
    asked: tuple[str, ...], used: str, config_file: Path, tmp_path: Path
) -> None:
    assert tiny(config_file, tmp_path / "run", *asked).model.recompute == used


# --- exact resume -----------------------------------------------------------------------------------------------------

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


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # the tracer looks at it
def test_compiled_blocks_learn_the_same(
    config_file: Path, straight: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a compiler that runs the traced operations as they are."""
    compiled, graphs = torch.nn.Module.compile, []

    def traced(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Any:
        graphs.append(graph)
        return graph.forward

    monkeypatch.setattr(torch.nn.Module, "compile", lambda block: compiled(block, backend=traced))
    train(load_config(config_file, ["compile=true"]), tmp_path, device="cpu")
    assert graphs
    assert_same_bits(tmp_path, straight)


# --- ranks and parts --------------------------------------------------------------------------------------------------

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


# --- what a step is -----------------------------------------------------------------------------------------------------


def test_training_lowers_the_loss(config_file: Path, tmp_path: Path) -> None:
    train(
        load_config(config_file, ["optimiser.steps=50", "optimiser.epsilon=1.0e-8", "optimiser.clip_norm=1"]),
        tmp_path,
        device="cpu",
    )
    history = logged(tmp_path)
    assert history[0]["ce"] == pytest.approx(math.log(512) + 1 / 6, abs=0.2)  # chance plus the spread of fresh logits
    assert sum(line["ce"] for line in history[-5:]) / 5 < history[0]["ce"] - 1.5
    assert 0 < history[-1]["mse"] < history[0]["mse"]


def test_the_seed_decides(config_file: Path, straight: Path, tmp_path: Path) -> None:
    trainer = tiny(config_file, tmp_path, "seed=1")
    terms, _ = trainer.train_step()
    assert terms["loss"] != logged(straight)[0]["loss"]


def test_times_classes_and_mirrors_are_drawn_as_configured(config_file: Path, tmp_path: Path) -> None:
    overrides = ("optimiser.batch_size=40", "label_dropout=0.25", "times.low=0.2", "times.high=0.6")
    trainer = tiny(config_file, tmp_path, *overrides)
    tokens = trainer.recipe.source.train
    ids, labels, t, eps = (
        torch.cat(column) for column in zip(*(next(trainer.batch(s)) for s in range(50)), strict=True)
    )
    n = len(t)
    assert 0.2 < t.min() < 0.21 and 0.59 < t.max() < 0.6
    assert abs(float(t.mean()) - 0.4) < 4 * 0.4 / math.sqrt(12 * n)
    assert abs(float((labels == 10).float().mean()) - 0.25) < 4 * math.sqrt(0.25 * 0.75 / n)
    assert eps.shape == (n, 64, 16) and abs(float(eps.std()) - 1) < 0.005
    both = tokens.indices.long()  # every image is seen once per epoch, on either side
    sides = (ids[:, None, None] == both).all(-1)
    assert sides.any(1).sum(1).min() >= 1 and torch.equal(sides[:40].any(1).sum(0).clamp(max=1), torch.ones(40).long())
    only_mirrored = sides[:, 1].any(1) & ~sides[:, 0].any(1)
    assert abs(float(only_mirrored.float().mean()) - 0.5) < 4 * math.sqrt(0.25 / n)


def test_the_average_forgets_its_start(config_file: Path, tmp_path: Path) -> None:
    trainer = tiny(config_file, tmp_path, "optimiser.ema_decay=0.25")
    expected = {name: value.detach().clone() for name, value in trainer.model.named_parameters()}
    for step in range(1, 5):
        trainer.train_step()
        decay = min(0.25, (1 + step) / (10 + step))
        for name, value in trainer.model.named_parameters():
            expected[name] = decay * expected[name] + (1 - decay) * value.detach()
    trainer.export()
    exported = load_file(tmp_path / "mind_ema.safetensors")
    for name, value in expected.items():
        torch.testing.assert_close(exported[name], value, rtol=1e-5, atol=1e-7)


def test_the_gradient_is_clipped(config_file: Path, tmp_path: Path) -> None:
    trainer = tiny(config_file, tmp_path, "optimiser.clip_norm=1e-3")
    trainer.train_step()
    gradients = [p.grad.flatten() for p in trainer.model.parameters() if p.grad is not None]
    assert float(torch.cat(gradients).norm()) == pytest.approx(1e-3, rel=1e-3)


def test_the_rate_warms_up_and_stays_or_falls(config_file: Path, tmp_path: Path) -> None:
    overrides = ("optimiser.steps=100", "optimiser.warmup_steps=10", "optimiser.learning_rate=0.5")
    trainer = tiny(config_file, tmp_path, *overrides)
    assert [trainer.rate(step) for step in (0, 4, 9, 10, 50, 99)] == pytest.approx([0.05, 0.25, 0.5, 0.5, 0.5, 0.5])
    trainer.config = load_config(config_file, [*overrides, "optimiser.final_learning_rate=0.1"])
    assert [trainer.rate(step) for step in (4, 10, 55)] == pytest.approx([0.25, 0.5, 0.3])
    for batch, peak in ((128, 5e-5), (1024, 4e-4), (2048, 4e-4)):
        chosen = load_config(config_file, [f"optimiser.batch_size={batch}", "optimiser.learning_rate=null"])
        assert chosen.optimiser.peak == pytest.approx(peak)


# --- what a run leaves behind -----------------------------------------------------------------------------------------


def test_a_run_leaves_scores_pictures_and_weights(config_file: Path, held_out: str, tmp_path: Path) -> None:
    overrides = [
        held_out, "validate_every=4", "validation_images=20", "export_dtype=float16",
        "preview={grid_every: 4, per_class: 2, classes: 3, batch_size: 4, sampler: {steps: 2, top_k: 5}}",
        "optimiser.steps=5",
    ]  # fmt: skip
    path = train(load_config(config_file, overrides), tmp_path, device="cpu")
    lines = logged(tmp_path)
    validated = [line for line in lines if "validation_loss" in line]
    assert [line["step"] for line in validated] == [4, 5]
    assert {key for key in validated[0] if key != "step"} == {
        f"validation{which}_{term}" for which in ("", "_ema") for term in ("loss", "ce", "mse")
    }
    assert validated[0]["validation_ce"] < math.log(512) + 1 / 6  # the training images are among them
    assert all(line["peak_memory_gib"] > 0 for line in RunFolder(tmp_path).metrics() if "loss" in line)
    assert sorted(p.name for p in (tmp_path / "samples").iterdir()) == ["step_00000004.png", "step_00000005.png"]
    model = load_mind(path)
    assert model.config == load_config(config_file).mind
    assert load_file(path)["head.linear.weight"].dtype == torch.float16
    assert torch.equal(model.rotary.inv_freq, Mind(model.config).rotary.inv_freq)  # a table, not a weight: not rounded
    header = read_metadata(path)
    assert json.loads(header["tokenizer"])["release"] == "fashion32" and header["steps"] == "5"
    assert json.loads(header["sampler"]) == {"steps": 2, "top_k": 5}


def test_validation_is_the_same_for_the_same_weights(config_file: Path, held_out: str, tmp_path: Path) -> None:
    trainer = tiny(config_file, tmp_path, held_out, "validation_images=20", "validate_every=1")
    first = trainer.validate()
    assert trainer.validate() == first
    assert first["validation_loss"] == first["validation_ema_loss"]
    trainer.train_step()
    assert trainer.validate() != first


def test_tensorboard_has_what_the_metrics_have(config_file: Path, tmp_path: Path) -> None:
    accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator", reason="tensorboard is not installed"
    )
    train(load_config(config_file, ["track=[tensorboard]", "optimiser.steps=3"]), tmp_path, device="cpu")
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [e.value for e in events.Scalars("loss")] == pytest.approx([line["loss"] for line in logged(tmp_path)])


# --- what stops a run -------------------------------------------------------------------------------------------------


def test_an_infinite_loss_stops_and_keeps_the_last_good_checkpoint(config_file: Path, tmp_path: Path) -> None:
    trainer = tiny(config_file, tmp_path)
    trainer.train_step()
    trainer.save()
    good = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    with torch.no_grad():
        trainer.model.head.linear.bias[3] = float("nan")
        before = trainer.model.blocks[0].qkv.weight.clone()  # type: ignore[union-attr,operator]
    with pytest.raises(
        UserError, match=r"not finite at step 1: loss, ce.*last good checkpoint is .*step_00000001.*lower"
    ):
        trainer.run()
    assert torch.equal(trainer.model.blocks[0].qkv.weight, before)  # type: ignore[union-attr,arg-type]
    again = tiny(config_file, tmp_path)
    assert again.step == 1
    assert all(torch.equal(value, good[name]) for name, value in again.model.state_dict().items())


def test_an_infinite_gradient_of_a_finite_loss_stops_too(config_file: Path, tmp_path: Path) -> None:
    trainer = tiny(config_file, tmp_path)
    trainer.model.head.linear.bias.register_hook(lambda gradient: gradient * float("inf"))
    before = trainer.model.head.linear.bias.detach().clone()
    with pytest.raises(UserError, match="not finite at step 0: the gradient; there is no checkpoint yet"):
        trainer.train_step()
    assert torch.equal(trainer.model.head.linear.bias, before)


def test_another_configuration_does_not_continue_a_run(config_file: Path, tmp_path: Path) -> None:
    tiny(config_file, tmp_path)
    with pytest.raises(UserError, match=r"another configuration \(.* is .* there, .* here\)"):
        tiny(config_file, tmp_path, "loss.mse_weight=0.5")


def test_other_training_images_do_not_continue_a_run(config_file: Path, tmp_path: Path) -> None:
    """Of the configuration nothing changes: the folder of images is the same."""
    folder, out = tmp_path / "images", tmp_path / "run"
    for number in range(8):
        file = folder / str(number % 2) / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (32, 32), (30 * number, 9, 9)).save(file)
    changes = (f"data.train=imagefolder:{folder}", "data.image_size=32", "data.limit=null")
    tiny(config_file, out, *changes)
    tiny(config_file, out, *changes)  # unchanged, it continues
    Image.new("RGB", (32, 32)).save(folder / "1" / "9.png")
    with pytest.raises(UserError, match=rf"{out} holds a run on data that have changed since \(data.train is "):
        tiny(config_file, out, *changes)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optimiser.accumulate=3", "batch_size 8 cannot be shared by 1 ranks in 3 parts"),
        ("model.vocab_size=300", r"outside the model's vocabulary of 300"),
        ("model.num_classes=4", r"labels 0 to 9, the model 4 classes"),
        ("model.size=mind-q", "unknown MIND size 'mind-q'"),
        ("model.size=5", "model: size must be a name, got 5"),
        ("optimiser.betas=[-0.1,0.9]", r"optimiser\.betas\.0: Input should be greater than or equal to 0"),
        ("model.hidden_size=15", r"num_heads \(2\) must divide hidden_size \(15\)"),
        ("data.tokenizer=kl", "tokenizer 'kl' is continuous"),
        ("data.store=nowhere", "give either train"),
        ("validate_every=2", "validate_every needs data.validation"),
        ("track=[tensorbord]", "track.0: Input should be 'tensorboard' or 'wandb'"),
        ("loss.soft_topk_norm=unit", "loss.soft_topk_norm: Input should be"),
        ("times.low=0.9999", r"low \(0.9999\) must be below high \(0.999\)"),
    ],
)
def test_what_does_not_fit_is_named_before_training(
    config_file: Path, tmp_path: Path, override: str, message: str
) -> None:
    with pytest.raises(UserError, match=message) as caught:
        tiny(config_file, tmp_path, override)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("file", sorted(CONFIGS.glob("*.yaml")), ids=lambda file: file.stem)
def test_shipped_configurations_fit_together(file: Path) -> None:
    config = load_config(file)
    assert isinstance(config, TrainConfig) and isinstance(config.mind, MindConfig)


def test_an_attempt_that_is_refused_leaves_the_folder_free(config_file: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"set model\.num_classes"):
        train(load_config(config_file, ["model.num_classes=5"]), tmp_path, device="cpu")
    train(load_config(config_file, ["optimiser.steps=1"]), tmp_path, device="cpu")


def test_a_finished_run_keeps_its_exports_as_they_are(config_file: Path, tmp_path: Path) -> None:
    config = load_config(config_file, ["optimiser.steps=1"])
    before = train(config, tmp_path, device="cpu").read_bytes()
    assert train(config, tmp_path, device="cpu").read_bytes() == before


def test_weights_that_are_not_finite_are_not_saved(config_file: Path, tmp_path: Path) -> None:
    trainer = tiny(config_file, tmp_path)
    trainer.train_step()
    trainer.save()
    good = RunFolder(tmp_path).newest()
    trainer.train_step()
    next(iter(trainer.model.parameters())).data.fill_(torch.inf)
    with pytest.raises(UserError, match=r"not finite at step 2: weights; the last good checkpoint is .*step_00000001"):
        trainer.save()
    assert RunFolder(tmp_path).newest() == good


def test_a_missing_judge_is_noticed_before_the_first_step(config_file: Path, tmp_path: Path) -> None:
    overrides = ["preview.score_every=100", "preview.extractor=foo"]
    with pytest.raises(UserError, match="unknown feature extractor 'foo'"):
        train(load_config(config_file, overrides), tmp_path, device="cpu")
    assert logged(tmp_path) == []
