"""The distance of generated from real images, against numpy's moments and repeated sampling."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from analyses.frechet import frechet_distance
from latentlab import UserError
from latentlab.files import home
from latentlab.quality.generation import PARTS, generated_images, generation_distance
from latentlab.quality.sample_file import write_sample_file
from latentlab.quality.sample_parts import SampleParts


def colours(images: Tensor) -> Tensor:
    """Three features: the means of the channels."""
    return images.mean((2, 3)).double()


def pictures(n: int, seed: int, shift: float = 0.0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    mixed = rng.normal(size=(n, 3)) @ np.array([[20, 5, 0], [0, 15, 8], [0, 0, 25]]) + 120 + shift
    return np.broadcast_to(mixed.round().clip(0, 255).astype(np.uint8)[:, :, None, None], (n, 3, 2, 2)).copy()


def test_equals_the_distance_of_numpys_moments() -> None:
    made, real = pictures(300, 0, 9), pictures(500, 1)
    result = generation_distance(made, real, colours)
    x, y = (images[:, :, 0, 0] / 127.5 - 1 for images in (made, real))
    expected = frechet_distance(x.mean(0), np.cov(x.T), y.mean(0), np.cov(y.T))
    assert result.value == pytest.approx(expected, rel=1e-5)
    assert (result.name, result.extractor, result.n, result.n_reference) == ("fd_colours", "colours", 300, 500)
    assert result.warnings == () and result.interval is not None


def test_the_interval_is_as_wide_as_repeated_sampling() -> None:
    """95 % of a normal distribution lie within 1.96 standard deviations."""
    results = [
        generation_distance(pictures(200, 2 * i, 9), pictures(200, 2 * i + 1), colours, seed=i) for i in range(90)
    ]
    spread = np.std([result.value for result in results], ddof=1)
    widths = [result.interval[1] - result.interval[0] for result in results if result.interval]
    assert np.mean(widths) == pytest.approx(2 * 1.96 * spread, rel=0.25)


def test_images_are_rounded_to_8_bits_on_both_sides() -> None:
    real = pictures(50, 0)
    fine = torch.from_numpy(real).float() / 127.5 - 1 + 0.3 / 127.5
    assert generation_distance(fine, real, colours).value == pytest.approx(0, abs=1e-12)
    assert generation_distance(real, fine, colours).value == pytest.approx(0, abs=1e-12)


def test_says_when_there_are_too_few_images() -> None:
    result = generation_distance(pictures(3, 0), pictures(50, 1), colours)
    assert result.interval is None and "3 images for 3 colours features" in result.warnings[0] and result.value > 0
    with pytest.raises(UserError, match="at least 2 features"):
        generation_distance(pictures(1, 0), pictures(50, 1), colours)


def test_says_when_sizes_differ() -> None:
    large = pictures(50, 1).repeat(2, axis=2).repeat(2, axis=3)
    assert "2x2 pixels, real ones 4x4" in generation_distance(pictures(50, 0), large, colours).warnings[0]


def test_only_the_reference_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LATENTLAB_HOME", str(tmp_path))
    real = pictures(4, 0)
    first = generation_distance(pictures(3, 1), real)
    assert first.name == "fd_efficientnet_lite0" and "efficientnet" in first.extractor
    assert len(list((home() / "features").iterdir())) == 1
    assert generation_distance(pictures(3, 1), real) == first
    assert len(list((home() / "features").iterdir())) == 1


def test_opens_a_run_in_either_form(tmp_path: Path) -> None:
    images = pictures(9, 0).transpose(0, 2, 3, 1)
    with pytest.raises(UserError, match="no generated images"):
        generated_images(tmp_path)
    SampleParts(tmp_path / PARTS).write(0, images, np.zeros(9), {})
    assert np.array_equal(generated_images(tmp_path).levels(slice(0, 9)), images)
    write_sample_file(tmp_path / "samples_9x2x2x3.npz", (9, 2, 2), [images[::-1]], np.zeros(9))
    assert np.array_equal(generated_images(tmp_path).levels(slice(0, 9)), images[::-1])
    assert np.array_equal(generated_images(tmp_path / "samples_9x2x2x3.npz").levels(slice(0, 1)), images[8:])
    write_sample_file(tmp_path / "samples_8x2x2x3.npz", (8, 2, 2), [images[:8]], np.zeros(8))
    with pytest.raises(UserError, match="2 files"):
        generated_images(tmp_path)
