"""The MIND trainer: it learns, leaves what it should, and stops with a reason."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from latentlab.errors import UserError
from latentlab.run_folder import RunFolder
from latentlab.weights import read_metadata
from mind.config import MindConfig
from mind.mind_recipe import train_mind as train
from mind.network import Mind
from mind.released import load_mind
from mind.train_config import CONFIGS, TrainConfig, load_config
from mind.training import kept_weights

from .tiny_run import assert_same_bits, logged, tiny


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


@pytest.mark.parametrize(("asked", "used"), [((), "nothing"), (("recompute=cheap",), "cheap")])
def test_a_small_network_keeps_its_activations_unless_asked(
    asked: tuple[str, ...], used: str, config_file: Path, tmp_path: Path
) -> None:
    assert tiny(config_file, tmp_path / "run", *asked).model.recompute == used


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
