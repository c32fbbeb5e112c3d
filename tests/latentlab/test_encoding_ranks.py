"""`latentlab encode` under torchrun: killed, continued by another number of processes, and bit for bit what one process gives."""

import json
import os
import signal
import socket
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch

from latentlab import LatentStore, open_data, store_writer
from latentlab.encoding import encode_images
from latentlab.tokenizers import load_tokenizer

N, BATCH, SHARD = 150, 8, 24


def encode(folder: Path, ranks: int, kill: int | None = None) -> subprocess.CompletedProcess[str]:
    """Run the command with small shards; the process of rank ``kill`` is killed (9) when it has encoded six batches."""
    program = folder / "encode.py"
    program.write_text(
        textwrap.dedent(f"""
        import os, signal
        from latentlab import encoding, store_writer
        from latentlab.cli.main import app

        store_writer.SHARD_IMAGES = {SHARD}
        columns, seen = encoding.BatchEncoder.columns, []

        def counted(self, pixels, first):
            if os.environ.get("RANK") == {str(kill)!r} and len(seen) == 6:
                os.kill(os.getpid(), signal.SIGKILL)
            seen.append(first)
            return columns(self, pixels, first)

        encoding.BatchEncoder.columns = counted
        options = "--tokenizer ibq --limit {N} --batch-size {BATCH} --flip --device cpu --out store"
        app(["encode", *options.split()])
        """)
    )
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launcher = (
        ["-m", "torch.distributed.run", f"--nproc-per-node={ranks}", f"--master-port={port}"] if ranks > 1 else []
    )
    return subprocess.run(
        [sys.executable, *launcher, str(program)],
        capture_output=True,
        text=True,
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=600,
        check=False,
    )


def test_two_processes_killed_and_continued_give_the_store_of_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed = encode(tmp_path, ranks=2, kill=1)
    assert killed.returncode != 0 and f"exitcode : {-signal.SIGKILL}" in killed.stderr.replace("  ", " "), (
        killed.stderr[-2000:]
    )
    store = tmp_path / "store"
    assert not (store / "store.json").exists()
    before = {file.name: file.stat().st_mtime_ns for file in store.glob("latents_rank01_*")}
    assert len(before) >= 1  # two shards of 24, of which the writer had finished at least one
    note = json.loads((store / "store.partial.rank01.json").read_text())
    assert [part["first"] for part in note["written"]] == [72, 96][: len(note["written"])]

    continued = encode(tmp_path, ranks=2)
    assert continued.returncode == 0, continued.stderr
    assert continued.stdout == f"latents  {N} of 16 x 8 x 8 in store, and mirrored\n"  # rank 0 alone speaks
    assert "images/s" in continued.stderr
    after = {file.name: file.stat().st_mtime_ns for file in store.glob("latents_rank01_*")}
    noted = [part["shard"]["file"] for part in note["written"]]
    assert all(after[name] == before[name] for name in noted)

    monkeypatch.setattr(store_writer, "SHARD_IMAGES", SHARD)
    torch.set_num_threads(1)
    images = open_data("fashion:test", limit=N)
    one = encode_images(load_tokenizer("ibq"), images, tmp_path / "one", batch_size=BATCH, flip=True)
    two = LatentStore(store)
    assert two.manifest.request == one.manifest.request and two.n == N
    for first, second in ((one, two), (one.mirrored(), two.mirrored())):
        for name in ("take", "codes", "masks"):
            assert torch.equal(getattr(first, name)(slice(None)), getattr(second, name)(slice(None))), name
        assert np.array_equal(first.labels, second.labels)
    assert torch.equal(one.moments.mean, two.moments.mean)
