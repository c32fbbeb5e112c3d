"""Precision, recall, density and coverage against all pairs in float64, torch-fidelity, and cases known by hand."""

import numpy as np
import pytest
import torch
from torch_fidelity.metric_prc import calculate_precision_recall_full

from latentlab.errors import UserError
from latentlab.quality import manifold
from latentlab.quality.manifold import ManifoldScores, manifold_scores


def features(n: int, seed: int, d: int = 12, shift: float = 0.0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (rng.standard_normal((n, 4)) @ rng.standard_normal((4, d)) * 2 + shift + 30).astype(np.float32)


def slow(made: np.ndarray, real: np.ndarray, k: int, density_k: int) -> ManifoldScores:
    """The definitions over all pairs, in float64."""

    def reach(points: np.ndarray, neighbours: int) -> np.ndarray:
        distances = np.linalg.norm(points[:, None] - points[None], axis=2)
        np.fill_diagonal(distances, np.inf)
        return np.sort(distances, 1)[:, neighbours - 1]

    made, real = made.astype(np.float64), real.astype(np.float64)
    between = np.linalg.norm(real[:, None] - made[None], axis=2)
    inside = between < reach(real, density_k)[:, None]
    return ManifoldScores(
        (between <= reach(real, k)[:, None]).any(0), (between <= reach(made, k)[None]).any(1),
        inside.sum(0) / density_k, inside.any(1),
    )  # fmt: skip


def assert_equal(found: ManifoldScores, expected: ManifoldScores) -> None:
    for name in ("precision", "recall", "density", "coverage"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name), err_msg=name)


@pytest.mark.parametrize(("k", "density_k"), [(3, 5), (5, 2), (1, 1)])
@pytest.mark.parametrize("tile", [7, 64, 1024])
def test_equals_all_pairs_in_float64(tile: int, k: int, density_k: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manifold, "_TILE", tile)
    monkeypatch.setattr(manifold, "_CHUNK_BYTES", 1000)
    made, real = features(90, 0, shift=1.0), features(131, 1)
    assert_equal(manifold_scores(made, real, k=k, density_k=density_k), slow(made, real, k, density_k))


def test_rounding_decides_nothing() -> None:
    """Far from the origin and with many near ties, float32 distances alone would give another result."""
    rng = np.random.default_rng(0)
    made, real = ((rng.integers(0, 3, (80, 6)) * 1e-3 + rng.standard_normal((80, 6)) * 1e-9 + 1000) for _ in range(2))
    scores = manifold_scores(made, real, k=2, density_k=3)
    assert_equal(scores, slow(made, real, 2, 3))
    assert 0.05 < scores.precision.mean() < 1 and 0.05 < scores.recall.mean() < 1


def test_equals_torch_fidelity() -> None:
    """Which takes generated features first: sets of different size and spread show a swap."""
    made, real = features(300, 0, shift=1.5) * 0.97, features(200, 1)
    scores = manifold_scores(made, real)
    precision, recall = calculate_precision_recall_full(torch.from_numpy(made), torch.from_numpy(real))
    assert scores.precision.mean() == pytest.approx(precision, abs=1e-6)
    assert scores.recall.mean() == pytest.approx(recall, abs=1e-6)
    assert precision != recall


def test_sets_known_by_hand() -> None:
    """Real images at 0, 1, 3 on a line, k=1: radii 1, 1, 2. Generated ones at 0.5, 5, 5.5, 8: radii 4.5, 0.5, 0.5, 2.5.

    0.5 lies in the balls of 0 and 1, and not in that of 3 (distance 2.5); 5 lies on the surface of the ball of 3. The ball of
    0.5 holds 0, 1 and 3.
    """
    real, made = np.array([[0.0], [1.0], [3.0]]), np.array([[0.5], [5.0], [5.5], [8.0]])
    scores = manifold_scores(made, real, k=1, density_k=1)
    assert scores.precision.tolist() == [True, True, False, False]
    assert scores.recall.tolist() == [True, True, True]
    assert scores.density.tolist() == [2, 0, 0, 0]
    assert scores.coverage.tolist() == [True, True, False]


def test_equal_sets_have_density_one_and_copies_are_inside() -> None:
    real = features(60, 3)
    scores = manifold_scores(real[::-1], real)
    assert scores.density.mean() == 1 and scores.coverage.all() and scores.precision.all() and scores.recall.all()
    copied = np.repeat(real[:10], 6, 0)  # every ball has radius 0
    scores = manifold_scores(copied, copied)
    assert scores.precision.all() and scores.recall.all() and not scores.coverage.any() and scores.density.sum() == 0


def test_order_and_unit_do_not_matter() -> None:
    made, real = features(70, 4, shift=0.7), features(85, 5)
    order = np.random.default_rng(0).permutation(85)
    scores, other = manifold_scores(made, real), manifold_scores(made, real[order])
    np.testing.assert_array_equal(scores.precision, other.precision)
    np.testing.assert_array_equal(scores.coverage[order], other.coverage)
    np.testing.assert_array_equal(scores.density, manifold_scores(made * 1024, real * 1024).density)


@pytest.mark.parametrize(
    ("made", "real", "words"),
    [
        (np.ones((3, 2)), np.ones((9, 2)), "3 neighbours need at least 4 generated images, got 3"),
        (np.ones((9, 2)), np.ones((5, 2)), "5 neighbours need at least 6 real images, got 5"),
        (np.ones((9, 2)), np.ones((9, 3)), r"got \[9, 2\] and \[9, 3\]"),
        (np.full((9, 2), np.nan), np.ones((9, 2)), "generated images contain NaN"),
    ],
)
def test_refusals(made: np.ndarray, real: np.ndarray, words: str) -> None:
    with pytest.raises(UserError, match=words):
        manifold_scores(made, real)
