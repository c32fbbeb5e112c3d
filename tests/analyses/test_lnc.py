"""LNC against closed forms, a plain numpy version of the formula, and its invariances."""

import numpy as np
import pytest
import torch

from analyses.lnc import _influences, lnc
from analyses.neighbours import nearest
from latentlab.errors import UserError
from latentlab.latents import ArrayLatents, TokenizerSpec
from latentlab.registry import measure
from latentlab.store import StoreWriter


def tight_classes(classes, per_class, seed=0):
    """Latents [n,c,2,2] of separated classes: unit vectors along the axes, with tiny differences inside a class."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(classes), per_class)
    z = np.zeros((len(labels), classes, 2, 2))
    z[np.arange(len(labels)), labels] = 1
    return z + 1e-3 * rng.standard_normal(z.shape), labels


def random_set(n=300, classes=7, seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, n)
    z = rng.standard_normal((n, 6, 4, 4)) + 0.6 * rng.standard_normal((classes, 6, 1, 1))[labels] + 2
    masks = rng.random((n, 8, 8)) < 0.4
    return z.astype(np.float32), labels, masks


def plain(z, labels, masks, k, metric, normalize, center):
    """The formula in float64, image by image; masks at the resolution of the latents."""
    z = z.astype(np.float64)
    if normalize:
        z = (z - z.mean((0, 2, 3), keepdims=True)) / z.std((0, 2, 3), ddof=1, keepdims=True)
    f = np.stack([cells[:, m].mean(1) for cells, m in zip(z, masks, strict=True)])
    if center:
        f = f - f.mean(0)
    share = []
    for i in range(len(f)):
        if metric == "l2":
            distance = ((f - f[i]) ** 2).sum(1)
        else:
            distance = 1 - f @ f[i] / (np.linalg.norm(f, axis=1) * np.linalg.norm(f[i]))
        distance[i] = np.inf
        share.append(np.mean(labels[np.argsort(distance, kind="stable")[:k]] == labels[i]))
    return np.array(share)


@pytest.mark.parametrize(("k", "expected"), [(1, 1.0), (4, 1.0), (8, 0.5)])
def test_tight_separated_classes(k, expected):
    """4 classes of 5: all 4 others come first, so LNC@k = min(1, 4/k), which is also the ceiling."""
    z, labels = tight_classes(4, 5)
    result = measure("lnc", z, labels, k=k)
    assert result.value == pytest.approx(expected, abs=1e-12)
    assert result.details["ceiling"] == pytest.approx(expected)
    assert any("cap" in warning for warning in result.warnings) == (k == 8)
    assert result.companions["LNC@5"].value == pytest.approx(0.8)
    assert result.companions["LNC@10"].value == pytest.approx(0.4)


def test_random_labels_reach_chance():
    """Expectation (n-1)/(N-1) with n images per class; the standard error over 4000 x 10 draws is about 0.002."""
    z = np.random.default_rng(1).standard_normal((4000, 8, 2, 2)).astype(np.float32)
    result = measure("lnc", z, np.arange(4000) % 4, k=10)
    chance = 999 / 3999
    assert result.details["chance"] == pytest.approx(chance)
    assert result.value == pytest.approx(chance, abs=0.008)
    low, high = result.interval
    assert low < chance < high
    assert high - low < 0.02


@pytest.mark.parametrize("metric", ["cosine", "l2"])
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("center", [True, False])
def test_equals_the_formula(metric, normalize, center):
    z, labels, masks = random_set()
    result = measure("lnc", z, labels, masks, metric=metric, normalize=normalize, center=center)
    fractions = plain(z, labels, masks[:, ::2, ::2], 5, metric, normalize, center)
    assert result.value == pytest.approx(fractions.mean(), abs=1e-12)
    for label, value in result.details["per_class"].items():
        assert value == pytest.approx(fractions[labels == label].mean(), abs=1e-12)


def test_mask_modes():
    z, labels, masks = random_set(seed=1)
    nearest, largest = masks[:, ::2, ::2], masks.reshape(-1, 4, 2, 4, 2).any((2, 4))
    every = np.ones_like(nearest)
    for mode, cells in (("nearest", nearest), ("maxpool", largest), ("none", every)):
        expected = plain(z, labels, cells, 5, "cosine", True, False).mean()
        assert measure("lnc", z, labels, masks, mask=mode).value == pytest.approx(expected, abs=1e-12)
    assert measure("lnc", z, labels, masks).parameters["mask"] == "nearest"
    assert measure("lnc", z, labels).parameters["mask"] == "none"
    assert "nearest mask" in measure("lnc", z, labels, masks).variant


def test_invariances():
    """Order of the images, dtype, batch size, scale and offset of a channel do not change the value."""
    z, labels, masks = random_set(seed=2)
    value = measure("lnc", z, labels, masks).value
    order = np.random.default_rng(0).permutation(len(z))
    assert measure("lnc", z[order], labels[order], masks[order]).value == pytest.approx(value, abs=1e-12)
    assert measure("lnc", torch.from_numpy(z).double(), labels, masks).value == pytest.approx(value, abs=1e-12)
    scale = np.array([1, 2, 4, 8, 0.5, 0.25], dtype=np.float32)[:, None, None]
    assert measure("lnc", z * scale + 3, labels, masks).value == pytest.approx(value, abs=1e-12)


def test_batch_size_does_not_matter(monkeypatch):
    z, labels, masks = random_set(seed=3)
    whole = measure("lnc", z, labels, masks)
    monkeypatch.setattr("latentlab.latents.BATCH_BYTES", 10_000)
    assert measure("lnc", z, labels, masks).to_json() == whole.to_json()


def test_a_store_gives_the_same_as_arrays(tmp_path):
    z, labels, masks = random_set(seed=6)
    spec = TokenizerSpec(name="test", release="test", kind="continuous", layout="grid", channels=6)
    writer = StoreWriter(tmp_path / "store", request={}, spec=spec)
    writer.append(torch.from_numpy(z), labels, masks=torch.from_numpy(masks))
    store = writer.finish()
    assert measure("lnc", store=store).to_json() == measure("lnc", z, labels, masks).to_json()


def test_seed_moves_only_the_interval():
    z, labels, _ = random_set()
    first, again, other = (measure("lnc", z, labels, seed=seed) for seed in (0, 0, 1))
    assert first.to_json() == again.to_json()
    assert first.value == other.value
    assert first.interval != other.interval
    assert first.interval[0] < first.value < first.interval[1]


@pytest.mark.parametrize(("k", "separation"), [(5, 0.7), (1, 0.7), (5, 2.0)])
def test_interval_holds_the_mean_of_repeated_samples(k, separation):
    """200 samples of 10 Gaussian classes: resampling the images' own shares would hold it in about 80 % (k = 5) of them."""
    rng = np.random.default_rng(3)
    centres, labels = separation * rng.standard_normal((10, 8)), np.arange(250) % 10
    found = []
    for seed in range(200):
        z = (centres[labels] + rng.standard_normal((250, 8)))[:, None]
        m = measure("lnc", z, labels, k=k, seed=seed)
        found.append([[e.value, *e.interval] for e in (m, *m.companions.values())])
    values, low, high = np.moveaxis(found, 2, 0)
    held = ((low <= values.mean(0)) & (values.mean(0) <= high)).mean(0)
    assert (held > 0.92).all(), held


def test_influences_follow_their_formula():
    """The derivative of LNC in the weight of an image by finite differences, each list a weighted mean over k + 1 images."""
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((40, 3)), rng.integers(0, 3, 40)
    found = nearest(x, x, 6, "cosine", exclude_self=True)
    same = y[found] == y[:, None]

    def as_neighbours(weights):
        return np.mean((weights[found] * same).sum(1) / weights[found].sum(1))

    def slope(i):
        step = np.zeros(40)
        step[i] = 1e-5
        return (as_neighbours(1 + step) - as_neighbours(1 - step)) / 2e-5

    share = same[:, :5].mean(1)
    expected = share - share.mean() + 40 * np.array([slope(i) for i in range(40)])
    np.testing.assert_allclose(_influences(same, found, 5), expected, atol=1e-8)


def test_interval_of_a_fraction_stays_one():
    z, labels = tight_classes(4, 11)
    low, high = measure("lnc", z, labels, k=10).interval
    assert 0 <= low <= high == 1


def test_a_wide_constant_channel_does_not_hide_the_others():
    """The rounding of one channel's values, however large, is not that of another's."""
    z, labels = tight_classes(4, 5)
    z = 1e-3 * z.astype(np.float32)
    z[:, 3] = 1e6
    assert measure("lnc", z, labels, k=4).value > 0


def test_empty_masks_are_left_out_and_counted():
    z, labels, masks = random_set(seed=4)
    masks[:20] = False
    result = measure("lnc", z, labels, masks)
    assert result.n == 280
    assert any(warning.startswith("20 of 300 images have an empty mask") for warning in result.warnings)
    # Channel statistics still come from all images, so the rest is not measured exactly as if it stood alone.
    assert measure("lnc", z, labels, masks, normalize=False).value == pytest.approx(
        measure("lnc", z[20:], labels[20:], masks[20:], normalize=False).value, abs=1e-12
    )


def test_tokens_are_averaged_and_masks_ignored():
    z, labels, masks = random_set(seed=5)
    tokens = z.reshape(300, 6, 16).transpose(0, 2, 1)
    expected = measure("lnc", z, labels).value
    with_masks = measure("lnc", tokens, labels, masks)
    assert measure("lnc", tokens, labels).value == expected == with_masks.value
    assert not measure("lnc", tokens, labels).warnings
    assert any("masks were ignored" in warning for warning in with_masks.warnings)


def test_zero_features_are_reported():
    z, labels = tight_classes(3, 6)
    z[:2] = 0
    assert any("2 images have a zero feature" in w for w in measure("lnc", z, labels, normalize=False).warnings)
    assert not measure("lnc", z, labels, normalize=False, metric="l2").warnings


def test_one_label_and_few_images_are_said():
    z, _ = tight_classes(2, 4)
    result = measure("lnc", z, np.zeros(8, int))
    assert result.value == 1
    assert "LNC@10" not in result.companions
    assert any("one label" in warning for warning in result.warnings)
    assert any("LNC@10 needs" in warning for warning in result.warnings)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k": 20}, "k=20 and 20 images"),
        ({"k": 0}, "k=0"),
        ({"metric": "cosin"}, "Did you mean cosine"),
        ({"mask": "max"}, "unknown mask mode"),
        ({"mask": "nearest"}, "needs masks"),
    ],
)
def test_bad_parameters_are_refused(change, message):
    z, labels = tight_classes(4, 5)
    with pytest.raises(UserError, match=message):
        measure("lnc", z, labels, **change)


def test_bad_latents_are_refused():
    z, labels = tight_classes(4, 5)
    with pytest.raises(UserError, match="needs labels"):
        lnc(ArrayLatents(z))
    with pytest.raises(UserError, match="at least 2 images: all 20 classes have one"):
        measure("lnc", z, np.arange(20))  # whatever the latents are, no neighbour could be of the same class
    with pytest.raises(UserError, match="collapsed"):
        measure("lnc", np.full((20, 3, 2, 2), 0.3, np.float32), labels)
    with pytest.raises(UserError, match="0 images with a foreground"):
        measure("lnc", z, labels, np.zeros((20, 2, 2), bool))
    z[3, 0, 0, 0] = np.nan
    with pytest.raises(UserError, match="1 of 20 latents contain NaN"):
        measure("lnc", z, labels)
