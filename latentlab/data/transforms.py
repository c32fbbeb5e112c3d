"""From encoded images to square RGB: decoding, and the centre crop that published latent generators were trained on.

The crop is the procedure of Dhariwal and Nichol (2021, "Diffusion Models Beat GANs on Image Synthesis", ADM): halve with a
box filter while the shorter side is at least twice the target, resize bicubically so that the shorter side is the target, cut
out the centre.
"""

import io
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, UnidentifiedImageError

from latentlab.errors import UserError

FORMATS = ("JPEG", "PNG", "WEBP", "BMP")
"""Formats that are decoded; others (PostScript, video, ...) would only widen what a hostile file can reach."""

MAX_RESIZED_PIXELS = 100_000_000
"""A crop that would first enlarge the image beyond this is refused: the image is a long thin strip."""


class CropPlan(NamedTuple):
    """Geometry of the centre crop of one image; sizes are (width, height).

    Attributes:
        halvings: size after each box-filter halving.
        resized: size after the bicubic resize; its shorter side is the target.
        box: (left, top, right, bottom) of the square that is kept.
    """

    halvings: tuple[tuple[int, int], ...]
    resized: tuple[int, int]
    box: tuple[int, int, int, int]


def plan_centre_crop(width: int, height: int, side: int) -> CropPlan:
    """Return how an image of ``width`` x ``height`` becomes ``side`` x ``side``.

    Raises:
        ValueError: the image is so long and thin that the resized image would not fit into memory.
    """
    halvings = []
    while min(width, height) >= 2 * side:
        width, height = width // 2, height // 2
        halvings.append((width, height))
    scale = side / min(width, height)
    resized = (round(width * scale), round(height * scale))
    if resized[0] * resized[1] > MAX_RESIZED_PIXELS:
        raise ValueError(f"its sides are too unequal to be resized to {resized[0]}x{resized[1]} pixels")
    left, top = ((length - side) // 2 for length in resized)
    return CropPlan(tuple(halvings), resized, (left, top, left + side, top + side))


def centre_crop(image: Image.Image, side: int) -> Image.Image:
    """Return the ADM centre crop of ``image``, ``side`` x ``side``."""
    plan = plan_centre_crop(*image.size, side)
    for size in plan.halvings:
        image = image.resize(size, Image.Resampling.BOX)
    return image.resize(plan.resized, Image.Resampling.BICUBIC).crop(plan.box)


def centre_crop_mask(mask: np.ndarray, side: int) -> np.ndarray:  # bool [h,w] => bool [side,side]
    """Return ``mask`` in the geometry that `centre_crop` gives to an image of its size.

    Halvings and resize all map the full image onto the full image, so one nearest-neighbour step to the final size has the
    same geometry and does not add the half-pixel shift of each intermediate step.
    """
    plan = plan_centre_crop(mask.shape[1], mask.shape[0], side)
    resized = Image.fromarray(mask.astype(np.uint8)).resize(plan.resized, Image.Resampling.NEAREST)
    return np.asarray(resized.crop(plan.box)) > 0


def decode_rgb(source: Path | bytes) -> Image.Image:
    """Decode a file, or the bytes of one, to RGB.

    Grey and palette images are expanded, CMYK is converted as Pillow does, of 16-bit grey the high byte is kept, an alpha
    channel is dropped without compositing. The EXIF orientation is not applied: the data loaders of the published models do
    not apply it either.

    Raises:
        Exception: whatever Pillow raises on broken data (OSError, SyntaxError, ValueError, DecompressionBombError, ...).
    """
    with Image.open(source if isinstance(source, Path) else io.BytesIO(source), formats=FORMATS) as image:
        return _to_rgb(image)


def image_dimensions(path: Path) -> tuple[int, int]:
    """Return (width, height) of an image file from its header.

    Raises:
        UserError: the header cannot be read.
    """
    try:
        with Image.open(path, formats=FORMATS) as image:
            return image.size
    except Exception as error:
        raise UserError(f"{path} cannot be read as an image ({describe_failure(error)})") from error


def describe_failure(error: Exception) -> str:
    """Return why Pillow could not read an image, without the name of the file."""
    if isinstance(error, UnidentifiedImageError):
        return f"it is not a {', '.join(FORMATS[:-1])} or {FORMATS[-1]} file"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16-bit grey, which Pillow's own conversion would clip at 255 instead of scaling
        high_byte = np.asarray(image).astype(np.int64) >> 8
        return Image.fromarray(high_byte.astype(np.uint8)).convert("RGB")
    if image.mode == "P" and "transparency" in image.info:  # going straight to RGB makes Pillow warn
        image = image.convert("RGBA")
    return image.convert("RGB")
