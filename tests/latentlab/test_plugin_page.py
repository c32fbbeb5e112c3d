"""docs/plugins.md: the package it builds is installed as written, and its commands and checks are run."""

import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from latentlab import LatentStore

PAGE = (Path(__file__).parents[2] / "docs" / "plugins.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, flags=re.DOTALL)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with the page's package, installed as an editable installation would, and weights for it."""
    code, _ = blocks("python")
    (tmp_path / "my_tokenizers.py").write_text(code)
    project = tomllib.loads(blocks("toml")[0])["project"]
    info = tmp_path / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")
    points = project["entry-points"]["latentlab.tokenizers"]
    lines = "".join(f"{name} = {value}\n" for name, value in points.items())
    (info / "entry_points.txt").write_text(f"[latentlab.tokenizers]\n{lines}")
    torch.manual_seed(0)
    state = {
        "down.weight": torch.randn(12, 3, 4, 4) / 7,
        "down.bias": torch.zeros(12),
        "up.weight": torch.randn(12, 3, 4, 4) / 4,
        "up.bias": torch.zeros(3),
    }
    save_file(state, tmp_path / "patches.safetensors")
    return tmp_path


def run(place: Path, *command: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(place), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "PYTHONPATH": path, "LATENTLAB_HOME": str(place / "home")}
    return subprocess.run(
        [sys.executable, *command], cwd=place, env=environment, capture_output=True, text=True, check=False
    )


def test_the_example_is_about_thirty_lines() -> None:
    lines = [line for line in blocks("python")[0].splitlines() if line.strip()]
    assert len(lines) <= 35


def test_the_command_of_the_page_measures_the_tokenizer_of_the_page(place: Path) -> None:
    command = next(line for line in PAGE.splitlines() if line.startswith("    latentlab analyze"))
    words = command.split()[1:]
    words[words.index("imagefolder:DIR")] = "fashion:test"
    done = run(place, "-m", "latentlab", *words, "--limit", "12", "--metrics", "sec", "--json", "--device", "cpu")
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout)
    assert results["tokenizer"]["name"] == "patches" and len(results["tokenizer"]["weights_sha256"]) == 64
    assert LatentStore(results["latents"]["path"]).shape == (12, 8, 8)
    assert "patches" in run(place, "-m", "latentlab", "tokenizers").stdout
    without = run(place, "-m", "latentlab", "encode", "--tokenizer", "patches", "--out", "x")
    assert without.returncode == 2 and "patches has no weights of its own" in without.stderr


def test_the_checks_of_the_page_pass(place: Path) -> None:
    done = run(place, "-c", blocks("python")[1])
    assert done.returncode == 0, done.stderr


def test_fields_and_code_of_a_plugin_are_part_of_its_latents_name(place: Path) -> None:
    """Its ``weights_sha256`` is that of the file alone, and latentlab cannot see what fields and code did."""
    code = """
from latentlab import load_tokenizer
from latentlab.encoding import weights_digest
given = [load_tokenizer("patches", weights="patches.safetensors", architecture=one) for one in (None, {}, {"channels": 12})]
plain, empty, fields = map(weights_digest, given)
assert plain == empty and len({plain, fields, given[0].spec.weights_sha256}) == 3
"""
    done = run(place, "-c", code)
    assert done.returncode == 0, done.stderr


def test_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([^)]+)\)", PAGE):
        assert (Path(__file__).parents[2] / "docs" / target).exists()
