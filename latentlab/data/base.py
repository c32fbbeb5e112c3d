"""The type every data source returns: indexed images with labels, optional foreground masks and a content fingerprint."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from latentlab.errors import UserError
from latentlab.prefetching import read_ahead


@dataclass(frozen=True)
class DataRequest:
    """What a user asked of a data source; the fields are those of `latentlab.data.open_data`.

    Attributes:
        source: as the user wrote it; becomes the name of the image set.
        argument: what follows the first colon of ``source``.
    """

    source: str
    argument: str = ""
    image_size: int | None = None
    limit: int | None = None
    masks: str | None = None
    skip_bad: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("image_size", 1), ("limit", 1), ("seed", 0)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise UserError(f"{name} must be at least {least}, got {value}")

    def refuse_masks(self, remedy: str) -> None:
        """Raise `UserError` when masks were asked of a source that takes none."""
        if self.masks is not None:
            raise UserError(f"{self.source} takes no mask folder: {remedy}")


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
        """Return the foreground masks at ``indices``, bool [b,H,W].

        Raises:
            UserError: these images have none.
        """
        raise UserError(f"{self.name} has no masks: open the images with masks (--masks)")

    def batches(self, size: int) -> Iterator[tuple[np.ndarray, Tensor]]:
        """Yield (indices, images) in order, ``size`` at a time; the next ones are read meanwhile."""
        parts = (np.arange(start, min(start + size, self.n)) for start in range(0, self.n, size))
        yield from read_ahead(parts, self.images)
