"""A checkpoint that only a full unpickler would read -> safetensors: its tensors, and a note of what was left behind."""

import json
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from latentlab.checkpoint_data import CheckpointData, open_checkpoint
from latentlab.errors import UserError
from latentlab.files import atomic_path, file_sha256
from latentlab.inert_objects import Name, Opaque, StoredTensor
from latentlab.pickle_names import is_ordinary
from latentlab.weights import ENTRIES, check_file, is_safetensors

MAX_DEPTH = 16
_MAX_GROWTH = 4
"""Tensors that share numbers (a model and its copy) are written once each; beyond this multiple of the file they are a bomb."""

_NOTED = 40  # things left behind, and names, that the header lists
_CONTROL = re.compile(r"[^\x20-\x7e]")

_SAFETENSORS = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


@dataclass
class Found:
    """What a checkpoint holds.

    Attributes:
        tensors: by name; what lies in nested dictionaries is named with dots.
        entries: names of the top-level dictionaries that hold some of them (``state_dict``, ``ema``).
        dropped: what is not a tensor, as ``name (kind)``.
        not_run: functions and classes that the file asks for and that have nothing to do with tensors, plain data or records of
            training (`pickle_names`). They were neither run nor imported; a loader that trusts the file would have done so.
    """

    tensors: dict[str, StoredTensor] = field(default_factory=dict)
    entries: list[str] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)
    not_run: list[str] = field(default_factory=list)


def convert_checkpoint(path: Path, target: Path) -> Found:
    """Write the tensors of the torch checkpoint ``path`` to the safetensors file ``target``; nothing in ``path`` is run.

    `latentlab.weights.read_state_dict` gives the entries of ``target`` as those of ``path``. Its header also names the source,
    its SHA-256, what was dropped, and what the file asked for and did not get.

    Raises:
        UserError: ``path`` is not a checkpoint, is damaged or hostile, or holds no tensors; ``target`` is there already or
            cannot be written.
    """
    if target.suffix != ".safetensors":
        raise UserError(f"{target} must end in .safetensors: that is what is written")
    check_file(path)
    if is_safetensors(path):
        raise UserError(f"{path} is a safetensors file already: there is nothing to convert")
    if target.exists():
        raise UserError(f"{target} is there already: delete it or choose another name")
    with open_checkpoint(path) as data:
        found = find_tensors(data.content)
        found.not_run = _not_run(data.names)
        if not found.tensors:
            held = ", ".join(found.dropped[:5]) or _kind(data.content)
            asked = f" (it asks for {', '.join(found.not_run[:5])}: not run)" if found.not_run else ""
            raise UserError(
                f"{path} has no tensors in dictionaries with text keys, only {held}: nothing to convert{asked}"
            )
        size = sum(_bytes_of(data.tensor(tensor)) for tensor in found.tensors.values())
        if size > _MAX_GROWTH * path.stat().st_size:
            raise UserError(f"{path} is refused: its tensors would take {size / 1e6:,.0f} MB, they repeat themselves")
        note = {
            ENTRIES: json.dumps(found.entries),
            "converted_from": _plain(path.name),
            "converted_sha256": file_sha256(path),
            "dropped": json.dumps(found.dropped[:_NOTED]),
            "not_run": json.dumps(found.not_run[:_NOTED]),
        }
        with atomic_path(target) as temporary, open(temporary, "wb") as file:
            _write(file, data, found.tensors, note)
    return found


def _not_run(names: Sequence[str]) -> list[str]:
    """Return the names that no checkpoint needs, those of Python's own modules first: many others cannot push them out."""
    asked = [_plain(name) for name in names if not is_ordinary(name)]
    return sorted(asked, key=lambda name: name.partition(".")[0] not in sys.stdlib_module_names)


def find_tensors(content: Any) -> Found:
    """Return the tensors in a checkpoint and in the dictionaries it nests; each dictionary counts once, where it comes first.

    Raises:
        UserError: dictionaries nested more than `MAX_DEPTH` deep, or two tensors of one name.
    """
    found = Found()
    if not isinstance(content, dict):
        return found
    seen = {id(content)}
    for key, value in content.items():
        before = len(found.tensors)
        _collect({key: value}, "", found, seen, MAX_DEPTH)
        if isinstance(value, dict) and len(found.tensors) > before:
            found.entries.append(key)
    prefixes = tuple(f"{entry}." for entry in found.entries)
    clash = next((key for key in content if key.startswith(prefixes)), None) if prefixes else None
    if clash is not None:
        raise UserError(f"the checkpoint holds '{_plain(clash)}' beside an entry of that beginning: it is ambiguous")
    return found


def _collect(content: dict[str, Any], prefix: str, found: Found, seen: set[int], depth: int) -> None:
    for key, value in content.items():
        name = prefix + key
        if isinstance(value, StoredTensor):
            if name in found.tensors:
                raise UserError(f"the checkpoint holds two tensors named '{_plain(name)}': it is ambiguous")
            found.tensors[name] = value
        elif not isinstance(value, dict):
            found.dropped.append(f"{_plain(name)} ({_kind(value)})")
        elif id(value) not in seen:
            if depth == 0:
                raise UserError(f"the checkpoint nests more than {MAX_DEPTH} dictionaries: it is damaged or hostile")
            seen.add(id(value))
            _collect(value, f"{name}.", found, seen, depth - 1)


def _kind(value: Any) -> str:
    if isinstance(value, Opaque):
        return _plain(value.kind)
    if isinstance(value, Name):
        return f"the name {_plain(str(value))}"
    return f"{type(value).__name__} of {len(value)}" if isinstance(value, list | tuple) else type(value).__name__


def _plain(text: str, shown: int = 100) -> str:
    """Return text from a file as it can be shown on a terminal."""
    clean = _CONTROL.sub("?", text)
    return clean if len(clean) <= shown else f"{clean[:shown]}..."


def _bytes_of(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _write(file: BinaryIO, data: CheckpointData, tensors: Mapping[str, StoredTensor], note: dict[str, str]) -> None:
    """Write a safetensors file, one tensor in memory at a time: header length, JSON header, numbers (little-endian)."""
    header: dict[str, Any] = {"__metadata__": note}
    end = 0
    for name, stored in tensors.items():
        tensor = data.tensor(stored)
        start, end = end, end + _bytes_of(tensor)
        header[name] = {
            "dtype": _SAFETENSORS[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    file.write(len(text).to_bytes(8, "little") + text)
    for stored in tensors.values():
        numbers = data.tensor(stored).contiguous().view(-1)
        file.write(numbers.view(torch.uint8).numpy().data)
