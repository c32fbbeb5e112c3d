"""VIV of 10,000 latents of 32 x 16 x 16 against numpy/scipy float64, and its memory: ``python benchmarks/viv.py``.

The peer is what an experienced user writes: one class at a time, the flip-flop as matrix products over all its images, the
first half-step without the identity, Cholesky solves for the inverses.
"""

import tempfile
from functools import partial
from pathlib import Path

import numpy as np
from common import SHAPE, compare, peak_memory, print_setting, synthetic_latents, write_feature_folder
from scipy.linalg import cho_factor, cho_solve

import latentlab

N = 10_000
Data = tuple[np.ndarray, np.ndarray]


def ours(data: Data) -> float:
    return latentlab.measure("viv", *data).value


def ours_streamed(path: str) -> float:
    return latentlab.measure("viv", store=latentlab.LatentStore(path)).value


def peer(data: Data) -> float:
    latents, labels = data
    z = latents.reshape(len(latents), latents.shape[1], -1)
    mean = z.mean((0, 2))[:, None]
    std = z.std((0, 2), ddof=1)[:, None]
    return float(
        np.mean([peer_class((z[labels == label].astype(np.float64) - mean) / std) for label in np.unique(labels)])
    )


def peer_class(x: np.ndarray) -> float:
    n, c, s = x.shape
    x -= x.mean(0)
    total = np.vdot(x, x) / n
    by_channel = x.transpose(1, 0, 2).reshape(c, n * s)
    rows = x.reshape(n * c, s)
    weighted = by_channel
    for _ in range(5):
        channels = weighted @ by_channel.T / (n * s)
        whitened = np.matmul(cho_solve(cho_factor(channels), np.eye(c)), x).reshape(n * c, s)
        cells = whitened.T @ rows / (n * c)
        weighted = (rows @ cho_solve(cho_factor(cells), np.eye(s))).reshape(n, c, s)
        weighted = weighted.transpose(1, 0, 2).reshape(c, n * s)
    spectrum = np.outer(np.linalg.eigvalsh(channels), np.linalg.eigvalsh(cells))
    spectrum *= total / spectrum.sum()
    return np.pi / 2 * np.sqrt(spectrum).mean()


def prepare(n: int, classes: int) -> Data:
    small = synthetic_latents(100, 2)
    ours(small), peer(small)
    return synthetic_latents(n, classes)


def prepare_store(path: str) -> str:
    ours(synthetic_latents(100, 2))
    return path


if __name__ == "__main__":
    print_setting()
    size = N * np.prod(SHAPE) * 4 / 2**20
    for classes in (100, 10):
        data = synthetic_latents(N, classes)
        compare(f"viv, {classes} classes x {N // classes}", partial(ours, data), partial(peer, data))
        del data
        for run in (ours, peer):
            extra = peak_memory(prepare, run, N, classes)
            print(f"  {run.__name__}: {extra:.0f} MiB beside the latents, {(size + extra) / size:.2f} of them in all")
    for classes in (100, 1):
        with tempfile.TemporaryDirectory() as folder:
            write_feature_folder(Path(folder), *synthetic_latents(N, classes))
            extra = peak_memory(prepare_store, ours_streamed, folder)
            print(f"  streamed, {classes} classes: {extra:.0f} MiB above the process without latents")
