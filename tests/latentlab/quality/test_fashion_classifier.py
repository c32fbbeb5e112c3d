"""The shipped classifier is as accurate as its header says, and its distance orders what it should order."""

from pathlib import Path

import numpy as np
import pytest
import torch

from latentlab.data import open_data
from latentlab.errors import UserError
from latentlab.pixels import to_unit_range
from latentlab.quality.fashion_classifier import NAME, WEIGHTS, load_fashion_classifier, scores
from latentlab.quality.fashion_classifier_training import accuracy_on_test_images, fitted
from latentlab.quality.features import extractor_names, feature_extractor
from latentlab.quality.generation import generation_distance


@pytest.fixture(autouse=True)
def _own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LATENTLAB_HOME", str(tmp_path / "home"))


def test_is_as_accurate_as_its_header_says() -> None:
    """Of 1,000 test images; the tolerance is three standard deviations of such a share."""
    claimed = scores()["accuracy"]
    assert claimed >= 0.91
    found = accuracy_on_test_images(load_fashion_classifier(), limit=1000)
    assert abs(found - claimed) < 3 * (claimed * (1 - claimed) / 1000) ** 0.5


def test_is_small_enough_to_ship() -> None:
    assert WEIGHTS.stat().st_size < 1_000_000


def test_distance_orders_clean_noisy_and_other_images() -> None:
    """Trousers against other trousers, the same with noise, and dresses."""
    data = open_data("fashion:test")
    trousers, dresses = (data.images(np.flatnonzero(data.labels == label)) for label in (1, 3))
    real, clean = trousers[:500], trousers[500:]
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))
    sets = {"clean": clean, "noisy": (clean + 15 * noise).clamp(0, 255).byte(), "other": dresses[:500]}
    found = {name: generation_distance(images, real, NAME) for name, images in sets.items()}
    assert found["clean"].name == "fd_fashion_classifier"
    assert 3 * found["clean"].value < found["noisy"].value < found["other"].value


def test_features_do_not_depend_on_the_batch() -> None:
    judge = feature_extractor(NAME)
    assert NAME in extractor_names() and judge.plain == "fashion_classifier"
    images = to_unit_range(open_data("fashion:test").images(np.arange(7)))
    together = judge(images)
    assert together.shape == (7, 96) and together.min() >= 0
    assert torch.equal(together, torch.cat([judge(image[None]) for image in images]))
    with torch.no_grad():
        plain = load_fashion_classifier().describe(images)
    torch.testing.assert_close(together, plain, atol=1e-5, rtol=1e-5)


def test_refuses_images_of_another_size() -> None:
    with pytest.raises(UserError, match="describes images 3x32x32, got 3x28x28"):
        feature_extractor(NAME)(torch.zeros(2, 3, 28, 28))


def test_training_gives_the_same_weights_again() -> None:
    first, second = fitted(1, limit=640), fitted(1, limit=640)
    for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True):
        assert torch.equal(a, b)
