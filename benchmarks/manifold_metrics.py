"""Precision, recall, density and coverage of 10,000 x 2048 features against the authors' package ``prdc``, and their peak memory.

The peer computes three tables of float64 distances and holds each whole (800 MB); ours takes float32 products tile by tile,
half of them where a set is compared with itself, and computes again in float64 what their rounding could decide, so the
values are the same. The limit is the float32 arithmetic of two products of all pairs. Without ``prdc`` (pip install prdc)
only ours is measured.

    python benchmarks/manifold_metrics.py [images] [dimensions]
"""

import contextlib
import io
import sys
import time

import numpy as np
from common import compare, peak_memory, print_setting

from latentlab.quality.manifold import manifold_scores

K, RANK = 5, 64

Pair = tuple[np.ndarray, np.ndarray]


def features(n: int, d: int) -> Pair:
    """Return float32 features of generated and of real images, like pooled activations: nonnegative, close to few dimensions."""
    rng = np.random.default_rng(0)
    mix = rng.standard_normal((RANK, d), dtype=np.float32) * 0.1
    sets = []
    for shift in (0.02, 0.0):
        rows = rng.standard_normal((n, RANK), dtype=np.float32) @ mix + 0.3 * rng.standard_normal(
            (n, d), dtype=np.float32
        )
        sets.append(np.maximum(rows + shift, 0))
    return sets[0], sets[1]


def ours(pair: Pair) -> np.ndarray:
    scores = manifold_scores(*pair, k=K, density_k=K)
    return np.array([part.mean() for part in (scores.precision, scores.recall, scores.density, scores.coverage)])


def peer(pair: Pair) -> np.ndarray:
    from prdc import compute_prdc

    with contextlib.redirect_stdout(io.StringIO()):
        found = compute_prdc(real_features=pair[1], fake_features=pair[0], nearest_k=K)
    return np.array([found[name] for name in ("precision", "recall", "density", "coverage")])


def prepare(n: int, d: int) -> Pair:
    ours(features(50, 8))
    return features(n, d)


def main(n: int, d: int) -> None:
    print_setting()
    print(f"peak above the features: {peak_memory(prepare, ours, n, d):.0f} MiB")
    pair = features(n, d)
    try:
        import prdc  # noqa: F401
    except ImportError:
        start = time.perf_counter()
        print(f"{ours(pair)} in {time.perf_counter() - start:.1f} s; pip install prdc to compare")
        return
    compare(f"precision, recall, density, coverage of {n} x {d}", lambda: ours(pair), lambda: peer(pair), repeats=2)


if __name__ == "__main__":
    main(*(int(size) for size in (sys.argv[1:] or ("10000", "2048"))))
