"""Some of a set of latents, without copying them."""

import numpy as np
from torch import Tensor

from latentlab.data.subset import choose_subset
from latentlab.errors import UserError
from latentlab.files import digest
from latentlab.latents import Latents


class LatentSubset(Latents):
    """The latents at ``rows`` of another set, streamed from there."""

    def __init__(self, whole: Latents, rows: np.ndarray) -> None:
        """Choose ``rows``, int64 [m] positions in ``whole``."""
        self._whole, self._rows = whole, rows
        self.n, self.shape = len(rows), whole.shape
        self.labels = None if whole.labels is None else whole.labels[rows]
        self.class_names, self.spec = whole.class_names, whole.spec
        self.has_masks, self.has_codes = whole.has_masks, whole.has_codes
        self.fingerprint = digest([whole.fingerprint, rows.tolist()])

    def take(self, indices: np.ndarray | slice) -> Tensor:
        """Return the chosen latents at ``indices``."""
        return self._whole.take(self._rows[indices])

    def masks(self, indices: np.ndarray | slice) -> Tensor:
        """Return their masks."""
        return self._whole.masks(self._rows[indices])

    def codes(self, indices: np.ndarray | slice) -> Tensor:
        """Return their codes."""
        return self._whole.codes(self._rows[indices])


def limit_latents(latents: Latents, limit: int | None, seed: int) -> Latents:
    """Return at most ``limit`` latents, balanced over classes and chosen by ``seed`` as ``--limit`` does with images.

    Raises:
        UserError: ``limit`` is below 1.
    """
    if limit is not None and limit < 1:
        raise UserError(f"limit must be at least 1, got {limit}")
    if limit is None or limit >= latents.n:
        return latents
    return LatentSubset(latents, choose_subset(latents.n, latents.labels, limit, seed))
