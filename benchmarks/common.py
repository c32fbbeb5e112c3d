"""What the benchmarks share: made-up latents, ours against a peer on the same data in one run, and peak memory.

A benchmark is a script (``python benchmarks/viv.py``): its data and its two contestants are module-level functions, so
that `peak_memory` can run them in a fresh process, and everything that prints stands under ``if __name__ == "__main__"``.
"""

import ctypes
import multiprocessing
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import torch
from safetensors.numpy import save_file
from threadpoolctl import threadpool_info

SHAPE = (32, 16, 16)
"""Channels and grid of the latents of a 32-channel, 16-fold tokenizer of 256-pixel images."""


class Comparison(TypedDict):
    """Outcome of `compare`: best times in seconds, ``ratio = peer / ours``, and how far the two values differ."""

    name: str
    ours_seconds: float
    peer_seconds: float
    ratio: float
    relative_difference: float


def synthetic_latents(n: int, classes: int, shape: tuple[int, ...] = SHAPE) -> tuple[np.ndarray, np.ndarray]:
    """Return float32 latents [n,c,h,w] with correlated channels and cells and class means, and shuffled labels [n].

    Every class has the same number of images. Like real latents they have uneven spectra, means far from 0 and classes
    that differ in scale; the same arguments give the same numbers.
    """
    rng = np.random.default_rng(0)
    channels, cells = shape[0], int(np.prod(shape[1:]))
    mix_channels = rng.standard_normal((channels, channels), dtype=np.float32) / np.sqrt(channels) + np.eye(
        channels, dtype=np.float32
    )
    distance = np.abs(np.arange(cells)[:, None] - np.arange(cells))
    mix_cells = (0.5**distance).astype(np.float32)
    means = rng.standard_normal((classes, channels, cells), dtype=np.float32)
    labels = rng.permutation(np.arange(n) % classes)
    latents = rng.standard_normal((n, channels, cells), dtype=np.float32)
    for start in range(0, n, 500):
        part = slice(start, start + 500)
        scale = (0.5 + labels[part] / classes).astype(np.float32)[:, None, None]
        latents[part] = scale * (mix_channels @ latents[part] @ mix_cells) + means[labels[part]] + 0.3
    return latents.reshape(n, *shape), labels


def write_feature_folder(path: Path, latents: np.ndarray, labels: np.ndarray, shard: int = 2500) -> None:
    """Write latents and labels as LightningDiT's feature extraction does, ``shard`` images per file."""
    for i, start in enumerate(range(0, len(latents), shard)):
        part = slice(start, start + shard)
        save_file({"latents": latents[part], "labels": labels[part]}, path / f"latents_rank00_shard{i:03d}.safetensors")


def compare(name: str, ours: Callable[[], Any], peer: Callable[[], Any], repeats: int = 3) -> Comparison:
    """Time ``ours`` and ``peer`` in turns, print one line and return it.

    Each returns the number (or array of numbers) it computed; the best of ``repeats`` runs counts.
    """
    times: dict[str, list[float]] = {"ours": [], "peer": []}
    values = {}
    for _ in range(repeats):
        for key, run in (("ours", ours), ("peer", peer)):
            start = time.perf_counter()
            values[key] = np.asarray(run(), dtype=np.float64)
            times[key].append(time.perf_counter() - start)
    best = {key: min(seconds) for key, seconds in times.items()}
    difference = float(np.max(np.abs(values["ours"] - values["peer"]) / np.maximum(np.abs(values["peer"]), 1e-300)))
    result = Comparison(
        name=name,
        ours_seconds=best["ours"],
        peer_seconds=best["peer"],
        ratio=best["peer"] / best["ours"],
        relative_difference=difference,
    )
    print(
        f"{name}: ours {best['ours']:.3f} s, peer {best['peer']:.3f} s, ratio {result['ratio']:.2f}x, "
        f"relative difference {difference:.1e} (best of {repeats})",
        flush=True,
    )
    return result


def peak_memory(prepare: Callable[..., Any], run: Callable[[Any], Any], *arguments: Any) -> float:
    """Return by how many MiB ``run(prepare(*arguments))`` raises the resident memory above what ``prepare`` left.

    It runs in a fresh process. Both are module-level functions of the calling script; ``prepare`` makes the data and
    should also call the code once on a toy input, so that lazily loaded libraries do not count.
    """
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_measure_peak, args=(sender, prepare, run, arguments))
    process.start()
    sender.close()
    try:
        return float(receiver.recv())
    except EOFError:
        raise RuntimeError(f"the process measuring {run.__name__} ended without a result") from None
    finally:
        process.join()


def _measure_peak(
    sender: Any, prepare: Callable[..., Any], run: Callable[[Any], Any], arguments: tuple[Any, ...]
) -> None:
    data = prepare(*arguments)
    before = _reset_peak()
    result = run(data)
    sender.send(_peak() - before)
    del result


def _reset_peak() -> float:
    """Give freed memory back, forget the highest resident size so far (Linux, glibc) and return the present one, MiB."""
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    return _peak()


def _peak() -> float:
    """Return the highest resident size since `_reset_peak`, MiB."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def print_setting() -> None:
    """Print the threads that torch and numpy use, the cores and the versions: a ratio means nothing without them."""
    pools = ", ".join(f"{pool['internal_api']} {pool['num_threads']}" for pool in threadpool_info())
    print(
        f"torch {torch.__version__} with {torch.get_num_threads()} threads; numpy {np.__version__}; pools: {pools}; "
        f"{os.cpu_count()} cores; python {sys.version.split()[0]}"
    )
