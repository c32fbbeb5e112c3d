"""Foreground masks from a folder of PNG files that mirrors the image folder."""

import os
from collections.abc import Sequence
from pathlib import Path, PurePath

import numpy as np
from PIL import Image

from latentlab.data.transforms import centre_crop_mask, describe_failure, image_dimensions
from latentlab.errors import UserError

BINARY, IMAGENET_S = "binary", "imagenet-s"

_IGNORE = 1000
"""Class id of ImageNet-S pixels that nobody annotated."""


class MaskFolder:
    """The masks of an image folder: image ``a/b.JPEG`` has the mask ``DIR/a/b.png`` of the same width and height.

    Formats, chosen by prefix: ``DIR`` or ``binary:DIR``, one-channel PNG (1-bit, grey or palette) where every non-zero value
    is foreground; ``imagenet-s:DIR``, RGB PNG that encode the class id as R + 256 G, where 0 (other) and 1000 (ignore) are
    background (Gao et al. 2022, "Large-scale Unsupervised Semantic Segmentation").
    """

    def __init__(self, text: str) -> None:
        """Find the folder named by ``text`` (``[binary:|imagenet-s:]DIR``).

        Raises:
            UserError: there is no such folder.
        """
        prefix, _, rest = text.partition(":")
        known = prefix in (BINARY, IMAGENET_S) and rest != ""
        self.format = prefix if known else BINARY
        self.folder = Path(rest if known else text).expanduser()
        if not self.folder.is_dir():
            raise UserError(f"mask folder {self.folder} does not exist: give DIR, {BINARY}:DIR or {IMAGENET_S}:DIR")

    def path(self, image: str) -> Path:
        """Return where the mask of ``image`` (relative to the image folder) must lie."""
        return self.folder / PurePath(image).with_suffix(".png")

    def states(self, images: Sequence[str]) -> list[tuple[int, int]]:
        """Return size in bytes and modification time (ns) of every image's mask, for a fingerprint.

        Raises:
            UserError: an image has no mask; names the first one and counts them.
        """
        found, missing = [], []
        for image in images:
            try:
                state = os.stat(self.path(image))
                found.append((state.st_size, state.st_mtime_ns))
            except OSError:
                missing.append(image)
        if missing:
            raise UserError(
                f"{len(missing)} of {len(images)} images have no mask: expected {self.path(missing[0])} for {missing[0]}"
            )
        return found

    def read(self, image: str, image_path: Path, side: int) -> np.ndarray:  # => bool [side,side]
        """Return the mask of ``image`` with the centre crop of its image.

        Raises:
            UserError: the mask is broken, has another mode than its format, or another size than its image.
        """
        path = self.path(image)
        try:
            with Image.open(path, formats=("PNG",)) as file:
                mask = self._foreground(path, file)
        except UserError:
            raise
        except Exception as error:  # Pillow's decoders raise errors of many types on broken data
            raise UserError(f"the mask {path} cannot be read ({describe_failure(error)}): repair it") from error
        width, height = image_dimensions(image_path)
        if mask.shape != (height, width):
            raise UserError(
                f"the mask {path} is {mask.shape[1]}x{mask.shape[0]} pixels, its image {width}x{height}: they must be equal"
            )
        return centre_crop_mask(mask, side)

    def _foreground(self, path: Path, image: Image.Image) -> np.ndarray:  # => bool [h,w]
        if self.format == BINARY and image.mode not in ("1", "L", "P"):
            raise UserError(
                f"the mask {path} has mode {image.mode}, a binary mask needs one 8-bit channel: convert it, or write "
                f"{IMAGENET_S}:{self.folder} if these are ImageNet-S masks"
            )
        if self.format == IMAGENET_S and image.mode != "RGB":
            raise UserError(
                f"the mask {path} has mode {image.mode}, ImageNet-S masks are RGB: use {BINARY}:{self.folder}"
            )
        values = np.asarray(image)
        return imagenet_s_foreground(values) if self.format == IMAGENET_S else values > 0


def imagenet_s_foreground(rgb: np.ndarray) -> np.ndarray:  # uint8 [h,w,3] => bool [h,w]
    """Return where an ImageNet-S mask names a class: id = R + 256 G, other than 0 (other) and 1000 (ignore)."""
    red, green = rgb[..., 0].astype(np.int64), rgb[..., 1].astype(np.int64)
    ids = red + 256 * green
    return (ids != 0) & (ids != _IGNORE)
