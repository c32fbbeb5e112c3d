"""What lies in a file of `torch.save`, as data: the pickle read inertly, and where the numbers of each storage are.

Both layouts are known: the zip archive of torch 1.6 and later (``NAME/data.pkl`` and ``NAME/data/KEY``), and the older sequence
of pickles, in which a magic number, a version, the machine's traits, the content and the list of storages are followed by the
storages themselves.
"""

import io
import math
import mmap
import struct
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from latentlab.errors import UserError
from latentlab.inert_objects import StoredTensor, UnreadablePickle
from latentlab.inert_pickle import Pickled, read_pickle
from latentlab.torch_archive import RECORD, check_archive
from latentlab.weights import check_file

_MAGIC, _VERSION = 0x1950A86A20F9469CFC6C, 1001
"""First two objects of the older layout (`torch.serialization`)."""

_ZIP, _PICKLE = b"PK", b"\x80"
"""First bytes of an archive, and of a pickle of protocol 2 or later, as torch writes them."""

_LOCAL_HEADER = 30  # bytes before a zip member's name


@dataclass(frozen=True)
class CheckpointData:
    """An open checkpoint.

    Attributes:
        content: the pickle as `read_pickle` gives it.
        memory: the bytes of the file.
        extents: where each storage lies in them: key -> (first byte, number of bytes).
        names: every class and function that the file names.
    """

    content: Any
    memory: mmap.mmap
    extents: dict[str, tuple[int, int]]
    names: tuple[str, ...]

    def tensor(self, stored: StoredTensor) -> Tensor:
        """Return the numbers of ``stored``, a view of the file.

        Raises:
            UnreadablePickle: its storage is absent, it reaches beyond it, or it repeats its numbers.
        """
        dtype = getattr(torch, stored.storage.dtype)
        if stored.storage.key not in self.extents:
            raise UnreadablePickle(f"the numbers '{stored.storage.key}' of a tensor are missing")
        start, length = self.extents[stored.storage.key]
        count = length // dtype.itemsize
        numbers = math.prod(stored.size)
        last = stored.offset + sum((side - 1) * step for side, step in zip(stored.size, stored.stride, strict=True))
        if min((stored.offset, *stored.size, *stored.stride)) < 0:
            raise UnreadablePickle("a tensor has a negative size, stride or offset")
        if numbers and (last >= count or numbers > count):
            raise UnreadablePickle(
                f"a tensor of {list(stored.size)} reaches beyond the {count} numbers that are stored for it"
            )
        if not numbers:
            return torch.empty(stored.size, dtype=dtype)
        flat = torch.frombuffer(self.memory, dtype=dtype, count=count, offset=start)
        return flat.as_strided(stored.size, stored.stride, stored.offset)


@contextmanager
def open_checkpoint(path: Path) -> Iterator[CheckpointData]:
    """Open a file of `torch.save` for reading; its tensors are views that must not outlive the block.

    Raises:
        UserError: not such a file, damaged, or laid out to mislead.
    """
    try:
        check_file(path)
        with open(path, "rb") as file:
            start = file.read(2)
            memory = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}; check its permissions") from error
    if start != _ZIP and start[:1] != _PICKLE:
        raise UserError(f"{path} is not a torch checkpoint, neither a zip archive nor a pickle: check the file")
    try:
        pickled, extents = _read_archive(path, memory) if start == _ZIP else _read_sequence(memory)
        yield CheckpointData(pickled.content, memory, extents, pickled.names)
    except UnreadablePickle as error:
        why = " ".join(str(error).split())[:200]
        raise UserError(f"{path} is not a readable torch checkpoint, or is damaged or hostile ({why})") from error


def _read_archive(path: Path, memory: mmap.mmap) -> tuple[Pickled, dict[str, tuple[int, int]]]:
    """Return pickle and extents of the zip layout."""
    listed = check_archive(path)
    extents = {member.filename: _extent(memory, member) for member in listed}
    records = [name for name in extents if name.endswith(RECORD)]
    if len(extents) != len(listed) or len(records) != 1:
        raise UnreadablePickle("the archive has members of one name, or more than one data.pkl")
    folder = records[0].removesuffix(RECORD)
    if _bytes(memory, extents.get(f"{folder}/byteorder", (0, 0))) == b"big":
        raise UnreadablePickle("it was written on a machine of the other byte order")
    pickled = read_pickle(io.BytesIO(_bytes(memory, extents[records[0]])))
    data = f"{folder}/data/"
    return pickled, {name.removeprefix(data): extents[name] for name in extents if name.startswith(data)}


def _bytes(memory: mmap.mmap, extent: tuple[int, int]) -> bytes:
    start, length = extent
    return memory[start : start + length]


def _extent(memory: mmap.mmap, member: zipfile.ZipInfo) -> tuple[int, int]:
    """Return first byte and length of a stored member; its name and extra field precede it, of lengths told only there."""
    start = member.header_offset
    header = memory[start : start + _LOCAL_HEADER]
    if len(header) != _LOCAL_HEADER or header[:4] != b"PK\x03\x04":
        raise UnreadablePickle(f"the member '{member.filename}' is not where the archive says")
    name_length, extra_length = struct.unpack("<HH", header[26:])
    first = start + _LOCAL_HEADER + name_length + extra_length
    if first + member.file_size > len(memory):
        raise UnreadablePickle(f"the member '{member.filename}' ends beyond the file")
    return first, member.file_size


def _read_sequence(memory: mmap.mmap) -> tuple[Pickled, dict[str, tuple[int, int]]]:
    """Return pickle and extents of the older layout; the names are those of all its pickles."""
    magic = read_pickle(memory)
    if magic.content != _MAGIC or (version := read_pickle(memory)).content != _VERSION:
        raise UnreadablePickle("it is neither a zip archive nor what torch wrote before 1.6")
    traits = read_pickle(memory)
    if not isinstance(traits.content, dict) or traits.content.get("little_endian") is not True:
        raise UnreadablePickle("it was written on a machine of the other byte order")
    pickled, listed = read_pickle(memory), read_pickle(memory)
    keys, types = listed.content, pickled.storages
    if not isinstance(keys, list) or any(type(key) is not str for key in keys):
        raise UnreadablePickle("the list of storages is missing")
    names = dict.fromkeys(name for part in (magic, version, traits, pickled, listed) for name in part.names)
    return pickled._replace(names=tuple(names)), _extents(memory, keys, types)


def _extents(memory: mmap.mmap, keys: list[str], types: Mapping[str, str]) -> dict[str, tuple[int, int]]:
    """Return where each storage lies in the older layout: one after the other, each behind its number of elements."""
    extents = {}
    for key in keys:
        length = memory.read(8)
        if len(length) != 8 or key not in types:
            raise UnreadablePickle(f"the storage '{key}' is missing or of an unknown type")
        size = struct.unpack("<q", length)[0] * getattr(torch, types[key]).itemsize
        if not 0 <= size <= len(memory) - memory.tell():
            raise UnreadablePickle(f"the storage '{key}' ends beyond the file")
        extents[key] = (memory.tell(), size)
        memory.seek(size, io.SEEK_CUR)
    return extents
