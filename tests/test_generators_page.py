"""docs/generators.md and docs/data.md: what they name is there, and every command runs (on less data)."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from latentlab.data import data_sources
from latentlab.data.folder import SUFFIXES
from latentlab.files import file_sha256, home
from mind.kinds import KINDS, read_run

from .test_readme import documented

DOCS = Path(__file__).parents[1] / "docs"
PAGE, DATA = DOCS / "generators.md", DOCS / "data.md"


def _set(*settings: str) -> list[str]:
    return [word for setting in settings for word in ("--set", setting)]


LESS = {
    "train": _set("optimiser.steps=2", "optimiser.batch_size=4", "preview.grid_every=0"),
    "encode": ["--limit", "20"],
    "sample": _set("steps=2"),
}
EMBEDDED = _set("data.limit=20", "validation_images=8")


def run(words: list[str]) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "latentlab", *words, "--device", "cpu"]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_every_command_of_the_page_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LATENTLAB_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    commands = documented(PAGE)
    assert {command.split()[1] for command in commands} == {"train", "encode", "sample"}
    for command in commands:
        words = ["2" if word == "100" else word for word in shlex.split(command)[1:]]
        encoded_here = words[0] == "train" and "data.store=latents" not in words
        done = run([*words, *LESS[words[0]], *(EMBEDDED if encoded_here else [])])
        assert done.returncode == 0, f"{command}\n{done.stderr}"
    settings = json.loads(Path("runs", "images", "settings.json").read_text())["request"]
    assert settings["sampler"]["cfg_scale"] == 1.5
    assert settings["weights_sha256"] == file_sha256(Path("runs", "sit", "sit_ema.safetensors"))


def test_configurations_of_the_page_are_those_that_ship() -> None:
    rows = re.findall(r"^\| `(\w+)` \| .* \| (`.*?`) \| .* \|$", PAGE.read_text(), re.MULTILINE)
    assert [kind for kind, _ in rows] == list(KINDS)
    for kind, names in rows:
        for name in re.findall(r"`([\w-]+)`", names):
            read_run(kind, name)
    shipped = {path.stem for path in (DOCS.parent / "mind" / "configs").glob("**/*.yaml")}
    told = {name for _, names in rows for name in re.findall(r"`([\w-]+)`", names)}
    others = {
        path.stem
        for kind in ("ablations", "comparisons")
        for path in (DOCS.parent / "mind" / "configs" / kind).glob("*")
    }
    assert shipped - others - told == {"mind-ablation"}  # what ablations train


def test_sources_and_folders_of_the_data_page(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    text = DATA.read_text()
    for usage in data_sources():
        assert f"`{usage.partition('[')[0]}`" in text, usage
    assert all(suffix in text for suffix in SUFFIXES)
    monkeypatch.delenv("LATENTLAB_HOME", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert home() == tmp_path / "latentlab"
