"""Generated images in one file, in the format of the ADM evaluation suite (Dhariwal and Nichol 2021, arXiv 2105.05233).

``samples_{n}x{H}x{W}x3.npz`` holds ``arr_0``, the images, uint8 [n,H,W,3], and ``arr_1``, their classes, int64 [n]. 50,000 images
of 256x256 pixels are 9.8 GB: they are written as they come and read where they lie.
"""

import math
import zipfile
import zlib
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import IO

import numpy as np

from latentlab.errors import UserError
from latentlab.files import atomic_path, quick_fingerprint
from latentlab.latents import integer_labels, tensor_of
from latentlab.quality.generated_images import GeneratedImages
from latentlab.runtime import usable_memory

_IMAGES, _CLASSES = "arr_0", "arr_1"
UNREADABLE = (OSError, ValueError, KeyError, EOFError, NotImplementedError, zipfile.BadZipFile, zlib.error)
"""What reading a damaged ``.npz`` file, or something else by that name, raises."""

_LOCAL_HEADER = 30
"""Bytes of a zip member's own header, before its name and extra field."""


def sample_file_name(n: int, height: int, width: int) -> str:
    """Return what the suite calls the file of ``n`` such images."""
    return f"samples_{n}x{height}x{width}x3.npz"


def write_sample_file(
    path: Path, shape: tuple[int, int, int], batches: Iterable[np.ndarray], classes: np.ndarray
) -> None:
    """Write images to ``path`` batch after batch, atomically; equal images give equal bytes.

    Args:
        path: its folder is created when absent.
        shape: (n,H,W).
        batches: all n images in order, uint8 [b,H,W,3].
        classes: int64 [n].

    Raises:
        UserError: the file cannot be written.
        ValueError: not n images of that shape.
    """
    n, height, width = shape
    with atomic_path(path) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
        with archive.open(zipfile.ZipInfo(f"{_IMAGES}.npy"), "w", force_zip64=True) as file:
            _write_header(file, np.dtype(np.uint8), (n, height, width, 3))
            written = 0
            for batch in batches:
                if batch.dtype != np.uint8 or batch.shape[1:] != (height, width, 3):
                    raise ValueError(f"images must be uint8 [b,{height},{width},3], got {batch.dtype} {batch.shape}")
                file.write(np.ascontiguousarray(batch).data)
                written += len(batch)
        if written != n or classes.shape != (n,):
            raise ValueError(f"{n} images were announced, {written} came, with {len(classes)} classes")
        with archive.open(zipfile.ZipInfo(f"{_CLASSES}.npy"), "w") as file:
            np.lib.format.write_array(file, classes.astype(np.int64), allow_pickle=False)


def _write_header(file: IO[bytes], dtype: np.dtype, shape: tuple[int, ...]) -> None:
    header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)


def check_archive(path: Path) -> None:
    """Read a ``.npz`` file once and compare its bytes with the checksums in it.

    Raises:
        UserError: they differ, or it is no such file.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except UNREADABLE as error:
        raise UserError(f"{path} is not a readable .npz file, or is damaged ({error}): make it again") from error
    if damaged is not None:
        raise UserError(f"{path} is damaged: the bytes of '{damaged}' are not those that were written; make it again")


class SampleFile(GeneratedImages):
    """The images of such a file. An uncompressed one, as ours and the published ones are, is read where it lies."""

    def __init__(self, path: Path) -> None:
        """Open ``path`` and check what it holds.

        Raises:
            UserError: missing, damaged, no images uint8 [n,H,W,3] under ``arr_0``, or compressed and too large for the memory.
        """
        self.path = path
        try:
            with zipfile.ZipFile(path) as archive:
                names = archive.namelist()
                if f"{_IMAGES}.npy" not in names:
                    raise UserError(
                        f"{path} has no images under '{_IMAGES}', only {', '.join(sorted(names)[:5]) or 'nothing'}"
                    )
                self._images = _array(path, archive, _IMAGES)
                classes = _array(path, archive, _CLASSES) if f"{_CLASSES}.npy" in names else None
        except FileNotFoundError as error:
            raise UserError(f"{path} does not exist") from error
        except UNREADABLE as error:
            if isinstance(error, UserError):
                raise
            raise UserError(f"{path} is not a readable .npz file, or is damaged ({error}): make it again") from error
        if (
            self._images.dtype != np.uint8
            or self._images.ndim != 4
            or self._images.shape[3] != 3
            or not self._images.size
        ):
            raise UserError(
                f"{path}: '{_IMAGES}' must be images, uint8 [n,H,W,3] with levels 0 to 255 and channels last, got "
                f"{self._images.dtype} {list(self._images.shape)}"
            )
        self.n = len(self._images)
        self.shape = (3, *self._images.shape[1:3])
        if classes is not None and classes.shape == (self.n,):
            self.labels = integer_labels(tensor_of("labels", np.array(classes)), f"{path}: {_CLASSES}")

    @cached_property
    def fingerprint(self) -> str:  # type: ignore[override]
        """Digest of the file's size, date and samples of its bytes."""
        return quick_fingerprint(self.path)

    def levels(self, indices: np.ndarray | slice) -> np.ndarray:
        """Return the images at ``indices``, uint8 [b,H,W,3]."""
        return np.array(self._images[indices])


def _array(path: Path, archive: zipfile.ZipFile, name: str) -> np.ndarray:
    """Return one array of an archive: mapped where it is stored as it is, else loaded."""
    member = archive.getinfo(f"{name}.npy")
    if member.compress_type != zipfile.ZIP_STORED:
        if member.file_size > usable_memory() // 2:
            raise UserError(
                f"{path} holds {member.file_size / 1e9:.1f} GB compressed, too much for the memory: write it "
                "uncompressed (numpy.savez)"
            )
        with archive.open(member) as file:
            return np.lib.format.read_array(file, allow_pickle=False)
    with open(path, "rb") as file:
        file.seek(member.header_offset + _LOCAL_HEADER - 4)
        lengths = file.read(4)  # of the name and of the extra field
        file.seek(int.from_bytes(lengths[:2], "little") + int.from_bytes(lengths[2:], "little"), 1)
        begin = file.tell()
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read(file)
        if dtype.hasobject:
            raise ValueError(f"'{name}' holds Python objects")
        if file.tell() - begin + math.prod(shape) * dtype.itemsize != member.file_size:
            raise ValueError(f"'{name}' does not have the size its header says")
        if 0 in shape:
            return np.empty(shape, dtype)
        return np.memmap(path, dtype, "r", file.tell(), shape, "F" if fortran else "C")
