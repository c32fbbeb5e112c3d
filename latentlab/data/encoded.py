"""Image sets that are kept encoded (as files or as bytes) and decoded, a batch at a time, by a few threads."""

import os
from abc import abstractmethod
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from latentlab.data.base import DataRequest, ImageSet
from latentlab.data.subset import choose_subset
from latentlab.data.transforms import centre_crop, decode_rgb, describe_failure
from latentlab.errors import UserError
from latentlab.files import digest

T = TypeVar("T")

THREADS = min(8, os.cpu_count() or 1)
"""Pillow decodes and resizes outside Python's lock, so a few threads keep an encoder busy."""

_CHECKED_AT_ONCE = 256


def in_threads(function: Callable[..., T], *arguments: Iterable[Any]) -> list[T]:
    """Return ``[function(*a) for a in zip(*arguments)]``, computed by a few threads."""
    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(function, *arguments))


class EncodedImages(ImageSet):
    """Images decoded and cropped whenever they are read; nothing is kept in memory between batches.

    A subclass prepares what `_encoded` and `_row_name` need, then calls ``super().__init__``. A *row* is a position in the
    whole source; `_rows` [n] holds the rows that limit and ``skip_bad`` left.
    """

    def __init__(
        self,
        request: DataRequest,
        total: int,
        labels: np.ndarray | None,
        class_names: tuple[str, ...] | None,
        default_size: int,
    ) -> None:
        self.name = request.source
        self.image_size = request.image_size or default_size
        self.class_names = class_names
        self._rows = choose_subset(total, labels, request.limit, request.seed)
        if request.skip_bad:
            self._leave_out_bad()
        self.n = len(self._rows)
        self.labels = None if labels is None else labels[self._rows]

    @abstractmethod
    def _encoded(self, rows: np.ndarray) -> Sequence[Path | bytes]:
        """Return the files, or the bytes, of the images at ``rows``."""

    @abstractmethod
    def _row_name(self, row: int) -> str:
        """Return how to name the image at ``row`` to a user."""

    def images(self, indices: np.ndarray) -> Tensor:
        """Return the images at ``indices``, uint8 [b,3,H,W].

        Raises:
            UserError: an image cannot be decoded; names it.
        """
        rows = self._rows[indices]
        images = np.empty((len(rows), 3, self.image_size, self.image_size), np.uint8)
        in_threads(self._read_into, images, rows, self._encoded(rows))
        return torch.from_numpy(images)

    def _read_into(self, target: np.ndarray, row: int, encoded: Path | bytes) -> None:
        """Decode and crop one image into ``target`` [3,H,W]."""
        try:
            image = centre_crop(decode_rgb(encoded), self.image_size)
        except Exception as error:  # Pillow's decoders raise errors of many types on broken data
            raise UserError(
                f"{self._row_name(row)} cannot be read as an image ({describe_failure(error)}): "
                "repair or remove it, or leave it out with --skip-bad"
            ) from error
        target[:] = np.asarray(image).transpose(2, 0, 1)

    def _leave_out_bad(self) -> None:
        """Read every chosen image once; forget, but name in `skipped`, those that cannot be read."""
        blocks = [self._rows[i : i + _CHECKED_AT_ONCE] for i in range(0, len(self._rows), _CHECKED_AT_ONCE)]
        readable = np.concatenate([in_threads(self._is_readable, rows, self._encoded(rows)) for rows in blocks])
        self.skipped = tuple(self._row_name(row) for row in self._rows[~readable])
        self._rows = self._rows[readable]
        if not len(self._rows):
            raise UserError(f"{self.name}: none of the {len(self.skipped)} images can be read")

    def _is_readable(self, row: int, encoded: Path | bytes) -> bool:
        scratch = np.empty((3, self.image_size, self.image_size), np.uint8)
        try:
            self._read_into(scratch, row, encoded)
        except UserError:
            return False
        return True

    def _fingerprint(self, **content: Any) -> str:
        """Return a name for ``content`` together with which images were chosen and how they are prepared."""
        chosen = {"rows": self._rows.tolist(), "image_size": self.image_size, "skipped": self.skipped}
        return digest({**content, **chosen, "class_names": self.class_names})
