"""Images as the measurements see them: arrays and image sets give the same, mistakes are named."""

import numpy as np
import pytest
import torch

from latentlab import UserError, open_data
from latentlab.pixels import ArrayPixels, ChosenPixels, SetPixels, as_pixels

BYTES = np.random.default_rng(0).integers(0, 256, (7, 3, 4, 6), dtype=np.uint8)


def test_bytes_become_the_unit_range_and_floats_stay() -> None:
    pixels = as_pixels(BYTES)
    assert (pixels.n, pixels.shape) == (7, (3, 4, 6))
    np.testing.assert_allclose(pixels.take(slice(None)), BYTES / 127.5 - 1, atol=1e-6)
    exact = BYTES / 127.5 - 1
    assert as_pixels(exact).take(slice(2, 4)).dtype == torch.float64
    np.testing.assert_array_equal(as_pixels(exact).take(np.array([6, 0])), exact[[6, 0]])


def test_batches_are_all_images_in_order() -> None:
    pixels = as_pixels(torch.from_numpy(BYTES))
    assert [len(batch) for batch in pixels.batches(3)] == [3, 3, 1]
    torch.testing.assert_close(torch.cat(list(pixels.batches(3))), pixels.take(slice(None)))


def test_image_set_gives_what_it_holds() -> None:
    images = open_data("fashion:test", limit=9)
    pixels = as_pixels(images)
    assert isinstance(pixels, SetPixels) and pixels.shape == (3, 32, 32)
    assert (pixels.fingerprint, pixels.n) == (images.fingerprint, 9)
    expected = images.images(np.arange(9)).float() / 127.5 - 1
    torch.testing.assert_close(torch.cat(list(pixels.batches(4))), expected)
    torch.testing.assert_close(pixels.take(slice(2, 5)), expected[2:5])
    assert as_pixels(pixels) is pixels


def test_chosen_images_are_those_rows() -> None:
    whole = ArrayPixels(BYTES, labels=np.arange(7))
    chosen = ChosenPixels(whole, np.array([5, 1, 3]))
    torch.testing.assert_close(chosen.take(slice(1, 3)), whole.take(np.array([1, 3])))
    assert chosen.labels.tolist() == [5, 1, 3] and chosen.fingerprint != whole.fingerprint


def test_fingerprint_follows_content_and_type() -> None:
    other = BYTES.copy()
    other[6, 2, 3, 5] ^= 1
    prints = {as_pixels(images).fingerprint for images in (BYTES, other, BYTES / 127.5 - 1)}
    assert len(prints) == 3 and as_pixels(BYTES.copy()).fingerprint in prints


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros((2, 4, 4, 3), np.uint8), r"must be \[n,3,H,W\]"),
        (np.zeros((0, 3, 4, 4), np.uint8), "images are empty"),
        (np.zeros((2, 3, 4, 4), np.int64), "floats in"),
        (np.full((2, 3, 4, 4), 200.0), r"values up to 200"),
        (np.full((2, 3, 4, 4), np.nan), r"values up to nan"),
    ],
)
def test_mistakes_are_named(images: np.ndarray, message: str) -> None:
    with pytest.raises(UserError, match=message):
        as_pixels(images).take(slice(None))


def test_labels_of_another_length_are_refused() -> None:
    with pytest.raises(UserError, match="one entry per image"):
        ArrayPixels(BYTES, labels=[1, 2])


def test_eight_bit_images_are_known() -> None:
    assert as_pixels(BYTES).eight_bit and as_pixels(open_data("fashion:test", limit=3)).eight_bit
    assert not as_pixels(BYTES / 127.5 - 1).eight_bit
    assert ChosenPixels(as_pixels(BYTES), np.array([1])).eight_bit
