"""The streamed search among whole latents equals a sort of all pairs in float64, by 8-bit and by float32 products."""

import numpy as np
import pytest
import torch

from analyses import latent_neighbours
from analyses.latent_neighbours import eight_bit_products_are_exact, nearest_latents
from analyses.neighbours import nearest
from latentlab.errors import UserError
from latentlab.latents import ArrayLatents


@pytest.fixture(params=["8-bit", "float32"], autouse=True)
def products(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    torch.set_num_threads(1)
    if request.param == "float32":
        monkeypatch.setattr(latent_neighbours, "eight_bit_products_are_exact", lambda: False)
    elif not eight_bit_products_are_exact():
        pytest.skip("this processor has no fast 8-bit products")
    return request.param


def all_pairs(q: np.ndarray, g: np.ndarray, k: int, metric: str, own: np.ndarray | None = None) -> np.ndarray:
    """Sort every pair in float64, equal scores by index."""
    q, g = (z.reshape(len(z), -1).astype(np.float64) for z in (q, g))
    if metric == "l2":
        score = -((q[:, None] - g[None]) ** 2).sum(2)
    else:
        norms = np.linalg.norm(q, axis=1)[:, None] * np.linalg.norm(g, axis=1)
        score = (q[:, None] * g[None]).sum(2) / np.where(norms > 0, norms, 1)
    if own is not None:
        score[np.arange(len(q))[own >= 0], own[own >= 0]] = -np.inf
    return np.argsort(-score, axis=1, kind="stable")[:, :k]


def latents(n: int, shape: tuple[int, ...], seed: int = 0, dtype: type = np.float32, offset: float = 0) -> np.ndarray:
    """Smooth random latents: a few directions carry most of the variance, as in real ones."""
    rng = np.random.default_rng(seed)
    d = int(np.prod(shape))
    basis = rng.standard_normal((d, d)) * np.geomspace(1, 0.05, d)[:, None]
    z = np.random.default_rng(seed + 1).standard_normal((n, d)) @ basis + offset
    return z.reshape(n, *shape).astype(dtype)


@pytest.mark.parametrize("metric", ["cosine", "l2"])
@pytest.mark.parametrize("offset", [0.0, 50.0])
@pytest.mark.parametrize(("k", "dtype"), [(1, np.float32), (7, np.float64)])
def test_equals_a_sort_of_all_pairs(metric, offset, k, dtype):
    q, g = latents(60, (6, 3, 3), dtype=dtype, offset=offset), latents(500, (6, 3, 3), 0, dtype, offset)[100:]
    found = nearest_latents(ArrayLatents(q), ArrayLatents(g), k, metric)
    np.testing.assert_array_equal(found, all_pairs(q, g, k, metric))


@pytest.mark.parametrize("metric", ["cosine", "l2"])
def test_blocks_do_not_matter(metric, monkeypatch):
    z = latents(300, (4, 3, 3))
    own = np.arange(300)
    expected = all_pairs(z, z, 3, metric, own)
    for queries, gallery, chunk in (
        (1 << 12, 1 << 11, 1 << 10),
        (1 << 30, 1 << 13, 1 << 30),
        (1 << 10, 1 << 30, 1 << 12),
    ):
        monkeypatch.setattr(latent_neighbours, "_QUERY_BYTES", queries)
        monkeypatch.setattr(latent_neighbours, "_GALLERY_BYTES", gallery)
        monkeypatch.setattr(latent_neighbours, "_CHUNK_BYTES", chunk)
        np.testing.assert_array_equal(nearest_latents(ArrayLatents(z), ArrayLatents(z), 3, metric, own), expected)


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_either_way_out_of_undecided_pairs_is_exact(share, monkeypatch):
    """At once by float32 products of all, or one by one."""
    monkeypatch.setattr(latent_neighbours, "_WORTHWHILE", share)
    monkeypatch.setattr(latent_neighbours, "_GALLERY_BYTES", 1 << 12)
    q, g = latents(40, (5, 2, 2)), latents(400, (5, 2, 2), seed=3)
    found = nearest_latents(ArrayLatents(q), ArrayLatents(g), 4)
    np.testing.assert_array_equal(found, all_pairs(q, g, 4, "cosine"))


def test_some_queries_are_in_the_gallery():
    g = latents(200, (4, 2, 2))
    q = np.concatenate([g[[5, 100, 199]], latents(2, (4, 2, 2), seed=8)])
    own = np.array([5, 100, 199, -1, -1])
    found = nearest_latents(ArrayLatents(q), ArrayLatents(g), 2, "cosine", own)
    np.testing.assert_array_equal(found, all_pairs(q, g, 2, "cosine", own))
    assert (nearest_latents(ArrayLatents(q), ArrayLatents(g), 1)[:3, 0] == own[:3]).all()


@pytest.mark.parametrize("metric", ["cosine", "l2"])
def test_ties_and_near_ties(metric):
    """Every latent three times, one of them changed by less than float32 products resolve, and zero latents."""
    base = latents(60, (4, 3, 3), dtype=np.float64)
    base[7] = 0
    g = np.concatenate([base, base, base * (1 if metric == "cosine" else 1 + 1e-12)])
    g[130, 0] += 1e-9
    found = nearest_latents(ArrayLatents(base), ArrayLatents(g), 5, metric)
    np.testing.assert_array_equal(found, nearest(base.reshape(60, -1), g.reshape(180, -1), 5, metric))


def test_all_latents_equal():
    z = np.full((20, 3, 2, 2), 0.7, dtype=np.float32)
    found = nearest_latents(ArrayLatents(z), ArrayLatents(z), 2, "l2", np.arange(20))
    np.testing.assert_array_equal(found[[0, 1, 10]], [[1, 2], [0, 2], [0, 1]])


def test_tokens_and_tiny_galleries():
    z = latents(9, (5, 4))  # [n,l,c]
    found = nearest_latents(ArrayLatents(z), ArrayLatents(z), 8, "cosine", np.arange(9))
    np.testing.assert_array_equal(found, all_pairs(z, z, 8, "cosine", np.arange(9)))


@pytest.mark.parametrize("scale", [1e-20, 1e20])
@pytest.mark.parametrize("metric", ["cosine", "l2"])
def test_the_unit_of_the_latents_does_not_matter(scale, metric):
    z = latents(100, (4, 2, 2), dtype=np.float64)
    found = nearest_latents(ArrayLatents(z * scale), ArrayLatents(z * scale), 3, metric, np.arange(100))
    np.testing.assert_array_equal(found, all_pairs(z, z, 3, metric, np.arange(100)))


def test_wrong_use_is_explained():
    z = ArrayLatents(latents(5, (2, 2, 2)))
    with pytest.raises(UserError, match=r"shape \[2, 2, 2\], got \[2, 2, 1\]"):
        nearest_latents(z, ArrayLatents(latents(5, (2, 2, 1))), 1)
    with pytest.raises(UserError, match="between 1 and the 4 latents"):
        nearest_latents(z, z, 5, "cosine", np.arange(5))
    with pytest.raises(UserError, match="Did you mean cosine"):
        nearest_latents(z, z, 1, "cosin")
    broken = latents(5, (2, 2, 2))
    broken[3, 0, 0, 0] = np.nan
    with pytest.raises(UserError, match="NaN or infinity"):
        nearest_latents(z, ArrayLatents(broken), 1)
