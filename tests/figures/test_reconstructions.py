import itertools

import numpy as np
import pytest
import torch

from figures import reconstructions
from latentlab.errors import UserError


@pytest.fixture
def originals() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (4, 3, 8, 8), dtype=np.uint8)


def _rows(figure, n: int) -> list[list[np.ndarray]]:
    pictures = [np.asarray(axes.get_images()[0].get_array()) for axes in figure.axes[: 3 * n]]
    return [pictures[:n], pictures[n : 2 * n], pictures[2 * n :]]


def test_rows_are_original_reconstruction_and_difference(originals: np.ndarray) -> None:
    decoded = torch.from_numpy(originals / 127.5 - 1).float() * 0.5  # the same images at half contrast, in [-1,1]
    first, second, difference = _rows(reconstructions.draw(originals, decoded), 4)
    for k in range(4):
        x = originals[k].transpose(1, 2, 0) / 255
        np.testing.assert_allclose(first[k], x)
        np.testing.assert_allclose(second[k], (x - 0.5) * 0.5 + 0.5, atol=1e-6)
        np.testing.assert_allclose(difference[k], np.abs((x - 0.5) * 0.5).mean(-1), atol=1e-6)


def test_differences_share_one_scale_from_zero(originals: np.ndarray) -> None:
    decoded = originals.copy()
    decoded[2] = 255 - decoded[2]
    figure = reconstructions.draw(originals, decoded)
    scales = [axes.get_images()[0].get_clim() for axes in figure.axes[8:12]]
    gaps = np.abs(originals.astype(float) - decoded).mean(1) / 255
    assert scales == [(0, pytest.approx(np.quantile(gaps, 0.999)))] * 4


def test_values_outside_the_range_are_clipped() -> None:
    _, second, difference = _rows(reconstructions.draw(np.ones((1, 1, 4, 4)), np.full((1, 1, 4, 4), 1.5)), 1)
    assert second[0].shape == (4, 4, 3) and second[0].max() == 1 and difference[0].max() == 0


def test_titles_fit_their_columns(originals: np.ndarray) -> None:
    names = ["tench", "n01484850_great_white_shark", "German short-haired pointer dog", "Ankle boot"]
    figure = reconstructions.draw(originals, originals, names, name="ibq on fashion:test")
    titles = [axes.title.get_window_extent() for axes in figure.axes[:4]]
    assert [axes.get_title() for axes in figure.axes[:2]] == ["tench", "great white\nshark"]
    assert all(a.x1 < b.x0 for a, b in itertools.pairwise(titles))
    assert figure.get_suptitle() == "Reconstructions: ibq on fashion:test"
    assert [axes.get_ylabel() for axes in figure.axes[:12:4]] == ["original", "reconstruction", "|difference|"]


def test_one_image_with_a_long_name_stays_on_the_page(originals: np.ndarray) -> None:
    figure = reconstructions.draw(originals[:1], originals[:1], name="ibq on imagefolder:a_folder_with_a_long_name/val")
    title = figure.texts[0].get_window_extent()
    assert title.x0 >= 0 and title.x1 <= figure.bbox.x1
    assert len({round(axes.get_position().x0, 6) for axes in figure.axes[:3]}) == 1  # one column


def test_bad_shapes_are_refused(originals: np.ndarray) -> None:
    with pytest.raises(UserError, match=r"reconstructions must be \[n,3,H,W\]"):
        reconstructions.draw(originals, originals.transpose(0, 2, 3, 1))
    with pytest.raises(UserError, match="must have the same shape"):
        reconstructions.draw(originals, originals[:, :, :4])
    with pytest.raises(UserError, match="got 1 for 4 images"):
        reconstructions.draw(originals, originals, ["ant"])
