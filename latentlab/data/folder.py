"""Image folders: ``imagefolder:DIR`` with one sub-folder per class, or a flat folder without labels."""

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from latentlab.data.base import DataRequest
from latentlab.data.encoded import EncodedImages, in_threads
from latentlab.data.masks import MaskFolder
from latentlab.errors import UserError

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
"""Names (in any case) that count as images; every other file is ignored."""

DEFAULT_SIZE = 256


class FolderImages(EncodedImages):
    """The images of a folder, sorted by class and file name (by code point, as torchvision's ImageFolder).

    The fingerprint covers relative paths, sizes and modification times, not the pixels: reading a terabyte to name it is
    not possible. A file that is replaced without changing its size and time goes unnoticed.
    """

    def __init__(self, request: DataRequest, root: Path) -> None:
        """List the folder ``root``.

        Raises:
            UserError: missing folder, wrong layout, missing masks, or nothing readable.
        """
        found = find_images(root)
        self._root, self._paths = root, found.paths
        self._mask_folder = MaskFolder(request.masks) if request.masks is not None else None
        self.has_masks = self._mask_folder is not None
        super().__init__(request, len(found.paths), found.labels, found.class_names, DEFAULT_SIZE)
        self.fingerprint = self._fingerprint(files=self._files_digest(), masks=self._masks_digest())

    def masks(self, indices: np.ndarray) -> Tensor:
        """Return the foreground masks at ``indices``, bool [b,H,W], cropped as the images are.

        Raises:
            UserError: a mask is broken or does not have the size of its image.
        """
        if self._mask_folder is None:
            return super().masks(indices)
        rows, side = self._rows[indices], self.image_size
        names = [self._paths[row] for row in rows]
        masks = in_threads(self._mask_folder.read, names, self._encoded(rows), [side] * len(rows))
        return torch.from_numpy(np.stack(masks))

    def _encoded(self, rows: np.ndarray) -> Sequence[Path | bytes]:
        return [self._root / self._paths[row] for row in rows]

    def _row_name(self, row: int) -> str:
        return str(self._root / self._paths[row])

    def _files_digest(self) -> str:
        seen = hashlib.sha256()
        for row in self._rows:
            seen.update(os.fsencode(f"{self._paths[row]}\0{_state(self._root / self._paths[row])}\n"))
        return seen.hexdigest()

    def _masks_digest(self) -> str | None:
        if self._mask_folder is None:
            return None
        states = self._mask_folder.states([self._paths[row] for row in self._rows])
        return hashlib.sha256(f"{self._mask_folder.format} {states}".encode()).hexdigest()


def open_source(request: DataRequest) -> FolderImages:
    """Open ``imagefolder:DIR``."""
    root = Path(request.argument).expanduser()
    if not root.exists():
        raise UserError(f"{root} does not exist: imagefolder needs a folder of images")
    if not root.is_dir():
        raise UserError(f"{root} is a file: imagefolder needs a folder of images (unpack an archive first)")
    return FolderImages(request, root)


class Found(NamedTuple):
    """The images below a folder: paths relative to it, labels int64 [n] and class names (both None without classes)."""

    paths: list[str]
    labels: np.ndarray | None
    class_names: tuple[str, ...] | None


def find_images(root: Path) -> Found:
    """List the images of ``root``, which holds either class folders with images or images.

    Raises:
        UserError: neither, both, a class folder without images, or folders below class folders.
    """
    images, folders = _list(root)
    if images and folders:
        raise UserError(
            f"{root} holds images ({images[0]}) beside folders ({folders[0]}): keep only one of the two there"
        )
    if images:
        return Found(images, None, None)
    if not folders:
        raise UserError(f"{root} holds no images ({', '.join(SUFFIXES)}) and no class folders")
    per_class = [_class_images(root, name) for name in folders]
    labels = np.repeat(np.arange(len(folders)), [len(names) for names in per_class])
    paths = [f"{folder}/{name}" for folder, names in zip(folders, per_class, strict=True) for name in names]
    return Found(paths, labels, tuple(folders))


def _class_images(root: Path, name: str) -> list[str]:
    images, folders = _list(root / name)
    if folders:
        raise UserError(
            f"{root / name} holds folders ({folders[0]}): images must lie in DIR/class/; "
            f"if {name} is the set to use, write imagefolder:{root / name}"
        )
    if not images:
        raise UserError(f"the class folder {root / name} holds no images ({', '.join(SUFFIXES)}): fill or remove it")
    return images


def _list(folder: Path) -> tuple[list[str], list[str]]:
    """Return the sorted names of the images and of the folders in ``folder``, hidden ones left out."""
    images, folders = [], []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if entry.is_dir():
                    folders.append(entry.name)
                elif entry.name.lower().endswith(SUFFIXES):
                    images.append(entry.name)
    except OSError as error:
        raise UserError(f"the folder {folder} cannot be read: {error.strerror or error}") from error
    return sorted(images), sorted(folders)


def _state(path: Path) -> str:
    try:
        state = path.stat()
    except OSError:  # a dangling link: reported when the image is read
        return "unreadable"
    return f"{state.st_size} {state.st_mtime_ns}"
