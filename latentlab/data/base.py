"""The type every data source returns: indexed images with labels, optional foreground masks and a content fingerprint."""

from abc import ABC, abstractmethod
from collections.abc import Iterator

import numpy as np
from torch import Tensor


class ImageSet(ABC):
    """A finite set of square images, read by index.

    Attributes:
        name: as the user wrote it (``fashion:test``, ``imagefolder:/data/val``).
        n: number of images.
        image_size: side of the images in pixels.
        labels: int64 [n], or None.
        class_names: names by label, or None.
        fingerprint: 16 hex digits that change when images, labels, masks or preparation change.
        has_masks: whether `masks` may be called.
        skipped: paths (or row names) of images that could not be read and were left out on request.
    """

    name: str
    n: int
    image_size: int
    labels: np.ndarray | None
    class_names: tuple[str, ...] | None
    fingerprint: str
    has_masks: bool = False
    skipped: tuple[str, ...] = ()

    @abstractmethod
    def images(self, indices: np.ndarray) -> Tensor:
        """Return the images at ``indices``, uint8 [b,3,H,W]."""

    def masks(self, indices: np.ndarray) -> Tensor:
        """Return the foreground masks at ``indices``, bool [b,H,W]."""
        raise NotImplementedError(f"{self.name} has no masks")

    def batches(self, size: int) -> Iterator[tuple[np.ndarray, Tensor]]:
        """Yield (indices, images) for all images in order, ``size`` at a time."""
        for start in range(0, self.n, size):
            indices = np.arange(start, min(start + size, self.n))
            yield indices, self.images(indices)
