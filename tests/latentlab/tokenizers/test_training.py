"""The tokenizer trainer: it learns, resumes bit by bit after kill -9, stops cleanly, and names what is wrong."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file

from latentlab.errors import UserError
from latentlab.tokenizers import load_tokenizer
from latentlab.tokenizers.config import CONFIGS, TrainConfig, load_config
from latentlab.tokenizers.training import Trainer, train
from latentlab.weights import read_metadata

from .tiny_maetok import ARCHITECTURE

TINY = {
    "name": "ibq",
    "release": "tiny",
    "architecture": {
        "quantizer": "ibq", "ch": 32, "ch_mult": [1, 1], "num_res_blocks": 1, "attn_resolutions": [],
        "resolution": 32, "z_channels": 4, "embed_dim": 4, "n_embed": 16,
    },
    "data": {"train": "fashion:test", "validation": "fashion:test", "limit": 40},
    "loss": {"l1": 1.0, "commitment": 1.0, "codebook": 0.25, "entropy": 0.05},
    "optimiser": {"steps": 8, "batch_size": 4, "learning_rate": 1e-3, "warmup_steps": 2},
    "log_every": 1, "validate_every": 8, "checkpoint_every": 2, "validation_images": 8, "export_dtype": "float32",
}  # fmt: skip


EVERYTHING: dict[str, Any] = {
    "architecture": {
        "quantizer": "kl", "ch": 8, "ch_mult": [1, 1, 1, 1], "norm_groups": 4, "num_res_blocks": 1, "attn_resolutions": [],
        "resolution": 32, "z_channels": 4,
    },
    "loss": {"l1": 1.0, "kl": 1e-4},
    "objectives": {
        "noise": {"sigma": 0.1},
        "masking": {"probability": 0.5, "noise_ratio": 0.2, "mask_ratio": 0.2},
        "alignment": {"network": "efficientnet-lite0", "mcos": 1.0, "mdms": 1.0},
        "equivariance": {"transforms": ["scale", "rotate", "flip"]},
        "local_correlation": {"weight": 0.05, "threshold": 0.9},
        "low_pass": {},
        "adversarial": {"width": 8, "layers": 2, "start": 1, "lecam": 0.1},
    },
}  # fmt: skip


TRANSFORMER: dict[str, Any] = {
    "family": "transformer",
    "architecture": {
        "quantizer": "kl", "downsampling": 8, "embed_dim": 4, "width": 16, "depth": 1, "heads": 2, "resolution": 32,
        "mask_ratio": 0.5,
    },
    "loss": {"l1": 1.0, "kl": 1e-4},
}  # fmt: skip
IN_PARTS: dict[str, Any] = {
    "name": "in parts", "rfd": "efficientnet-lite0",
    "architecture": EVERYTHING["architecture"],
    "loss": {"l1": 1.0, "kl": 1e-4},
    "objectives": {
        "alignment": {"network": "efficientnet-lite0", "mdms": 1.0, "adaptive": False},
        "adversarial": {"width": 8, "layers": 2, "adaptive": False},
    },
    "optimiser": {"steps": 3, "batch_size": 8, "learning_rate": 1e-3, "accumulate": 2},
}  # fmt: skip
MAETOK: dict[str, Any] = {"family": "maetok", "architecture": ARCHITECTURE, "loss": {"l1": 1.0}}
MAETOK_DECODER = MAETOK | {"architecture": MAETOK["architecture"] | {"stage": "decoder", "anneal_steps": 6}}


def tiny_config(folder: Path, changes: dict[str, Any]) -> TrainConfig:
    """Return `TINY` with changes; the second stage of MAETok starts from fresh weights in ``folder``."""
    if changes["architecture"].get("stage") == "decoder":
        first = Trainer(TrainConfig.model_validate(TINY | MAETOK), folder / "first stage", torch.device("cpu")).export()
        changes = changes | {"start_from": str(first)}
    return TrainConfig.model_validate(TINY | changes)


RUN_AND_KILL = """
import os, signal, sys
from pathlib import Path
import torch
from latentlab.tokenizers.training import TrainConfig, Trainer

class Killed(Trainer):
    def train_step(self):
        if self.step > int(sys.argv[3]):
            os.kill(os.getpid(), signal.SIGKILL)
        return super().train_step()

Killed(TrainConfig.model_validate_json(sys.argv[1]), Path(sys.argv[2]), torch.device("cpu")).run()
"""


@pytest.fixture
def config_file(tmp_path: Path) -> Path:
    file = tmp_path / "tiny.yaml"
    file.write_text(yaml.safe_dump(TINY))
    return file


def lines(out: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    ("kill_after", "changes"),
    [(0, TINY), (4, TINY), (2, EVERYTHING), (2, TRANSFORMER), (2, MAETOK), (2, MAETOK_DECODER)],
    ids=["at once", "codes", "everything", "transformer", "maetok", "maetok's decoder"],
)
def test_a_killed_run_ends_with_the_same_bits(tmp_path: Path, kill_after: int, changes: dict[str, Any]) -> None:
    config = tiny_config(tmp_path, changes)
    straight = train(config, tmp_path / "straight", device="cpu")
    killed = tmp_path / "killed run"
    command = [sys.executable, "-c", RUN_AND_KILL, config.model_dump_json(), str(killed), str(kill_after)]
    assert subprocess.run(command, check=False, stderr=subprocess.DEVNULL).returncode == -signal.SIGKILL
    assert lines(killed)[-1]["step"] == kill_after + 1
    resumed = train(config, killed, device="cpu")
    first, second = load_file(straight), load_file(resumed)
    assert list(first) == list(second) and all(torch.equal(first[name], second[name]) for name in first)
    assert read_metadata(straight) == read_metadata(resumed)
    assert ("discriminator" in lines(killed)[1]) == ("objectives" in changes) and "discriminator" not in lines(killed)[
        0
    ]
    assert [{k: v for k, v in line.items() if k != "seconds_per_step"} for line in lines(killed)] == [
        {k: v for k, v in line.items() if k != "seconds_per_step"} for line in lines(tmp_path / "straight")
    ]


def test_sigterm_saves_and_the_next_call_finishes(config_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    command = [
        sys.executable, "-m", "latentlab", "train", "tokenizer", "--config", str(config_file),
        "--set", "optimiser.steps=100000", "--set", "checkpoint_every=100000", "--out", str(out), "--device", "cpu",
    ]  # fmt: skip
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while not (out / "metrics.jsonl").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.terminate()
    _, errors = process.communicate(timeout=60)
    assert process.returncode not in (0, -signal.SIGTERM)
    assert "the same command continues" in errors and "Traceback" not in errors
    saved = list((out / "checkpoints").glob("*.safetensors"))
    assert len(saved) == 1


def test_training_lowers_the_loss_and_the_weights_load(config_file: Path, tmp_path: Path) -> None:
    overrides = ["optimiser.steps=40", "optimiser.learning_rate=0.003", "loss.entropy=0", "validate_every=40"]
    weights = train(load_config(config_file, overrides), tmp_path / "run", device="cpu")
    history = [line["l1"] for line in lines(tmp_path / "run") if "l1" in line]
    assert sum(history[-5:]) < 0.6 * sum(history[:5])
    tokenizer = load_tokenizer("ibq", weights=weights)
    assert tokenizer.spec.codebook_size == 16 and tokenizer.spec.release == "tiny"
    images = torch.zeros(2, 3, 32, 32)
    assert tokenizer.decode(tokenizer.encode(images)).shape == images.shape
    assert (tmp_path / "run" / "reconstructions" / "step_00000040.png").stat().st_size > 0


def test_the_average_is_what_is_exported(config_file: Path, tmp_path: Path) -> None:
    trainer = Trainer(load_config(config_file), tmp_path / "run", torch.device("cpu"))
    expected = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    for step in range(3):
        trainer.train_step()
        decay = min(0.999, (2 + step) / (11 + step))
        current = trainer.model.state_dict()
        expected = {name: decay * value + (1 - decay) * current[name] for name, value in expected.items()}
    exported = load_file(trainer.export())
    for name, value in expected.items():
        torch.testing.assert_close(exported[name], value, rtol=1e-5, atol=1e-7)


def test_an_infinite_loss_stops_and_keeps_the_last_good_checkpoint(config_file: Path, tmp_path: Path) -> None:
    trainer = Trainer(load_config(config_file), tmp_path / "run", torch.device("cpu"))
    trainer.train_step()
    saved = trainer.save()
    good = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    with torch.no_grad():
        trainer.model.decoder.conv_out.bias.fill_(float("nan"))
        before = trainer.model.decoder.conv_in.weight.clone()
    with pytest.raises(UserError, match=r"not finite at step 1 \(l1\).*step_00000001"):
        trainer.train_step()
    assert torch.equal(trainer.model.decoder.conv_in.weight, before)
    again = Trainer(load_config(config_file), tmp_path / "run", torch.device("cpu"))
    assert saved.exists() and again.step == 1
    assert torch.equal(again.model.state_dict()["decoder.conv_out.bias"], good["decoder.conv_out.bias"])


@pytest.mark.parametrize("whose", ["tokenizer", "discriminator"])
def test_an_infinite_gradient_of_a_finite_loss_changes_nothing(whose: str, config_file: Path, tmp_path: Path) -> None:
    """The discriminator's comes after the tokenizer's, which must not have moved by then."""
    settings = TrainConfig.model_validate(
        TINY | EVERYTHING | {"objectives": {"adversarial": {"width": 8, "layers": 2}}}
    )
    trainer = Trainer(settings, tmp_path / "run", torch.device("cpu"))
    trainer.train_step()
    saved = trainer.save()
    assert trainer.adversary is not None and saved is not None
    players = {"tokenizer": trainer.model, "discriminator": trainer.adversary.discriminator}
    parameter = next(p for p in players[whose].parameters() if p.requires_grad)
    parameter.register_hook(lambda gradient: gradient * float("inf"))
    before = [[p.detach().clone() for p in player.parameters()] for player in players.values()]
    with pytest.raises(UserError, match=rf"gradient of the {whose} is not finite at step 1; .*step_00000001"):
        trainer.train_step()
    for player, kept in zip(players.values(), before, strict=True):
        assert all(map(torch.equal, player.parameters(), kept))
    again = Trainer(settings, tmp_path / "run", torch.device("cpu"))
    assert saved.exists() and again.step == 1 and all(map(torch.equal, again.model.parameters(), before[0]))


def test_an_earlier_stage_that_is_missing_is_told(config_file: Path, tmp_path: Path) -> None:
    weights = tmp_path / "maetok-mask" / "tokenizer.safetensors"
    wanted = rf"`latentlab train tokenizer --config maetok-mask --out {weights.parent}`"
    with pytest.raises(UserError, match=wanted):
        Trainer(load_config(config_file, [f"start_from={weights}"]), tmp_path / "run", torch.device("cpu"))
    other = tmp_path / "mine" / "tokenizer.safetensors"
    with pytest.raises(UserError, match=f"train the earlier stage first, with --out {other.parent}$"):
        Trainer(load_config(config_file, [f"start_from={other}"]), tmp_path / "run", torch.device("cpu"))


def test_a_run_that_has_begun_does_without_the_earlier_stage(config_file: Path, tmp_path: Path) -> None:
    weights = Trainer(load_config(config_file), tmp_path / "first", torch.device("cpu")).export()
    config = load_config(config_file, [f"start_from={weights}", "seed=1"])
    trainer = Trainer(config, tmp_path / "run", torch.device("cpu"))
    trainer.train_step()
    trainer.save()
    weights.unlink()
    again = Trainer(config, tmp_path / "run", torch.device("cpu"))
    assert again.step == 1 and all(map(torch.equal, again.model.parameters(), trainer.model.parameters()))


@pytest.mark.parametrize("name", ["maetok"])
def test_headers_name_the_folder_that_the_next_stage_starts_from(name: str) -> None:
    start = load_config(name).start_from
    assert start is not None
    command = f"latentlab train tokenizer --config {start.parent.name} --out {start.parent}\n"
    headers = [file.read_text() for file in CONFIGS.glob(f"{name}*.yaml")]
    assert len(headers) == 2 and all(command in header for header in headers)


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        ("data.validation=imagefolder:nowhere", "nowhere"),
        ("rfd=nonsense", "nonsense"),
        ("loss.kl=1", "loss.kl has a weight"),
        ("objectives.adversarial.layers=5", "lower objectives.adversarial.layers"),
    ],
)
def test_an_attempt_that_is_refused_leaves_the_folder_free(
    config_file: Path, tmp_path: Path, change: str, wanted: str
) -> None:
    with pytest.raises(UserError, match=wanted):
        train(load_config(config_file, [change]), tmp_path / "run", device="cpu")
    train(load_config(config_file, ["optimiser.steps=1"]), tmp_path / "run", device="cpu")


def test_another_configuration_does_not_continue_a_run(config_file: Path, tmp_path: Path) -> None:
    Trainer(load_config(config_file), tmp_path / "run", torch.device("cpu"))
    with pytest.raises(UserError, match="another configuration"):
        Trainer(load_config(config_file, ["seed=1"]), tmp_path / "run", torch.device("cpu"))


def test_other_training_images_do_not_continue_a_run(config_file: Path, tmp_path: Path) -> None:
    """Of the configuration nothing changes: the folder of images is the same."""
    folder, out = tmp_path / "images", tmp_path / "run"
    folder.mkdir()
    for number in range(6):
        Image.new("RGB", (32, 32), (40 * number, 9, 9)).save(folder / f"{number}.png")
    changes = [f"data.train=imagefolder:{folder}", "data.image_size=32", "optimiser.steps=3"]
    config = load_config(config_file, changes)

    def refused() -> None:
        with pytest.raises(UserError, match=rf"{out} holds a run on data that have changed since \(data.train is "):
            train(config, out, device="cpu")

    begun = Trainer(config, out, torch.device("cpu"))
    begun.train_step()
    begun.save()
    first = (folder / "0.png").rename(tmp_path / "0.png")
    refused()
    first.rename(folder / "0.png")
    (out / "data.json").unlink()  # as in a folder of an earlier version
    train(config, out, device="cpu")
    Image.new("RGB", (32, 32)).save(folder / "6.png")
    refused()  # a finished run, too


OBJECTIVE_TERMS = {
    "eq": {"equivariance"},
    "vavae": {"mcos", "mdms", "alignment", "alignment_weight"},
    "maetok-mask": {"auxiliary"},
}


@pytest.mark.parametrize("name", [file.stem.partition("_")[0] for file in sorted(CONFIGS.glob("*.yaml"))])
def test_shipped_configurations_take_a_step_with_every_term(name: str, tmp_path: Path) -> None:
    config = load_config(name, ["optimiser.batch_size=2", "data.limit=20"])
    if config.start_from is not None:
        earlier = load_config(config.start_from.parent.name, ["data.limit=20"])
        first = Trainer(earlier, tmp_path / "earlier", torch.device("cpu")).export()
        config = config.model_copy(update={"start_from": first})
    terms = Trainer(config, tmp_path / "run", torch.device("cpu")).train_step()
    switches = config.loss.model_dump(exclude={"auxiliary"}).items()
    wanted = {key for key, weight in switches if weight and not key.startswith("perceptual_")}
    assert set(terms) == wanted | OBJECTIVE_TERMS.get(name, set()) | {"loss"}


@pytest.mark.parametrize("quick", [True, False])
def test_bfloat16_is_used_where_it_is_quick_and_stays_close(
    config_file: Path, tmp_path: Path, quick: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("latentlab.tokenizers.losses.quick_bfloat16", lambda device: quick)
    losses = []
    for precision in ("float32", "bfloat16"):
        config = load_config(config_file, [f"precision={precision}"])
        losses.append(Trainer(config, tmp_path / precision, torch.device("cpu")).train_step()["l1"])
    assert (losses[0] != losses[1]) == quick and abs(losses[0] - losses[1]) < 0.02 * losses[0]


# --- ranks and parts --------------------------------------------------------------------------------------------------

TWO_RANKS = """
import sys
from pathlib import Path
import torch
from latentlab.ranks import joined_ranks
from latentlab.tokenizers.training import TrainConfig, Trainer

with joined_ranks() as ranks:
    for text in sys.argv[2:]:
        config = TrainConfig.model_validate_json(text)
        Trainer(config, Path(sys.argv[1]) / config.name, torch.device("cpu"), ranks).run()
"""


def launch(folder: Path, *configs: TrainConfig) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node=2", f"--master-port={port}", "--no-python"]
    texts = [config.model_dump_json() for config in configs]
    done = subprocess.run(
        [sys.executable, *launcher, sys.executable, "-c", TWO_RANKS, str(folder), *texts],
        capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, timeout=600, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def distance(first: Path, second: Path) -> float:
    """Return how far weights are from each other, relative to their size."""
    a, b = load_file(first), load_file(second)
    assert a.keys() == b.keys()
    apart = sum(float((a[name].double() - b[name].double()).square().sum()) for name in a)
    return (apart / sum(float(value.double().square().sum()) for value in a.values())) ** 0.5


def test_two_ranks_train_what_one_does(tmp_path: Path) -> None:
    """Every objective with its random numbers, adaptive weights and the adversary; a codebook with its entropy; every family.

    The first step is the same but for rounding; Adam then moves weights whose gradient is rounding by up to the learning rate.
    Computed in float64 the terms of all three steps agree to 2e-9.
    """
    objectives = EVERYTHING["objectives"] | {"adversarial": {"width": 8, "layers": 2, "lecam": 0.1}}
    shorter = {"optimiser": {"steps": 3, "batch_size": 8, "learning_rate": 1e-3}}
    kinds = {
        "everything": EVERYTHING | {"objectives": objectives}, "codes": TINY, "transformer": TRANSFORMER, "maetok": MAETOK,
        "maetok-decoder": MAETOK_DECODER,
    }  # fmt: skip
    configs = [
        tiny_config(tmp_path, changes | shorter | {"name": name, "rfd": "efficientnet-lite0"})
        for name, changes in kinds.items()
    ] + [tiny_config(tmp_path, IN_PARTS)]
    launch(tmp_path / "two", *configs)
    for config in configs:
        one = train(config, tmp_path / "one" / config.name, device="cpu")
        assert distance(one, tmp_path / "two" / config.name / one.name) < 1e-3
        mine, theirs = lines(tmp_path / "one" / config.name), lines(tmp_path / "two" / config.name)
        assert [line["step"] for line in mine] == [line["step"] for line in theirs] == [1, 2, 3, 3]
        for own, other, tolerance in zip(mine[:3], theirs[:3], (1e-4, 0.05, 0.05), strict=True):
            for line in (own, other):
                del line["seconds_per_step"]
            assert other == pytest.approx(own, rel=tolerance, abs=1e-5)
        assert mine[3]["validation_rfd_efficientnet_lite0"] > 0
    assert lines(tmp_path / "one" / "everything")[0]["discriminator"] > 0


def test_parts_of_a_step_add_up(config_file: Path, tmp_path: Path) -> None:
    overrides = ["architecture.quantizer=vq", "loss.entropy=0", "optimiser.steps=3"]
    whole = train(load_config(config_file, overrides), tmp_path / "whole", device="cpu")
    parts = train(load_config(config_file, [*overrides, "optimiser.accumulate=4"]), tmp_path / "parts", device="cpu")
    assert 0 < distance(whole, parts) < 1e-3


def test_batches_that_cannot_be_shared_are_refused(config_file: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="batch_size 4 cannot be shared by 1 ranks in 3 parts"):
        Trainer(load_config(config_file, ["optimiser.accumulate=3"]), tmp_path / "run", torch.device("cpu"))
    assert not (tmp_path / "run" / "config.yaml").exists()
