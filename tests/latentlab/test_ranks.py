"""Under torchrun with two processes every command gives the numbers of one process."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from latentlab.ranks import Ranks


def test_shares_are_a_partition() -> None:
    items = list(range(11))
    shares = [Ranks(rank, 3).share(items) for rank in range(3)]
    assert (
        sorted(item for share in shares for item in share) == items
        and max(map(len, shares)) - min(map(len, shares)) <= 1
    )
    assert Ranks().share(items) == items and Ranks().gather("x") == ["x"]
    assert Ranks().agreed("x") == "x"


def run(arguments: list[str], ranks: int, folder: Path) -> subprocess.CompletedProcess[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launcher = (
        ["-m", "torch.distributed.run", f"--nproc-per-node={ranks}", f"--master-port={port}"] if ranks > 1 else []
    )
    return subprocess.run(
        [sys.executable, *launcher, "-m", "latentlab", *arguments],
        capture_output=True,
        text=True,
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1", "LATENTLAB_HOME": str(folder / "home")},
        timeout=240,
        check=False,
    )


@pytest.fixture
def latents(tmp_path: Path) -> Path:
    folder = tmp_path / "latents"
    folder.mkdir()
    rng = np.random.default_rng(0)
    z = rng.normal(size=(90, 4, 6, 6)).astype(np.float32)
    save_file({"latents": z, "labels": np.arange(90) % 3}, folder / "latents_rank00_shard000.safetensors")
    return folder


def test_two_ranks_measure_what_one_does(latents: Path, tmp_path: Path) -> None:
    found = {}
    for ranks in (1, 2):
        out = tmp_path / f"out{ranks}"
        names = "viv,lnc,linear_probe,sec,srss"
        done = run(["analyze", "--latents", str(latents), "--metrics", names, "--out", str(out)], ranks, tmp_path)
        assert "srss" in done.stderr + done.stdout
        results = json.loads((out / "results.json").read_text())
        for m in results["measurements"]:
            del m["provenance"]
        found[ranks] = (results["measurements"], results["refused"])
        assert done.stdout.count("results  ") == 1  # rank 0 alone reports
    assert found[1] == found[2] and list(found[1][1]) == ["srss"]


def test_two_ranks_encode_once(tmp_path: Path) -> None:
    command = ["analyze", "--tokenizer", "ae", "--limit", "40", "--metrics", "sec", "--out", "out"]
    done = run(command, 2, tmp_path)
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "home" / "stores").glob("ae-*/latents_rank*"))) == 1
