import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA

from analyses import pca as module
from analyses.pca import pca
from analyses.points import ArrayPoints
from latentlab.errors import UserError


def points(n: int, d: int, decay: float = 0.9, seed: int = 0) -> torch.Tensor:
    """Points with mean far from 0 and geometrically decaying variances along random directions."""
    rng = np.random.default_rng(seed)
    directions = np.linalg.qr(rng.standard_normal((d, d)))[0]
    return torch.from_numpy(rng.standard_normal((n, d)) * decay ** np.arange(d) @ directions.T + 50)


@pytest.fixture(params=["covariance", "gram", "randomised"])
def method(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Choose the way by moving the size up to which the exact ones are taken."""
    if request.param != "covariance":
        monkeypatch.setattr(module, "EXACT_SIZE", {"gram": 150, "randomised": 10}[request.param])
    return request.param


def data_for(method: str) -> torch.Tensor:
    return points(150, 200) if method == "gram" else points(900, 200)


@pytest.mark.parametrize("explained", [0.5, 0.9, 0.99])
def test_equals_scikit_learn(method: str, explained: float) -> None:
    rows = data_for(method)
    peer = PCA(explained, svd_solver="full").fit(rows.numpy())
    ours = pca(ArrayPoints(rows, size=64), explained=explained)
    n, k = len(rows), len(peer.explained_variance_)
    assert len(ours.variances) == k
    exact = method != "randomised"
    np.testing.assert_allclose(ours.mean, peer.mean_, rtol=1e-12)
    np.testing.assert_allclose(ours.variances * n / (n - 1), peer.explained_variance_, rtol=1e-9 if exact else 1e-3)
    assert ours.explained == pytest.approx(peer.explained_variance_ratio_.sum(), rel=1e-10 if exact else 1e-3)
    cosines = np.abs((ours.components.numpy() * peer.components_).sum(1))
    assert cosines.min() > (1 - 1e-9 if exact else 0.9)


def test_standardised_components_are_white(method: str) -> None:
    rows = data_for(method)
    ours = pca(ArrayPoints(rows), dims=20)
    white = ours.standardise(rows)
    assert white.dtype == torch.float64
    torch.testing.assert_close(white.mean(0), torch.zeros(20).double(), atol=1e-10, rtol=0)
    torch.testing.assert_close(torch.cov(white.T, correction=0), torch.eye(20).double(), atol=1e-9, rtol=0)


def test_chunks_and_storage_precision_do_not_matter(method: str) -> None:
    rows = data_for(method).float()
    whole, pieces = (pca(ArrayPoints(r, size=s), dims=5) for r, s in ((rows.double(), 1000), (rows, 17)))
    torch.testing.assert_close(pieces.variances, whole.variances, rtol=1e-5, atol=0)
    assert pieces.total_variance == pytest.approx(whole.total_variance, rel=1e-12)


def test_threshold_is_strict() -> None:
    rows = torch.tensor([[3.0, 0.0], [-3.0, 0.0], [0.0, 1.0], [0.0, -1.0]])  # shares 0.9 and 0.1, exactly
    assert len(pca(ArrayPoints(rows), explained=0.9).variances) == 2
    assert len(pca(ArrayPoints(rows), explained=0.89).variances) == 1


def test_randomised_widens_until_the_share_is_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "EXACT_SIZE", 10)
    monkeypatch.setattr(module, "_FIRST", 24)
    rows = points(600, 120, decay=0.98)
    peer = PCA(0.9, svd_solver="full").fit(rows.numpy())
    ours = pca(ArrayPoints(rows))
    assert len(ours.variances) == pytest.approx(peer.n_components_, abs=1) and ours.explained > 0.9
    assert ours.total_variance == pytest.approx(rows.var(0, correction=0).sum().item(), rel=1e-12)


def test_exact_methods_stop_at_the_most_components() -> None:
    for rows in (points(600, 40, decay=0.99), points(40, 600, decay=0.99)):
        ours = pca(ArrayPoints(rows), most=15)
        assert len(ours.variances) == 15 and ours.explained < 0.9


def test_randomised_stops_at_the_most_components(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "EXACT_SIZE", 10)
    monkeypatch.setattr(module, "_FIRST", 20)
    ours = pca(ArrayPoints(points(600, 120, decay=0.99)), most=15)
    assert len(ours.variances) == 15 and ours.explained < 0.9


def test_randomised_repeats_with_its_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "EXACT_SIZE", 10)
    rows = ArrayPoints(points(300, 150))
    first, again, other = (pca(rows, dims=4, seed=s).components for s in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_what_has_no_components_is_refused() -> None:
    rows = points(50, 6)
    flat = rows.clone()
    flat[:, 3:] = 1.0
    for bad, message in (
        ({"explained": 0.0}, "explained must lie between 0 and 1, got 0.0"),
        ({"explained": 1.0}, "explained must lie between 0 and 1, got 1.0"),
        ({"dims": 7}, "dims must lie between 1 and 6 for 50 points of 6 numbers, got 7"),
        ({"dims": 0}, "got 0"),
    ):
        with pytest.raises(UserError, match=message):
            pca(ArrayPoints(rows), **bad)
    with pytest.raises(UserError, match="vary in only 3 directions: use dims=3 or fewer"):
        pca(ArrayPoints(flat), dims=4)
    wide = torch.cat([points(20, 30)] * 100, dim=1).repeat(3, 1)  # more dimensions than are decomposed, of rank 19
    with pytest.raises(UserError, match="vary in only 19 directions: use dims=19 or fewer"):
        pca(ArrayPoints(wide), dims=40)
    with pytest.raises(UserError, match="all points are equal"):
        pca(ArrayPoints(torch.full((9, 4), 0.1)))
    with pytest.raises(UserError, match="at least 2 points, got 1"):
        pca(ArrayPoints(rows[:1]))
