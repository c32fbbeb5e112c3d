"""The neighbour search is compared with a stable float64 sort of all pairs, on easy, tied and nearly tied vectors."""

import numpy as np
import pytest
import torch
from sklearn.neighbors import NearestNeighbors

from analyses import neighbours
from analyses.neighbours import nearest
from latentlab.errors import UserError


def all_pairs(queries, gallery, k, metric, exclude_self):
    """Sort every pair in float64, equal scores by index: obvious, slow, n x m."""
    q, g = queries.astype(np.float64)[:, None], gallery.astype(np.float64)[None]
    if metric == "l2":
        score = -((q - g) ** 2).sum(2)
    else:
        norms = np.linalg.norm(q, axis=2) * np.linalg.norm(g, axis=2)
        score = (q * g).sum(2) / np.where(norms > 0, norms, 1)
    if exclude_self:
        np.fill_diagonal(score, -np.inf)
    return np.argsort(-score, axis=1, kind="stable")[:, :k]


@pytest.mark.parametrize("metric", ["cosine", "l2"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("n", "d", "k"), [(700, 12, 10), (331, 40, 1), (40, 3, 39), (2, 5, 1)])
def test_equals_a_sort_of_all_pairs(metric, dtype, n, d, k):
    x = np.random.default_rng(n).standard_normal((n, d)).astype(dtype) + 3
    np.testing.assert_array_equal(nearest(x, x, k, metric, exclude_self=True), all_pairs(x, x, k, metric, True))


@pytest.mark.parametrize("metric", ["cosine", "l2"])
def test_other_gallery(metric):
    rng = np.random.default_rng(1)
    queries, gallery = rng.standard_normal((90, 17)), rng.standard_normal((1201, 17))
    np.testing.assert_array_equal(nearest(queries, gallery, 7, metric), all_pairs(queries, gallery, 7, metric, False))


def test_equals_scikit_learn():
    x = np.random.default_rng(2).standard_normal((1500, 24))
    peer = NearestNeighbors(n_neighbors=6, algorithm="brute").fit(x).kneighbors(None, return_distance=False)
    np.testing.assert_array_equal(nearest(x, x, 6, "l2", exclude_self=True), peer)


@pytest.mark.parametrize("metric", ["cosine", "l2"])
def test_gaps_below_float32_resolution(metric):
    """Gallery vectors 1e-10 apart (float32 resolves 1e-7): the order comes from float64."""
    rng = np.random.default_rng(3)
    base = rng.standard_normal(8)
    across = rng.standard_normal(8)
    across -= base * (across @ base) / (base @ base)
    steps = rng.permutation(np.arange(1, 901))
    gallery = base + np.sqrt(1e-10 * steps)[:, None] * across  # both distances grow with the step
    found = nearest(base[None], gallery, 20, metric)[0]
    np.testing.assert_array_equal(steps[found], np.arange(1, 21))


@pytest.mark.parametrize("metric", ["cosine", "l2"])
def test_equal_distances_come_in_order_of_index(metric):
    """Vectors with coordinates -1, 0, 1 (among them zero vectors) have many exact ties, each image several times."""
    x = np.random.default_rng(4).integers(-1, 2, size=(600, 4)).astype(np.float32)
    if metric == "cosine":  # cosines of integer vectors tie only up to rounding: keep vectors of norm 0 and 2
        x = x[np.isin((x**2).sum(1), (0, 4))]
    np.testing.assert_array_equal(nearest(x, x, 12, metric, exclude_self=True), all_pairs(x, x, 12, metric, True))


@pytest.mark.parametrize("metric", ["cosine", "l2"])
def test_all_vectors_equal(metric):
    x = np.full((50, 3), 0.7)
    found = nearest(x, x, 3, metric, exclude_self=True)
    np.testing.assert_array_equal(found[[0, 1, 10]], [[1, 2, 3], [0, 2, 3], [0, 1, 2]])


def test_zero_vector_has_similarity_zero():
    gallery = np.array([[-1.0, 0.0], [0.0, 0.0], [1.0, 0.1]])
    np.testing.assert_array_equal(nearest(np.array([[1.0, 0.0], [0.0, 0.0]]), gallery, 3), [[2, 1, 0], [0, 1, 2]])


@pytest.mark.parametrize("scale", [1e-25, 1.0, 1e25])
def test_unit_and_offset_of_the_data_do_not_matter(scale):
    """Far from the origin and in any unit, l2 ranks as around the origin (steps of 2^-20 keep the sums exact)."""
    x = np.round(np.random.default_rng(5).standard_normal((400, 6)) * 2**20) / 2**20
    expected = all_pairs(x, x, 5, "l2", True)
    np.testing.assert_array_equal(nearest((x + 1024) * scale, (x + 1024) * scale, 5, "l2", exclude_self=True), expected)
    np.testing.assert_array_equal(nearest(x * scale, x * scale, 5, "cosine", True), all_pairs(x, x, 5, "cosine", True))


def test_block_size_does_not_matter(monkeypatch):
    x = np.random.default_rng(6).standard_normal((500, 9))
    whole = nearest(x, x, 5, exclude_self=True)
    monkeypatch.setattr(neighbours, "_BLOCK_BYTES", 1 << 10)
    monkeypatch.setattr(neighbours, "_CHUNK_BYTES", 1 << 10)
    monkeypatch.setattr(neighbours, "_GROUP", 7)
    np.testing.assert_array_equal(nearest(x, x, 5, exclude_self=True), whole)


def test_reduced_matmul_precision_is_not_used():
    """With bfloat16 products allowed the error bound would not hold, so float64 takes over."""
    x = np.random.default_rng(7).standard_normal((600, 64))
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        found = nearest(x, x, 5, exclude_self=True)
    finally:
        torch.set_float32_matmul_precision(before)
    np.testing.assert_array_equal(found, all_pairs(x, x, 5, "cosine", True))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((np.zeros((4, 2)), np.zeros((4, 3)), 1), "shapes"),
        ((np.ones((4, 2)), np.ones((4, 2)), 4, "l2", True), "between 1 and the 3 vectors"),
        ((np.ones((4, 2)), np.ones((4, 2)), 0), "k=0"),
        ((np.ones((4, 2)), np.ones((5, 2)), 1, "l2", True), "same set"),
        ((np.ones((4, 2)), np.ones((4, 2)), 1, "cos"), "Did you mean cosine"),
        ((np.full((4, 2), np.nan), np.ones((4, 2)), 1), "NaN or infinity"),
    ],
)
def test_bad_input_is_refused(arguments, message):
    with pytest.raises(UserError, match=message):
        nearest(*arguments)
