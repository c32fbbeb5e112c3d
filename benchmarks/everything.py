"""All measurements of 50,000 latents of 32 x 16 x 16 from a store: time and peak memory, ``python benchmarks/everything.py``.

There is no peer that makes all of them: the claim is absolute, at most 12 minutes and 4 GiB on 2 cores, t-SNE on 10,000 points
included; what needs images or a decoder is not part of it. Latents have 1,000 classes, foreground masks and codes.
"""

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from common import SHAPE, print_setting, synthetic_latents

from latentlab.latents import TokenizerSpec
from latentlab.store import StoreWriter

N, CLASSES, CODES = 50_000, 1_000, 1_024
PART = 5_000
LIMIT_SECONDS, LIMIT_GIB = 720, 4.0


def write_store(path: Path) -> None:
    """Write the latents as our own encoder does, a part at a time."""
    spec = TokenizerSpec("synthetic", "benchmark", "vq", "grid", SHAPE[0], downsampling=16, codebook_size=CODES)
    writer = StoreWriter(path, request={"benchmark": N}, spec=spec)
    latents, labels = synthetic_latents(PART, CLASSES)
    rng = np.random.default_rng(0)
    centre = np.hypot(*np.mgrid[-1:1:16j, -1:1:16j]) < 0.8
    for _ in range(N // PART):
        noise = rng.standard_normal(latents.shape, dtype=np.float32)
        masks = torch.from_numpy(np.broadcast_to(centre, (PART, 16, 16)).copy())
        codes = torch.from_numpy(rng.zipf(1.3, size=(PART, 16, 16)) % CODES)
        writer.append(torch.from_numpy(latents + 0.5 * noise), labels, codes=codes, masks=masks)
    writer.finish()


if __name__ == "__main__":
    print_setting()
    with tempfile.TemporaryDirectory() as folder:
        write_store(Path(folder) / "store")
        command = [
            sys.executable,
            "-m",
            "latentlab",
            "analyze",
            "--latents",
            f"{folder}/store",
            "--out",
            f"{folder}/out",
        ]
        started = time.perf_counter()
        done = subprocess.run(command, stdout=subprocess.DEVNULL, env=os.environ, check=False)
        seconds = time.perf_counter() - started
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
        results = json.loads((Path(folder) / "out" / "results.json").read_text())
    for m in results["measurements"]:
        print(f"  {m['name']:<20} {m['provenance']['seconds']:8.1f} s   {m['value']:.4g}")
    for name, reason in results["refused"].items():
        print(f"  {name:<20} not measured: {reason}")
    print(
        f"all of {N:,}: {seconds:.0f} s (limit {LIMIT_SECONDS}), peak {peak:.2f} GiB (limit {LIMIT_GIB}), exit {done.returncode}"
    )
