"""A set of images mirrored left to right."""

import numpy as np
from torch import Tensor

from latentlab.data.base import ImageSet
from latentlab.files import digest


class MirroredImages(ImageSet):
    """Every image of another set, mirrored left to right; labels and order as there."""

    def __init__(self, whole: ImageSet) -> None:
        """View ``whole`` in the mirror."""
        self._whole = whole
        self.name, self.n, self.image_size = f"{whole.name}-mirrored", whole.n, whole.image_size
        self.labels, self.class_names = whole.labels, whole.class_names
        self.has_masks, self.skipped = whole.has_masks, whole.skipped
        self.fingerprint = digest(["mirrored", whole.fingerprint])

    def images(self, indices: np.ndarray) -> Tensor:
        """Return the mirrored images at ``indices``, uint8 [b,3,H,W]."""
        return self._whole.images(indices).flip(3)

    def masks(self, indices: np.ndarray) -> Tensor:
        """Return their foreground masks, mirrored too, bool [b,H,W]."""
        return self._whole.masks(indices).flip(2)
