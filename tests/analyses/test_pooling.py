"""Pooling is compared with loops over images and with torch's own interpolation."""

import numpy as np
import pytest
import torch
from torch.nn.functional import interpolate

from analyses import pooling
from analyses.pooling import feature_width, features, masked_means, masks_on_grid
from latentlab import latents as latents_module
from latentlab.errors import UserError
from latentlab.latents import ArrayLatents


@pytest.mark.parametrize("size", [(4, 6), (8, 12), (12, 12), (3, 5), (64, 96)])
def test_nearest_masks_equal_interpolation(size):
    masks = torch.rand(5, *size, generator=torch.Generator().manual_seed(0)) < 0.3
    expected = interpolate(masks.float()[:, None], (4, 6), mode="nearest")[:, 0] > 0
    assert torch.equal(masks_on_grid(masks, (4, 6), "nearest"), expected)


def test_maxpool_keeps_a_cell_with_one_foreground_pixel():
    masks = torch.zeros(1, 8, 8, dtype=torch.bool)
    masks[0, 3, 5] = True
    assert masks_on_grid(masks, (2, 2), "maxpool")[0].tolist() == [[False, True], [False, False]]
    assert not masks_on_grid(masks, (2, 2), "nearest").any()


@pytest.mark.parametrize("mode", ["nearest", "maxpool", "none"])
def test_masked_means_equal_a_loop(mode, monkeypatch):
    rng = np.random.default_rng(0)
    z = rng.standard_normal((23, 3, 4, 4)).astype(np.float32) + 1000  # a large offset must not cost digits
    masks = rng.random((23, 8, 8)) < 0.2
    masks[5] = False
    latents = ArrayLatents(z, masks=masks)
    monkeypatch.setattr(latents_module, "BATCH_BYTES", 1000)  # several batches
    means, counts = masked_means(latents, mode)
    for i in range(23):
        cells = {
            "nearest": masks[i, ::2, ::2],
            "maxpool": masks[i].reshape(4, 2, 4, 2).any((1, 3)),
            "none": np.ones((4, 4), bool),
        }[mode]
        assert counts[i] == cells.sum()
        expected = z[i].astype(np.float64)[:, cells].mean(1) if cells.any() else np.zeros(3)
        np.testing.assert_allclose(means[i], expected, rtol=0, atol=1e-6)


def test_tokens_have_no_masks():
    latents = ArrayLatents(np.ones((3, 5, 2), np.float32), masks=np.ones((3, 4, 4), bool))
    with pytest.raises(UserError, match="1-D tokens"):
        masked_means(latents, "nearest")
    assert masked_means(latents, "none")[0].shape == (3, 2)


@pytest.mark.parametrize("layout", ["grid", "tokens"])
def test_features(layout, monkeypatch):
    rng = np.random.default_rng(1)
    cells = rng.standard_normal((11, 3, 6)).astype(np.float32)  # channel first
    latents = ArrayLatents(cells.reshape(11, 3, 2, 3) if layout == "grid" else cells.transpose(0, 2, 1))
    monkeypatch.setattr(pooling, "BATCH_BYTES", 200)  # several batches
    indices = np.array([0, 2, 3, 7, 8, 10])
    average, largest = cells[indices].mean(2, dtype=np.float64), cells[indices].max(2)
    expected = {
        "avgpool": average,
        "maxpool": largest,
        "avgmaxpool": np.concatenate([average, largest], axis=1),
        "flatten": cells[indices].reshape(6, -1),
    }
    for name, value in expected.items():
        found = features(latents, name, indices)
        assert found.shape == (6, feature_width(latents, name))
        np.testing.assert_allclose(found, value, rtol=1e-12)
    assert features(latents, "flatten", indices).dtype == np.float32
