"""SEC of 10,000 latents of 32 x 16 x 16 against scipy's DCT, and its memory: ``python benchmarks/sec.py``.

The peer normalises in numpy (by sums of squares: a tenth of the time of ``std``) and transforms with `scipy.fft.dctn` on
two workers, all in the float32 of the latents: float64 takes twice as long and changes nothing here. Ours includes the
bootstrap interval, which the peer does without.
"""

import tempfile
from pathlib import Path

import numpy as np
from common import SHAPE, compare, peak_memory, print_setting, synthetic_latents, write_feature_folder
from scipy.fft import dctn

import latentlab

N = 10_000


def ours(latents: np.ndarray) -> list[float]:
    return [estimate.value for estimate in latentlab.measure("sec", latents).companions.values()]


def ours_streamed(path: str) -> float:
    return latentlab.measure("sec", store=latentlab.LatentStore(path)).value


def peer(latents: np.ndarray) -> list[float]:
    z = latents - latents.mean((0, 2, 3), keepdims=True)
    z /= np.sqrt(np.einsum("nchw,nchw->c", z, z) / (z.size / z.shape[1] - 1))[:, None, None]
    coefficients = dctn(z, axes=(2, 3), norm="ortho", workers=2, overwrite_x=True)
    energy = np.square(coefficients, out=coefficients).mean((0, 1), dtype=np.float64)
    h, w = energy.shape
    frequency = np.add.outer(np.arange(h), np.arange(w))
    return [energy[frequency > rho * (h + w - 2)].sum() / energy.sum() for rho in (0.25, 0.5)]


def prepare(n: int) -> np.ndarray:
    small = synthetic_latents(100, 2)[0]
    ours(small), peer(small)
    return synthetic_latents(n, 10)[0]


def prepare_store(path: str) -> str:
    ours(synthetic_latents(100, 2)[0])
    return path


if __name__ == "__main__":
    print_setting()
    size = N * np.prod(SHAPE) * 4 / 2**20
    latents = synthetic_latents(N, 10)[0]
    compare("sec", lambda: ours(latents), lambda: peer(latents), repeats=5)
    del latents
    for run in (ours, peer):
        extra = peak_memory(prepare, run, N)
        print(f"  {run.__name__}: {extra:.0f} MiB beside the latents, {(size + extra) / size:.2f} of them in all")
    with tempfile.TemporaryDirectory() as folder:
        write_feature_folder(Path(folder), *synthetic_latents(N, 10))
        extra = peak_memory(prepare_store, ours_streamed, folder)
        print(f"  streamed: {extra:.0f} MiB above the process without latents")
