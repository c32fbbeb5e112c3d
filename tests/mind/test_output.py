"""Grids and PNG files hold the very pixels of the images, in the right places."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from latentlab.quality.sample_parts import PartImages, SampleParts
from mind.output import class_rows, image_grid, write_class_grid, write_pngs


@pytest.fixture
def images(tmp_path: Path) -> PartImages:
    """Seven images of 64x48 pixels, image i of level 10 i; classes 2, 0, 2, 0, 2, 5, 5."""
    parts = SampleParts(tmp_path / "parts")
    levels = np.broadcast_to(np.uint8(10) * np.arange(7, dtype=np.uint8)[:, None, None, None], (7, 64, 48, 3))
    parts.write(0, levels, np.array([2, 0, 2, 0, 2, 5, 5]), {})
    return parts.images()


def test_a_grid_places_images_row_by_row() -> None:
    levels = np.arange(1, 6, dtype=np.uint8)[:, None, None, None].repeat(64, 1).repeat(70, 2).repeat(3, 3)
    grid = image_grid(levels, 3)
    assert grid.shape == (2 * 66 + 2, 3 * 72 + 2, 3) and grid.dtype == np.uint8
    assert grid[2, 2, 0] == 1 and grid[65, 71, 0] == 1 and grid[66, 2, 0] == 255  # first, its last pixel, the gap below
    assert grid[2, 74, 0] == 2 and grid[68, 2, 0] == 4 and grid[68, 74, 0] == 5
    assert (grid[68:, 146:] == 255).all()  # the last row is shorter


def test_small_images_are_enlarged_pixel_by_pixel() -> None:
    small = np.random.default_rng(0).integers(0, 255, (1, 32, 32, 3), dtype=np.uint8)
    grid = image_grid(small, 1)
    assert grid.shape == (68, 68, 3)
    for offset in (2, 3):
        assert np.array_equal(grid[offset : offset + 64 : 2, offset : offset + 64 : 2], small[0])


def test_a_row_for_every_class() -> None:
    labels = np.array([2, 0, 2, 0, 2, 5, 5])
    assert np.array_equal(class_rows(labels), [[1, 3], [0, 2], [5, 6]])
    assert np.array_equal(class_rows(labels, rows=2, columns=1), [[1], [0]])


def test_files_hold_the_pixels(tmp_path: Path, images: PartImages) -> None:
    write_class_grid(tmp_path / "a grid.png", images)
    with Image.open(tmp_path / "a grid.png") as grid:
        assert grid.size == (2 * 98 + 2, 3 * 130 + 2)
        middles = np.asarray(grid)[66::130, 50::98, 0]
    assert np.array_equal(middles, [[10, 30], [0, 20], [50, 60]])
    seen: list[int] = []
    write_pngs(tmp_path / "png", images, seen.append)
    (tmp_path / "png" / "000003.png").unlink()
    kept = (tmp_path / "png" / "000002.png").stat().st_mtime_ns
    write_pngs(tmp_path / "png", images)
    names = sorted(file.name for file in (tmp_path / "png").iterdir())
    assert names == [f"{i:06d}.png" for i in range(7)] and sum(seen) == 7
    assert (tmp_path / "png" / "000002.png").stat().st_mtime_ns == kept
    with Image.open(tmp_path / "png" / "000003.png") as one:
        assert np.array_equal(np.asarray(one), images.levels(np.array([3]))[0])
