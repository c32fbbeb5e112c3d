"""Features on disk, row after row while a network describes images: memory does not grow, and a kill loses a block at most.

A finished table is ``NAME.npy``, float32 [n,d], and is read where it lies. Until then it is ``.NAME.npy.part``, which one
process at a time writes: the next one to ask waits, and takes the finished table or goes on where the other was killed.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np

from latentlab.errors import UserError


class MemoryTable:
    """Features that are not kept, or were found finished.

    Attributes:
        rows: how many there are.
    """

    def __init__(self, found: np.ndarray | None = None) -> None:
        self._blocks = [] if found is None else [found]
        self.rows = 0 if found is None else len(found)

    def append(self, block: np.ndarray) -> None:
        """Add rows [b,d]."""
        self._blocks.append(block)
        self.rows += len(block)

    def finished(self) -> np.ndarray:
        """Return all rows, float32 [n,d]; [0,0] where there are none."""
        if len(self._blocks) == 1:
            return self._blocks[0]
        return np.concatenate(self._blocks) if self._blocks else np.zeros((0, 0), np.float32)


class FileTable:
    """Features that grow in a file.

    Attributes:
        rows: how many there are, those of an interrupted process included.
    """

    def __init__(self, path: Path, n: int, unit: int) -> None:
        """Begin, or take up what an interrupted process left.

        Args:
            path: of the finished table.
            n: rows it will have.
            unit: rows are only complete in groups of so many.
        """
        self._path, self._part, self._n = path, _hidden(path, "part"), n
        self.rows, end = _left_over(self._part, n, unit)
        if self._part.exists():
            os.truncate(self._part, end)

    def append(self, block: np.ndarray) -> None:
        """Add rows [b,d], and see them safe on the disk.

        Raises:
            UserError: the disk is full.
        """
        header = {"descr": "<f4", "fortran_order": False, "shape": (self._n, block.shape[1])}
        try:
            with open(self._part, "ab") as file:
                if self.rows == 0:
                    np.lib.format.write_array_header_1_0(file, header)
                file.write(np.ascontiguousarray(block, dtype="<f4").data)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            reason = error.strerror or error
            raise UserError(f"cannot write {self._part}: {reason}; free space or set LATENTLAB_HOME") from error
        self.rows += len(block)

    def finished(self) -> np.ndarray:
        """Give the file its name and return all rows, float32 [n,d], read where they lie."""
        os.replace(self._part, self._path)
        found = kept_features(self._path, self._n)
        assert found is not None
        return found


def _left_over(part: Path, n: int, unit: int) -> tuple[int, int]:
    """Return how many complete rows of ``n`` a file holds, and the byte at which they end; 0 and 0 where it does not fit."""
    try:
        with open(part, "rb") as file:
            np.lib.format.read_magic(file)
            (announced, width), _, dtype = np.lib.format.read_array_header_1_0(file)
            start = file.tell()
    except (OSError, ValueError):  # absent, empty, or cut within its header
        return 0, 0
    if announced != n or dtype != np.float32:
        return 0, 0
    rows = (part.stat().st_size - start) // (4 * width) // unit * unit
    return (rows, start + 4 * width * rows) if rows else (0, 0)


@contextmanager
def growing_table(path: Path | None, n: int, unit: int = 1) -> Iterator[MemoryTable | FileTable]:
    """Yield the table that is, or will be, at ``path``; in memory without a path or where none can be written.

    Args:
        path: of the finished table.
        n: rows it will have.
        unit: rows are only complete in groups of so many.
    """
    kept = None if path is None else kept_features(path, n)
    if path is None or kept is not None or not _can_be_written(path.parent):
        yield MemoryTable(kept)
        return
    from huggingface_hub.utils import WeakFileLock

    lock = _hidden(path, "lock")
    with WeakFileLock(lock):
        kept = kept_features(path, n)  # of a process that was quicker
        table = MemoryTable(kept) if kept is not None else FileTable(path, n, unit)
        yield table
        lock.unlink(missing_ok=True)  # whoever still waits on it finds the finished table


def kept_features(path: Path, n: int) -> np.ndarray | None:
    """Return a finished table, [n,d], read where it lies; None where there is none, or a damaged one."""
    try:
        features = np.load(path, mmap_mode="c", allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    fits = isinstance(features, np.ndarray) and features.dtype == np.float32 and features.ndim == 2
    return features if fits and len(features) == n else None


def _can_be_written(folder: Path) -> bool:
    with suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
    return os.access(folder, os.W_OK)


def _hidden(path: Path, suffix: str) -> Path:
    return path.with_name(f".{path.name}.{suffix}")
