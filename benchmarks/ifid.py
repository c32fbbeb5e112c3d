"""iFID's neighbour search among whole latents of 32x16x16 (8192 numbers) against torch, and its peak memory.

The peer is the exact search one would write: normalise, multiply by blocks of queries (so that scores stay small), take the
largest; in float32 and in float64. Both sides return indices: a difference is a near tie that float32 decided by rounding. Ours
returns what float64 returns. Two cases: queries in another gallery, as the authors search the training set for validation
images, and a set among itself, the default here, where a product of two blocks serves both.

The limit: float32 products of a processor are a fixed number; 8-bit products are about five times as many per second with VNNI,
and there is nothing below 8 bits. What the peer loses beside its products (normalising, topk) we lose in rounding to 8 bits and
in pairs that must be looked at again.

    python benchmarks/ifid.py [queries] [gallery]
"""

import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from common import SHAPE, compare, peak_memory, print_setting, synthetic_latents, write_feature_folder
from torch.nn import functional

from analyses.latent_neighbours import nearest_latents
from latentlab import ArrayLatents, LatentStore

CLASSES, BLOCK = 100, 1000


def ours(queries: np.ndarray, gallery: np.ndarray, k: int) -> np.ndarray:
    return nearest_latents(ArrayLatents(queries), ArrayLatents(gallery), k)


def ours_itself(latents: np.ndarray, k: int) -> np.ndarray:
    wrapped = ArrayLatents(latents)
    return nearest_latents(wrapped, wrapped, k, own=np.arange(len(latents)))


def peer(
    queries: np.ndarray, gallery: np.ndarray, k: int, dtype: torch.dtype = torch.float32, itself: bool = False
) -> np.ndarray:
    columns = functional.normalize(torch.from_numpy(gallery).flatten(1).to(dtype)).T
    found = []
    for start in range(0, len(queries), BLOCK):
        rows = torch.from_numpy(queries[start : start + BLOCK]).flatten(1).to(dtype)
        scores = functional.normalize(rows) @ columns
        if itself:
            scores.diagonal(start).fill_(-torch.inf)
        found.append(scores.topk(k).indices)
    return torch.cat(found).numpy()


def stored(n: int, m: int, folder: str) -> tuple[LatentStore, LatentStore]:
    latents, labels = synthetic_latents(n + m, CLASSES)
    stores = []
    for name, part in (("queries", slice(0, n)), ("gallery", slice(n, None))):
        path = Path(folder) / name
        path.mkdir()
        write_feature_folder(path, latents[part], labels[part])
        stores.append(LatentStore(path))
    nearest_latents(ArrayLatents(latents[:50]), ArrayLatents(latents[:90]), 1)
    return stores[0], stores[1]


def run(stores: tuple[LatentStore, LatentStore]) -> np.ndarray:
    return nearest_latents(*stores, 1)


def main(n: int, m: int) -> None:
    print_setting()
    latents, _ = synthetic_latents(n + m, CLASSES)
    queries, gallery = latents[:n], latents[n:]
    for k in (1, 10):
        title = f"{n} queries in a gallery of {m}, k={k}"
        compare(f"{title}, float32 peer", lambda k=k: ours(queries, gallery, k), lambda k=k: peer(queries, gallery, k))
    compare(
        f"{n} queries in a gallery of {m}, k=1, float64 peer",
        lambda: ours(queries, gallery, 1),
        lambda: peer(queries, gallery, 1, torch.float64),
        repeats=1,
    )
    some = latents[: m // 2]
    for dtype, repeats in ((torch.float32, 3), (torch.float64, 1)):
        name = str(dtype).removeprefix("torch.")
        compare(
            f"{len(some)} latents among themselves, k=1, {name} peer",
            lambda: ours_itself(some, 1),
            lambda dtype=dtype: peer(some, some, 1, dtype, itself=True),
            repeats=repeats,
        )
    with tempfile.TemporaryDirectory() as folder:
        size = 4 * m * int(np.prod(SHAPE)) / 2**20
        print(
            f"streamed from a store: {peak_memory(stored, run, n, m, folder):.0f} MiB, the gallery has {size:.0f} MiB"
        )


if __name__ == "__main__":
    main(*(int(size) for size in (sys.argv[1:] or ("2000", "20000"))))
