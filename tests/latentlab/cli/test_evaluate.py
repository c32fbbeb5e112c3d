"""``latentlab evaluate`` as a user meets it: the table, the record, one line for every mistake, two ranks."""

import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import typer
from PIL import Image
from typer.testing import CliRunner, Result

from latentlab.cli.evaluate import evaluate
from latentlab.errors import UserError
from latentlab.quality.sample_file import write_sample_file

app = typer.Typer()
app.command()(evaluate)

RNG = np.random.default_rng(0)
QUICK = ("--set", "kid_subset_size=4", "--set", "kid_subsets=2", "--set", "pr_k=2", "--set", "dc_k=2")


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    torch.set_num_threads(1)
    monkeypatch.chdir(tmp_path)
    for name in ("TORCH_HOME", "LATENTLAB_HOME", "HF_HOME"):
        monkeypatch.setenv(name, str(tmp_path / name))
    return tmp_path


@pytest.fixture
def run(here: Path) -> Path:
    """A sampling run of seven images, and a folder of six real ones."""
    folder = here / "runs" / "my run"
    write_sample_file(folder / "samples_7x16x16x3.npz", (7, 16, 16), [blobs(7)], np.zeros(7))
    request = {"n": 7, "seed": 5, "generator": "sit", "precision": "float32", "sampler": {"steps": 9, "cfg_scale": 1.5}}
    (folder / "settings.json").write_text(json.dumps({"request": request, "record": None}))
    (here / "real").mkdir()
    for i, image in enumerate(blobs(6)):
        Image.fromarray(image).resize((20, 24)).save(here / "real" / f"{i}.png")
    return folder


def blobs(n: int) -> np.ndarray:
    return RNG.integers(0, 256, (n, 2, 2, 3)).repeat(8, 1).repeat(8, 2).astype(np.uint8)


def evaluated(*arguments: object) -> Result:
    return CliRunner().invoke(app, [*map(str, arguments)])


def refusal(*arguments: object) -> str:
    result = evaluated(*arguments)
    assert isinstance(result.exception, UserError), result.output
    assert "\n" not in str(result.exception)
    return str(result.exception)


def test_a_run_against_a_folder(run: Path, here: Path) -> None:
    result = evaluated("--samples", run, "--reference", f"imagefolder:{here / 'real'}", *QUICK)
    assert result.exit_code == 0, result.output
    assert re.search(r"7 images of .*my run against 6 images of imagefolder:", result.stdout)
    for name in (
        "fd_efficientnet_lite0",
        "kd_efficientnet_lite0",
        "precision_efficientnet_lite0",
        "coverage_efficientnet_lite0",
    ):
        assert name in result.stdout
    assert "covariances are singular" in result.stdout and not re.search(r"\bfid\b", result.stdout)
    (out,) = (here / "runs").glob("evaluate-my*")
    written = json.loads((out / "results.json").read_text())
    assert f"results  {out.relative_to(here) / 'results.json'}" in result.stdout
    assert written["reference"]["height"] == 16  # as the samples: crops of 16 pixels
    assert written["samples"]["sampling"]["request"]["seed"] == 5
    for measurement in written["measurements"]:
        facts = measurement["provenance"]
        assert (facts["steps"], facts["guidance"], facts["n_reference"]) == (9, {"cfg_scale": 1.5}, 6)
        assert "efficientnet-lite0-57934424.pth" in facts["version"]


def test_json_batch_size_and_kept_features(run: Path, here: Path) -> None:
    options = (
        "--samples",
        run / "samples_7x16x16x3.npz",
        "--reference",
        f"imagefolder:{here / 'real'}",
        *QUICK,
        "--json",
    )
    first = evaluated(*options, "--batch-size", 3, "--out", "one")
    assert first.exit_code == 0, first.output
    kept = sorted((here / "LATENTLAB_HOME/features").iterdir())
    assert len(kept) == 2
    for file in kept:
        file.unlink()
    second = evaluated(*options, "--out", "two")
    found = [json.loads(result.stdout)["measurements"] for result in (first, second)]
    assert [m["value"] for m in found[0]] == [m["value"] for m in found[1]]
    assert json.loads((here / "one" / "results.json").read_text())["measurements"] == found[0]


def test_inceptions_metrics_offline(run: Path, here: Path) -> None:
    options = ("--samples", run, "--reference", f"imagefolder:{here / 'real'}", "--out", "out")
    assert "1 value was not made; is on inception: weights weights-inception" in refusal(*options, "--metrics", "is")
    assert json.loads((here / "out" / "results.json").read_text())["measurements"] == []
    message = refusal(*options, "--metrics", "fd,sfid")
    assert "1 value was not made; sfid on inception-spatial" in message
    assert len(json.loads((here / "out" / "results.json").read_text())["measurements"]) == 1


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--metrics", "fid"), "unknown metric 'fid'. Did you mean"),
        (("--metrics", "fdr"), "give a validation set"),
        (("--extractor", "inseption"), "Did you mean inception"),
        (("--set", "pr_k"), "--set expects OPTION=VALUE"),
        (("--set", "prk=3"), "unknown setting 'prk'. Did you mean pr_k"),
        (("--set", "pr_k=0"), "--set pr_k: Input should be greater than 0"),
        (("--batch-size", 0), "--batch-size must be at least 1"),
        (("--out", "a file"), "--out a file is a file"),
        (("--texts", "none"), "none is not a readable text file"),
        (("--device", "tpu"), "unknown device 'tpu'"),
        (("--reference", "none.npz"), "none.npz does not exist"),
        (("--samples", "real"), "not the folder of a sampling run: write imagefolder:real"),
    ],
)
def test_mistakes(run: Path, here: Path, options: tuple[object, ...], words: str) -> None:
    (here / "a file").write_text("")
    assert words in refusal("--samples", run, "--reference", f"imagefolder:{here / 'real'}", *options)


def test_two_ranks_give_the_same_values(run: Path, here: Path) -> None:
    """Four blocks of four images in two rounds, and where they go on with what an interrupted process left: four of six."""
    write_sample_file(here / "more.npz", (13, 16, 16), [blobs(13)], np.zeros(13))
    options = ["--samples", "more.npz", "--reference", f"imagefolder:{here / 'real'}", *QUICK]
    assert evaluated(*options, "--out", "one").exit_code == 0
    tables = {file: file.read_bytes() for file in (here / "LATENTLAB_HOME/features").iterdir()}
    six, thirteen = sorted(tables, key=lambda file: len(tables[file]))
    thirteen.unlink()
    six.rename(six.with_name(f".{six.name}.part")).write_bytes(tables[six][: 128 + 4 * 1280 * 4 + 1000])
    (here / "command.py").write_text(
        "import typer\nfrom latentlab.cli.evaluate import evaluate\nfrom latentlab.quality import features\n"
        "features._BLOCK = 4\ntyper.run(evaluate)\n"
    )
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", f"--master-port={port}"]
    done = subprocess.run(
        [*launcher, "command.py", *options, "--batch-size", "1", "--out", "two"],
        capture_output=True, text=True, timeout=240, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("fd_efficientnet_lite0") == 2  # the table's row and the caution, of one rank
    one, two = (json.loads((here / name / "results.json").read_text())["measurements"] for name in ("one", "two"))
    assert [m["value"] for m in one] == [m["value"] for m in two]
    assert [m["interval"] for m in one] == [m["interval"] for m in two]
    assert {file: file.read_bytes() for file in (here / "LATENTLAB_HOME/features").iterdir()} == tables
