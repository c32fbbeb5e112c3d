"""LNC on 10,000 latents of 32x16x16 against numpy and scikit-learn, and its peak memory in memory and from a store.

Two peers compute the same value from the same arrays. The first is written the way the formula reads; the second takes the
channel statistics from two sums instead of ``std``, which is faster in float32 but loses digits when the mean is large. Both
search with scikit-learn's exact brute force on unit vectors (the cosine order), which is its fastest route: ``metric="cosine"``
takes ten times longer. Ours also computes 95 % intervals, values per class and the ceiling; the peers do not.

    python benchmarks/lnc.py [n]
"""

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from common import SHAPE, compare, peak_memory, print_setting, synthetic_latents
from sklearn.neighbors import NearestNeighbors

from latentlab import ArrayLatents, LatentStore, TokenizerSpec, measure
from latentlab.latents import Latents
from latentlab.store import StoreWriter

CLASSES = 100
Data = tuple[np.ndarray, np.ndarray, np.ndarray]


def data(n: int, mask_size: int) -> Data:
    """Return latents, labels and random foreground boxes [n,H,W] of about a quarter of the image."""
    latents, labels = synthetic_latents(n, CLASSES)
    rng = np.random.default_rng(1)
    corner, cells = rng.integers(0, 8, (n, 2)), np.arange(SHAPE[1])
    inside = (cells >= corner[..., None]) & (cells < corner[..., None] + 8)
    small = inside[:, 0, :, None] & inside[:, 1, None, :]
    repeat = mask_size // SHAPE[1]
    return latents, labels, small.repeat(repeat, axis=1).repeat(repeat, axis=2)


def ours(latents: np.ndarray, labels: np.ndarray, masks: np.ndarray) -> list[float]:
    result = measure("lnc", latents, labels, masks)
    return [result.value, result.companions["LNC@10"].value]


def moments(latents: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return latents.mean((0, 2, 3)), latents.std((0, 2, 3), ddof=1)


def moments_from_sums(latents: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    count = latents.size / latents.shape[1]
    mean = np.einsum("nchw->c", latents, dtype=np.float32) / count
    squares = np.einsum("nchw,nchw->c", latents, latents)
    return mean, np.sqrt((squares - count * mean**2) / (count - 1))


def peer(
    latents: np.ndarray,
    labels: np.ndarray,
    masks: np.ndarray,
    statistics: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]] = moments,
) -> list[float]:
    mean, std = statistics(latents)
    step = masks.shape[1] // latents.shape[2]
    cells = masks[:, ::step, ::step].astype(np.float32)
    features = np.einsum("nchw,nhw->nc", latents, cells) / cells.sum((1, 2))[:, None]
    features = (features - mean) / std
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    search = NearestNeighbors(n_neighbors=10, algorithm="brute").fit(unit)
    same = labels[search.kneighbors(None, return_distance=False)] == labels[:, None]
    return [same[:, :5].mean(), same.mean()]


def in_memory(n: int) -> Latents:
    latents, labels, masks = data(n, SHAPE[1])
    measure("lnc", latents[:50], labels[:50], masks[:50])
    return ArrayLatents(latents, labels, masks)


def stored(n: int, folder: str) -> Latents:
    latents, labels, masks = data(n, SHAPE[1])
    spec = TokenizerSpec(name="synthetic", release="benchmark", kind="continuous", layout="grid", channels=SHAPE[0])
    writer = StoreWriter(Path(folder), request={"n": n}, spec=spec)
    writer.append(torch.from_numpy(latents), labels, masks=torch.from_numpy(masks))
    writer.finish()
    measure("lnc", latents[:50], labels[:50], masks[:50])
    return LatentStore(folder)


def run(latents: Latents) -> float:
    return measure("lnc", store=latents).value


def compare_all(title: str, arrays: Data) -> None:
    compare(title, lambda: ours(*arrays), lambda: peer(*arrays))
    compare(f"{title}, tuned peer", lambda: ours(*arrays), lambda: peer(*arrays, statistics=moments_from_sums))


def main(n: int) -> None:
    print_setting()
    for mask_size in (SHAPE[1], 16 * SHAPE[1]):
        compare_all(f"LNC, {n} latents, masks {mask_size}x{mask_size}", data(n, mask_size))
    size = 4 * n * int(np.prod(SHAPE)) / 2**20
    extra = peak_memory(in_memory, run, n)
    print(
        f"in memory: {extra:.0f} MiB above the latents ({size:.0f} MiB), {(size + extra) / size:.2f}x the latents in all"
    )
    with tempfile.TemporaryDirectory() as folder:
        print(f"streamed from a store: {peak_memory(stored, run, n, folder):.0f} MiB above the process")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 10_000)
