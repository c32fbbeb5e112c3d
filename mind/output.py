"""Generated images as pictures: a grid with a row for every class, and one PNG per image."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from latentlab.files import atomic_path
from latentlab.quality.generated_images import GeneratedImages

_GAP, _PAPER = 2, 255
"""Pixels between the images of a grid, and their level."""

_LEAST_SIDE = 64
"""Images in a grid are enlarged, pixel by pixel, to at least this many pixels a side."""

ROWS, COLUMNS = 16, 10
"""Most classes, and most images of each, in a grid."""


def image_grid(images: np.ndarray, columns: int) -> np.ndarray:
    """Return images as one, row by row.

    Args:
        images: uint8 [n,H,W,3]; small ones are enlarged by a whole factor.
        columns: images per row; the last row may be shorter.

    Returns:
        uint8 [H',W',3] with white gaps.
    """
    n, height, width, _ = images.shape
    scale = max(1, -(-_LEAST_SIDE // min(height, width)))
    large = images.repeat(scale, axis=1).repeat(scale, axis=2)
    down, right = (scale * side + _GAP for side in (height, width))
    rows = -(-n // columns)
    grid = np.full((rows * down + _GAP, min(n, columns) * right + _GAP, 3), _PAPER, np.uint8)
    for i, image in enumerate(large):
        top, left = _GAP + i // columns * down, _GAP + i % columns * right
        grid[top : top + scale * height, left : left + scale * width] = image
    return grid


def class_rows(labels: np.ndarray, rows: int = ROWS, columns: int = COLUMNS) -> np.ndarray:
    """Choose images for a grid with one class per row, the first of each class.

    Args:
        labels: class of every image, int64 [n].
        rows: at most this many classes, those of the smallest numbers.
        columns: at most this many images of each; as many as the shown class with the fewest has.

    Returns:
        Places in ``labels``, int64 [rows,columns].
    """
    places = [np.flatnonzero(labels == label) for label in np.unique(labels)[:rows]]
    width = min(columns, *map(len, places))
    return np.stack([place[:width] for place in places])


def write_grid(path: Path, images: np.ndarray, columns: int) -> None:
    """Write images, uint8 [n,H,W,3], as one PNG with ``columns`` of them in a row, atomically."""
    _write_png(path, image_grid(images, columns))


def write_class_grid(path: Path, images: GeneratedImages, rows: int = ROWS, columns: int = COLUMNS) -> None:
    """Write some of the images with one class per row as one PNG, atomically.

    Args:
        path: of the PNG.
        images: with labels.
        rows: most classes.
        columns: most images of each class.
    """
    assert images.labels is not None
    chosen = class_rows(images.labels, rows, columns)
    write_grid(path, images.levels(chosen.ravel()), chosen.shape[1])


def write_pngs(folder: Path, images: GeneratedImages, done: Callable[[int], None] = lambda amount: None) -> None:
    """Write every image as ``000000.png`` and so on, each atomically; files that are there are kept.

    Args:
        folder: created when absent.
        images: what is written.
        done: is told how many more are finished.
    """
    there = {file.name for file in folder.iterdir()} if folder.is_dir() else set()
    for i in range(images.n):
        if (name := f"{i:06d}.png") not in there:
            _write_png(folder / name, images.levels(slice(i, i + 1))[0])
        done(1)


def _write_png(path: Path, levels: np.ndarray) -> None:
    with atomic_path(path) as temporary:
        Image.fromarray(levels).save(temporary, format="png")
