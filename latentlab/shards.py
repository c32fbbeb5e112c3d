"""Read-only view of one safetensors file whose rows are taken out without loading the whole.

The safetensors library maps a file and keeps every page it touched in memory; here pages are given back after each read,
so that streaming a large store needs the memory of one batch.
"""

import json
import math
import mmap
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from latentlab.errors import UserError

_STORAGE = {  # safetensors name -> (numpy type of the same width, torch type)
    "F64": ("<f8", torch.float64),
    "F32": ("<f4", torch.float32),
    "F16": ("<f2", torch.float16),
    "BF16": ("<i2", torch.bfloat16),
    "I64": ("<i8", torch.int64),
    "I32": ("<i4", torch.int32),
    "U8": ("u1", torch.uint8),
}
_MAX_HEADER = 100 << 20


class Shard:
    """One safetensors file.

    Attributes:
        path: the file.
        shapes: shape of every tensor in it, by name.
    """

    def __init__(self, path: Path) -> None:
        """Map the file and check its header.

        Raises:
            UserError: not a safetensors file, truncated, or a header that does not fit the file.
        """
        self.path = path
        try:
            with open(path, "rb") as file:
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:
            raise self._broken(str(error)) from error
        header, start = self._header()
        self._views: dict[str, tuple[np.ndarray, torch.dtype]] = {}
        for name, entry in header.items():
            if name != "__metadata__" and not self._of_unknown_type(entry):
                self._views[name] = self._view(name, entry, start)
        self.shapes = {name: tuple(view.shape) for name, (view, _) in self._views.items()}

    def __contains__(self, name: str) -> bool:
        return name in self._views

    def dtype(self, name: str) -> torch.dtype:
        """Return the stored type of the tensor ``name``."""
        return self._views[name][1]

    def rows(self, name: str, indices: np.ndarray | slice) -> Tensor:
        """Return a copy of the rows ``indices`` of the tensor ``name``, in its stored type."""
        view, dtype = self._views[name]
        copy = torch.from_numpy(np.array(view[indices]))
        if hasattr(mmap, "MADV_DONTNEED"):  # Linux and macOS; elsewhere pages are dropped under memory pressure only
            self._map.madvise(mmap.MADV_DONTNEED)
        return copy.view(dtype)

    def _header(self) -> tuple[dict[str, dict[str, Any]], int]:
        """Return the JSON header and the offset at which the data starts."""
        length = int.from_bytes(self._map[:8], "little")
        if not 2 <= length <= min(_MAX_HEADER, len(self._map) - 8):
            raise self._broken("its header length does not fit the file")
        try:
            header = json.loads(self._map[8 : 8 + length])
        except ValueError as error:
            raise self._broken(f"its header is not JSON: {error}") from error
        if not isinstance(header, dict):
            raise self._broken("its header is not a table of tensors")
        return header, 8 + length

    @staticmethod
    def _of_unknown_type(entry: object) -> bool:
        """Whether an entry holds a type that no column of ours has: somebody else's, passed over."""
        return isinstance(entry, dict) and isinstance(entry.get("dtype"), str) and entry["dtype"] not in _STORAGE

    def _view(self, name: str, entry: dict[str, Any], start: int) -> tuple[np.ndarray, torch.dtype]:
        try:
            numpy_type, dtype = _STORAGE[entry["dtype"]]
            shape = tuple(int(side) for side in entry["shape"])
            begin, end = (int(offset) for offset in entry["data_offsets"])
        except (KeyError, TypeError, ValueError) as error:
            raise self._broken(f"the entry of '{name}' cannot be read ({type(error).__name__}: {error})") from error
        count = math.prod(shape)
        size = count * np.dtype(numpy_type).itemsize
        if min(shape, default=0) < 0 or begin < 0 or end - begin != size or start + end > len(self._map):
            raise self._broken(f"'{name}' does not fit the file (truncated?)")
        return np.frombuffer(self._map, numpy_type, count, start + begin).reshape(shape), dtype

    def _broken(self, why: str) -> UserError:
        return UserError(f"{self.path} is not a readable safetensors file: {why}; write it again")
