"""Kronecker covariances against a slow direct version, exact cases, and what must not matter (precision, pieces, order)."""

import numpy as np
import pytest
import torch

from analyses import class_latents
from analyses.kronecker import fit_kronecker
from latentlab.errors import UserError
from latentlab.latents import ArrayLatents

C, H, W = 3, 2, 4
S = H * W


def slow_eigenvalues(z: np.ndarray, iterations: int) -> np.ndarray:
    """Flip-flop as it is written, with explicit inverses in float64; descending."""
    n, c = z.shape[:2]
    z = z.reshape(n, c, -1).astype(np.float64)
    z = z - z.mean(0)
    s = z.shape[2]
    total = (z**2).sum() / n
    cells = np.eye(s)
    for _ in range(iterations):
        channels = sum(x @ np.linalg.inv(cells) @ x.T for x in z) / (n * s)
        cells = sum(x.T @ np.linalg.inv(channels) @ x for x in z) / (n * c)
    product = np.outer(np.linalg.eigvalsh(channels), np.linalg.eigvalsh(cells)).ravel()
    return np.sort(product)[::-1] * total / product.sum()


def correlated(n: int, seed: int = 0, spread: float = 1.0) -> np.ndarray:
    """Latents [n,C,H,W] with correlated channels and cells and offsets; ``spread`` sets the condition."""
    rng = np.random.default_rng(seed)
    channels = rng.standard_normal((C, C)) + np.eye(C)
    cells = (rng.standard_normal((S, S)) + np.eye(S)) * np.logspace(0, -np.log10(spread), S)
    z = channels @ rng.standard_normal((n, C, S)) @ cells + rng.standard_normal((C, S))
    return z.reshape(n, C, H, W)


def exactly_kronecker(seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Latents whose sample covariance (ddof=0) is exactly Sigma_s (x) Sigma_c, and the two factors.

    +-sqrt(d) times every coordinate axis has mean 0 and covariance I; it is then given the factors' roots.
    """
    rng = np.random.default_rng(seed)
    a, b = rng.standard_normal((C, C)), rng.standard_normal((S, S))
    axes = np.concatenate([np.eye(C * S), -np.eye(C * S)]) * np.sqrt(C * S)
    return (a @ axes.reshape(-1, C, S) @ b.T).reshape(-1, C, H, W), a @ a.T, b @ b.T


def fit(z: np.ndarray, **options: object) -> np.ndarray:
    latents = ArrayLatents(z)
    return fit_kronecker(latents, np.arange(latents.n), **options).eigenvalues().numpy()  # type: ignore[arg-type]


@pytest.mark.parametrize("iterations", [1, 2, 5])
def test_equals_the_slow_version(iterations: int) -> None:
    z = correlated(12)
    np.testing.assert_allclose(fit(z, iterations=iterations), slow_eigenvalues(z, iterations), rtol=1e-10)


def test_recovers_an_exact_kronecker_covariance() -> None:
    z, channels, cells = exactly_kronecker()
    expected = np.outer(np.linalg.eigvalsh(channels), np.linalg.eigvalsh(cells)).ravel()
    np.testing.assert_allclose(fit(z), np.sort(expected)[::-1], rtol=1e-11)
    found = fit_kronecker(ArrayLatents(z), np.arange(len(z)))
    np.testing.assert_allclose(
        np.kron(found.cells.numpy(), found.channels.numpy()), np.kron(cells, channels), rtol=0, atol=1e-11
    )


def test_trace_is_the_biased_total_variance() -> None:
    z = correlated(7)
    assert fit(z).sum() == pytest.approx(z.reshape(7, -1).var(0, ddof=0).sum(), rel=1e-12)


@pytest.mark.parametrize("spread", [1e1, 1e2, 1e3, 1e5])
def test_float32_latents_lose_nothing_in_any_condition(spread: float) -> None:
    """Float32 products in whitened coordinates, against float64 of the very same numbers; condition up to spread^2."""
    z = correlated(40, spread=spread).astype(np.float32)
    quick, exact = (np.sqrt(fit(x)).sum() for x in (z, z.astype(np.float64)))
    assert quick == pytest.approx(exact, rel=1e-6)
    assert exact == pytest.approx(np.sqrt(slow_eigenvalues(z, 5)).sum(), rel=1e-6)


def test_a_large_offset_does_not_matter() -> None:
    z = correlated(40)
    shifted = (z + 100).astype(np.float32)
    assert np.sqrt(fit(shifted)).sum() == pytest.approx(
        np.sqrt(fit(z)).sum(), rel=2e-5
    )  # 1e-5 is lost in ``shifted`` itself


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_streaming_in_pieces_gives_the_same(dtype: type, monkeypatch: pytest.MonkeyPatch) -> None:
    z = correlated(37, spread=30).astype(dtype)
    whole = fit(z)
    monkeypatch.setattr(class_latents, "PIECE_BYTES", 1000)
    np.testing.assert_allclose(fit(z), whole, rtol=1e-5 if dtype is np.float32 else 1e-11)
    monkeypatch.setattr(class_latents, "CACHE_BYTES", 0)
    np.testing.assert_allclose(fit(z), whole, rtol=1e-5 if dtype is np.float32 else 1e-11)


def test_order_of_images_does_not_matter() -> None:
    z = correlated(20)
    np.testing.assert_allclose(fit(z[::-1].copy()), fit(z), rtol=1e-11)


def test_does_not_write_into_the_latents() -> None:
    z = correlated(20).astype(np.float32)
    before = z.copy()
    fit(z)
    np.testing.assert_array_equal(z, before)


def test_directions_without_variance_get_eigenvalue_zero() -> None:
    """Two constant cells (an image border, say) and a dependent channel: the rest as if they were not there."""
    z = correlated(30, seed=3)
    flat = z.reshape(30, C, S).copy()
    flat[:, :, [0, 5]] = 7.0
    inner = slow_eigenvalues(np.delete(flat, [0, 5], axis=2), 5)
    found = fit(flat.reshape(z.shape))
    np.testing.assert_allclose(found[: len(inner)], inner, rtol=1e-9)
    np.testing.assert_allclose(found[len(inner) :], 0, atol=1e-12 * inner[0])
    dependent = np.concatenate([z, z[:, :1] + z[:, 1:2]], axis=1)
    assert (fit(dependent) > 1e-10).sum() == C * S


def test_identical_images_have_no_variance() -> None:
    same = np.repeat(correlated(1), 9, axis=0)
    np.testing.assert_allclose(fit(same), np.zeros(C * S), rtol=0, atol=1e-25)


def test_too_few_images_are_refused_unless_shrunk() -> None:
    """3 channels x 8 cells: 3 centred images give 9 >= 8 vectors, so 4 images are needed."""
    fit(correlated(4))
    with pytest.raises(UserError, match=r"at least 4 images per class, one has 3.*shrinkage"):
        fit(correlated(3))
    assert (fit(correlated(3), shrinkage=0.1) > 0).all()


def test_shrinkage_runs_from_no_change_to_white() -> None:
    z = correlated(30)
    np.testing.assert_allclose(fit(z, shrinkage=1e-12), fit(z), rtol=1e-8)
    white = fit(z, shrinkage=1.0)
    np.testing.assert_allclose(white, np.full(C * S, white.mean()), rtol=1e-10)
    assert white.sum() == pytest.approx(fit(z).sum(), rel=1e-12)
    roots = [np.sqrt(fit(z, shrinkage=alpha)).sum() for alpha in (0.01, 0.1, 0.5, 1.0)]
    assert roots == sorted(roots)


def test_images_by_class_keeps_order_and_every_image() -> None:
    groups = class_latents.images_by_class(np.array([5, 1, 5, 1, 1]))
    assert {k: v.tolist() for k, v in groups.items()} == {1: [1, 3, 4], 5: [0, 2]}


def test_threads_do_not_matter_and_are_given_back() -> None:
    from analyses.threads import map_in_threads

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert map_in_threads(lambda x: (x, torch.get_num_threads()), range(5), most=9) == [(x, 1) for x in range(5)]
        assert map_in_threads(lambda x: (x, torch.get_num_threads()), range(3), most=1) == [(x, 2) for x in range(3)]
        with pytest.raises(ZeroDivisionError):
            map_in_threads(lambda x: 1 / x, range(3), most=2)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
