"""Images a generator made, as they are kept: 8 bits, channels last, with the class that was asked for."""

from abc import abstractmethod

import numpy as np
import torch
from torch import Tensor

from latentlab.pixels import Pixels, to_unit_range


class GeneratedImages(Pixels):
    """A set of generated images on disk; ``labels`` are the classes that were asked for."""

    eight_bit = True

    @abstractmethod
    def levels(self, indices: np.ndarray | slice) -> np.ndarray:
        """Return the images at ``indices`` as they are kept, uint8 [b,H,W,3], a copy."""

    def take(self, indices: np.ndarray | slice) -> Tensor:
        """Return the images at ``indices``, float32 [b,3,H,W] in [-1,1]."""
        return to_unit_range(torch.from_numpy(self.levels(indices)).permute(0, 3, 1, 2).contiguous())
