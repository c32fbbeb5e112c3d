"""UMAP's coordinates are not tested, its neighbourhoods are: they are what a reader may trust."""

import sys

import numpy as np
import pytest
import torch
from sklearn.manifold import trustworthiness

from analyses.embedding import umap_points
from latentlab.errors import UserError
from latentlab.latents import ArrayLatents


@pytest.fixture(scope="module")
def latents() -> ArrayLatents:
    """Three tight groups of [3,2,2] latents on channels of very different scale."""
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1, 2], [100, 60, 40])
    centres = 4 * rng.standard_normal((3, 3, 2, 2))
    z = (centres[labels] + 0.5 * rng.standard_normal((200, 3, 2, 2))) * np.array([1e-3, 1, 1e3])[:, None, None]
    return ArrayLatents(z, labels=labels)


def test_points_keep_the_neighbourhoods_of_a_balanced_subset(latents: ArrayLatents) -> None:
    points, labels = umap_points(latents, n=120)
    assert points.shape == (120, 2) and points.dtype == np.float64
    assert np.bincount(labels).tolist() == [40, 40, 40]
    centres = np.array([points[labels == k].mean(0) for k in range(3)])
    nearest = np.linalg.norm(points[:, None] - centres, axis=2).argmin(1)
    assert (nearest == labels).mean() > 0.98


def test_every_channel_counts_alike_and_repeats_exactly(latents: ArrayLatents) -> None:
    z = latents.moments.standardise(latents.take(slice(None)))
    points, labels = umap_points(latents)
    assert trustworthiness(z.flatten(1).numpy(), points, n_neighbors=10) > 0.9
    np.testing.assert_array_equal(labels, latents.labels)
    # Standardised beforehand, they are the same latents; another run gives the same points.
    np.testing.assert_array_equal(umap_points(ArrayLatents(z))[0], points)


def test_another_seed_is_another_picture_and_subset(latents: ArrayLatents) -> None:
    first, second = (umap_points(latents, n=50, n_neighbors=5, seed=seed)[0] for seed in (1, 2))
    assert not np.allclose(first, second)


def test_without_labels_there_are_none() -> None:
    z = torch.randn(30, 2, 3, 3, generator=torch.Generator().manual_seed(0))
    points, labels = umap_points(ArrayLatents(z), n=20, n_neighbors=5)
    assert points.shape == (20, 2) and labels is None


@pytest.mark.parametrize(
    ("parameters", "complaint"),
    [
        ({"n_neighbors": 2}, "n_neighbors must be at least 3, got 2"),
        ({"min_dist": 1.5}, r"min_dist must lie in \[0, 1\], got 1.5"),
        ({"n": 15}, "needs more than 15 latents, got 15"),
        ({"n_neighbors": 200}, "needs more than 200 latents, got 200"),
    ],
)
def test_parameters_out_of_range(latents: ArrayLatents, parameters: dict, complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        umap_points(latents, **parameters)


def test_missing_umap_says_how_to_install_it(latents: ArrayLatents, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "umap", None)
    with pytest.raises(UserError, match="pip install umap-learn"):
        umap_points(latents)


def test_nan_is_refused() -> None:
    z = np.zeros((30, 1, 2, 2))
    z[3] = np.nan
    with pytest.raises(UserError, match="1 of 30 latents contain NaN"):
        umap_points(ArrayLatents(z))
