"""Every command and the Python example of the README work as written (on less data)."""

import argparse
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import typer.main
from safetensors.torch import save_file

from latentlab.cli.main import app

from .latentlab.study.example_study import example_study

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"


def documented(page: Path) -> list[str]:
    lines = page.read_text(encoding="utf-8").splitlines()
    return [line.split("  #")[0].strip() for line in lines if line.startswith("    latentlab ")]


COMMANDS = documented(README)


def _set(*settings: str) -> list[str]:
    return [word for setting in settings for word in ("--set", setting)]


LESS = {
    "analyze": ["--limit", "60", "--metrics", "sec,lnc", "--device", "cpu"],
    "compare": ["--limit", "60", "--metrics", "sec", "--device", "cpu"],
    "collapse": ["--images", "1", "--seeds", "1", "--iterations", "1", "--device", "cpu"],
    "encode": ["--limit", "60", "--device", "cpu"],
    "train tokenizer": [*_set("optimiser.steps=2", "data.limit=20", "validation_images=8"), "--device", "cpu"],
    "train mind": [
        *_set(
            "optimiser.steps=2",
            "data.limit=20",
            "validation_images=8",
            "preview.per_class=1",
            "preview.sampler.steps=2",
        ),
        "--device",
        "cpu",
    ],
    "train sit": [
        *_set(
            "optimiser.steps=2",
            "data.limit=20",
            "validation_images=8",
            "preview.per_class=1",
            "preview.sampler.steps=2",
        ),
        "--device",
        "cpu",
    ],
    "sample mind": [*_set("steps=2"), "--device", "cpu"],
    "evaluate": ["--reference-limit", "20", "--device", "cpu"],
    "trajectories": ["--n", "2", *_set("steps=3"), "--device", "cpu"],
    "study run": ["--dry-run"],  # all of it: test_studies_page.py
    "study generators": [
        *_set("steps=2", "samples=4", "reference_limit=20", "train.data.limit=20", "train.optimiser.batch_size=4"),
        *_set("train.optimiser.warmup_steps=1", "guidance=[1]", "curve=[1]"),
        "--device",
        "cpu",
    ],
    "ablate": [*_set("samples=10", "sample.steps=2", "reference_limit=20"), "--device", "cpu"],
}


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a working directory with a folder ``in`` of latents and a cache of its own."""
    monkeypatch.setenv("LATENTLAB_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in").mkdir()
    tensors = {"latents": torch.randn(80, 4, 4, 4), "labels": torch.arange(80) % 4}
    images = np.random.default_rng(0).integers(256, size=(20, 32, 32, 3), dtype=np.uint8)
    (tmp_path / "runs" / "sample-mind-fashion32").mkdir(parents=True)
    np.savez(tmp_path / "runs" / "sample-mind-fashion32" / "samples_20x32x32x3.npz", images, np.arange(20) % 10)
    save_file(tensors, tmp_path / "in" / "latents_rank00_shard000.safetensors")
    torch.save({"state_dict": tensors, "args": argparse.Namespace()}, tmp_path / "last.ckpt")
    study = example_study()
    study.write(tmp_path / "in")
    study.by_tokenizer("sit", 1.0).rename(columns={"gfd_fashion_classifier": "gfid"}).to_csv(tmp_path / "results.csv")
    (tmp_path / "studies").symlink_to(ROOT / "studies")
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")  # refused, whether there is a network or not
    return tmp_path


def test_the_readme_documents_every_command() -> None:
    assert {command.split()[1] for command in COMMANDS} == set(typer.main.get_command(app).commands)


@pytest.mark.parametrize("command", COMMANDS)
def test_documented_command(command: str, place: Path) -> None:
    words = shlex.split(command.replace("--out DIR", "--out out").replace("DIR", "in"))[1:]
    done = subprocess.run(
        [sys.executable, "-m", "latentlab", *words, *LESS.get(" ".join(words[:2]), LESS.get(words[0], []))],
        capture_output=True,
        text=True,
        check=False,
    )
    if "imagefolder" in command:  # the published weights are not part of a test machine
        assert done.returncode == 2 and "imagenet256_16384.ckpt" in done.stderr, done.stderr
    elif words[0] == "fetch":
        assert done.returncode == 2 and "taef2_encoder.pth" in done.stderr.splitlines()[-1], done.stderr
    else:
        assert done.returncode == 0, done.stderr


def test_python_example(place: Path) -> None:
    example = "".join(re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.DOTALL))
    rng = np.random.default_rng(0)
    names = {
        "torch": torch,
        "z": rng.normal(size=(60, 4, 4, 4)),
        "y": np.arange(60) % 3,
        "images": torch.zeros(2, 3, 32, 32),
    }
    exec(example.replace('"DIR"', '"in"'), names)
    assert 0 < names["m"].value < 1 and names["codes"].shape == (2, 8, 8)
    assert names["samples"].indices.shape == (3, 64) and names["logits"].shape == (3, 64, 512)
