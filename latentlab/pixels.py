"""Images as the measurements see them: float, in [-1,1], a batch at a time; from arrays or from an `ImageSet`."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from latentlab.data.base import ImageSet
from latentlab.errors import UserError
from latentlab.files import digest
from latentlab.latents import BATCH_BYTES, integer_labels, tensor_of


class Pixels(ABC):
    """A set of images.

    Attributes:
        n: number of images.
        shape: (3,H,W) of one image.
        labels: int64 [n], or None.
        fingerprint: changes when the content changes.
        eight_bit: whether every image has the 256 levels of uint8 already, so that rounding to them changes nothing.
    """

    n: int
    shape: tuple[int, int, int]
    labels: np.ndarray | None = None
    fingerprint: str
    eight_bit: bool = False

    @abstractmethod
    def take(self, indices: np.ndarray | slice) -> Tensor:
        """Return the images at ``indices``, [b,3,H,W] in [-1,1], float32 (float64 when they were given so)."""

    def batches(self, size: int | None = None) -> Iterator[Tensor]:
        """Yield all images in order, ``size`` (default: about 8 MB) at a time."""
        for part in self.slices(size):
            yield self.take(part)

    def slices(self, size: int | None = None) -> Iterator[slice]:
        """Yield the index ranges of `batches`."""
        size = size or max(1, BATCH_BYTES // (4 * int(np.prod(self.shape))))
        for start in range(0, self.n, size):
            yield slice(start, min(start + size, self.n))


class ArrayPixels(Pixels):
    """Images in memory, [n,3,H,W]: floats in [-1,1] as they are, or uint8."""

    def __init__(self, images: Any, labels: Any = None) -> None:
        """Check shapes and wrap; nothing is copied.

        Raises:
            UserError: wrong rank or type, empty, values that are not finite or far outside [-1,1], labels of another length.
        """
        self._images = tensor_of("images", images)
        if self._images.ndim != 4 or self._images.shape[1] != 3:
            raise UserError(f"images must be [n,3,H,W], got shape {list(self._images.shape)}")
        if self._images.numel() == 0:
            raise UserError(f"images are empty, shape {list(self._images.shape)}")
        if self._images.dtype != torch.uint8 and not self._images.is_floating_point():
            raise UserError(f"images must be floats in [-1,1] or uint8, got {self._images.dtype}")
        self.n, self.shape = len(self._images), (3, *self._images.shape[2:])
        self.eight_bit = self._images.dtype == torch.uint8
        if labels is not None:
            self.labels = integer_labels(tensor_of("labels", labels), "labels")
            if self.labels.shape != (self.n,):
                raise UserError(
                    f"labels must have one entry per image: got {list(self.labels.shape)} for {self.n} images"
                )

    @cached_property
    def fingerprint(self) -> str:  # type: ignore[override]
        """Digest of shape, type and bytes."""
        import hashlib

        seen = hashlib.sha256(f"{tuple(self._images.shape)} {self._images.dtype}".encode())
        for part in self.slices():
            seen.update(self._images[part].cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
        return seen.hexdigest()[:16]

    def take(self, indices: np.ndarray | slice) -> Tensor:
        """Return the images at ``indices``."""
        chosen = self._images[indices].cpu()
        if chosen.dtype == torch.uint8:
            return to_unit_range(chosen)
        images = chosen if chosen.dtype == torch.float64 else chosen.float()
        largest = float(images.abs().max()) if images.numel() else 0.0
        if not largest <= 2:  # decoders overshoot a little; a range of 0 to 255 or NaN is a mistake
            raise UserError(f"images must be floats in [-1,1] or uint8, got values up to {largest:g}")
        return images


class SetPixels(Pixels):
    """The images of an `ImageSet`, read as they are needed."""

    eight_bit = True

    def __init__(self, images: ImageSet) -> None:
        self._images = images
        self.n, self.labels, self.fingerprint = images.n, images.labels, images.fingerprint
        self.shape = (3, images.image_size, images.image_size)

    def take(self, indices: np.ndarray | slice) -> Tensor:
        """Return the images at ``indices``."""
        chosen = np.arange(self.n)[indices] if isinstance(indices, slice) else np.asarray(indices)
        return to_unit_range(self._images.images(chosen))

    def batches(self, size: int | None = None) -> Iterator[Tensor]:
        """Yield all images in order; the next batch is read meanwhile."""
        step = next(self.slices(size)).stop
        for _, images in self._images.batches(step):
            yield to_unit_range(images)


class ChosenPixels(Pixels):
    """The images at ``rows`` [m] of another set."""

    def __init__(self, whole: Pixels, rows: np.ndarray) -> None:
        self._whole, self._rows = whole, rows
        self.n, self.shape, self.eight_bit = len(rows), whole.shape, whole.eight_bit
        self.labels = None if whole.labels is None else whole.labels[rows]
        self.fingerprint = digest([whole.fingerprint, rows.tolist()])

    def take(self, indices: np.ndarray | slice) -> Tensor:
        """Return the images at ``indices`` of the chosen ones."""
        return self._whole.take(self._rows[indices])


def as_pixels(images: Any) -> Pixels:
    """Return ``images`` (`Pixels`, an `ImageSet`, or an array [n,3,H,W]) as `Pixels`."""
    if isinstance(images, Pixels):
        return images
    return SetPixels(images) if isinstance(images, ImageSet) else ArrayPixels(images)


def to_unit_range(images: Tensor) -> Tensor:
    """Return uint8 images as float32 in [-1,1]: ``x / 127.5 - 1``."""
    return images.float() / 127.5 - 1
