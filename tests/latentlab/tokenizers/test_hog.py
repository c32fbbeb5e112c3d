"""Histograms of oriented gradients: closed forms, and the same numbers pixel by pixel."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from latentlab.tokenizers.hog import BINS, cell_size, hog, hog_channels


def slow_hog(image: np.ndarray, patch: int) -> np.ndarray:
    """Loops over patches, cells, colours and pixels, with angles in degrees."""
    cell, (_, height, width) = cell_size(patch), image.shape
    described = []
    for top in range(0, height, patch):
        for left in range(0, width, patch):
            numbers: list[float] = []
            for y0 in range(top, top + patch, cell):
                for x0 in range(left, left + patch, cell):
                    for colour in image.astype(np.float64):
                        histogram = np.zeros(9)
                        for y in range(y0, y0 + cell):
                            for x in range(x0, x0 + cell):
                                dx = colour[y, min(x + 1, width - 1)] - colour[y, max(x - 1, 0)]
                                dy = colour[min(y + 1, height - 1), x] - colour[max(y - 1, 0), x]
                                degrees = math.degrees(math.atan2(dy, dx)) % 180
                                histogram[int(degrees // 20) % 9] += math.hypot(dx, dy)
                        length = np.linalg.norm(histogram)
                        numbers.extend(histogram / length if length else histogram)
            described.append(numbers)
    return np.array(described)


def noise(*shape: int) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.mark.parametrize(("patch", "height", "width"), [(4, 12, 8), (16, 16, 32), (6, 12, 12)])
def test_the_same_pixel_by_pixel(patch: int, height: int, width: int) -> None:
    images = noise(2, 3, height, width)
    found = hog(images, patch)
    assert found.shape == (2, (height // patch) * (width // patch), hog_channels(patch))
    for image, described in zip(images.numpy(), found.numpy(), strict=True):
        np.testing.assert_allclose(described, slow_hog(image, patch), atol=1e-5)


@pytest.mark.parametrize("degrees", [5, 50, 90, 130, 175, 185, 310])
def test_a_ramp_has_one_orientation(degrees: float) -> None:
    """The gradient of cos(a) x + sin(a) y points to a; a and a + 180 degrees are one orientation. Away from the edges."""
    y, x = torch.meshgrid(torch.arange(24.0), torch.arange(24.0), indexing="ij")
    angle = math.radians(degrees)
    ramp = (math.cos(angle) * x + math.sin(angle) * y).expand(1, 3, -1, -1) / 40
    middle = hog(ramp, 8)[0, 4].view(3, BINS)
    expected = torch.zeros(3, BINS)
    expected[:, int(degrees % 180 // 20)] = 1
    torch.testing.assert_close(middle, expected)


def test_brightness_and_contrast_do_not_matter_and_flat_cells_are_0() -> None:
    images = noise(2, 3, 8, 8)
    torch.testing.assert_close(hog(0.3 * images + 0.2, 4), hog(images, 4), atol=1e-5, rtol=0)
    torch.testing.assert_close(hog(-images, 4), hog(images, 4), atol=1e-5, rtol=0)
    assert hog(torch.full((1, 3, 8, 8), 0.5), 4).abs().max() == 0


def test_cells_have_length_1_and_patches_lie_where_they_should() -> None:
    """A change in one patch moves its own cells and, by the pixels at the border, those of its neighbours only."""
    images = noise(1, 3, 16, 16)
    torch.testing.assert_close(hog(images, 4).reshape(-1, BINS).norm(dim=1), torch.ones(16 * 3))
    changed = images.clone()
    changed[:, :, 5:7, 9:11] = 0.1  # inside the patch of row 1, column 2
    moved = (hog(images, 4) != hog(changed, 4)).any(2)[0].nonzero().flatten().tolist()
    assert moved == [1 * 4 + 2]


def test_cell_sizes() -> None:
    assert [cell_size(patch) for patch in (4, 8, 14, 16)] == [4, 8, 2, 8]
    assert hog_channels(16) == 108 and hog_channels(4) == 27  # 108 as in Wei et al. 2022
