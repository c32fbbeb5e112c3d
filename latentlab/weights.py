"""Weight files: where they are on this machine, and how their tensors are read without running anything.

Nothing here unpickles freely: a weight file from elsewhere is untrusted until its tensors are in memory. torch is imported
where tensors are read, so that listing which weights are present stays quick.
"""

import json
import re
import shlex
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from latentlab.downloading import download_weights, one_line
from latentlab.errors import UserError
from latentlab.files import file_sha256, home
from latentlab.torch_archive import check_archive
from latentlab.weight_file import WeightFile

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "WeightFile",
    "check_file",
    "converted_copy",
    "download_weights",
    "find_files",
    "find_weights",
    "is_safetensors",
    "local_copy",
    "original_of",
    "places_of",
    "read_metadata",
    "read_state_dict",
]

ENTRIES = "converted_entries"
"""Name in the header under which `latentlab convert` notes the entries (``state_dict``, ``ema``) of a checkpoint."""

_HEADER_LIMIT = 100_000_000  # bytes; the safetensors format's own limit
_TORCH_PICKLE = b"\x80\x02"  # torch.save writes pickle protocol 2
_BEYOND = re.compile(
    r"(?:Unsupported|Trying to load unsupported|Trying to call|Trying to instantiate|Can only create|Can only build) [^\n]*"
)
"""How torch says what its restricted unpickler does not rebuild."""

_REFUSED = re.compile(r"GLOBAL (\S+)")


def find_weights(file: WeightFile, download: bool = False) -> Path:
    """Return where ``file`` is on this machine: in latentlab's cache or in the Hugging Face cache.

    Args:
        file: what to look for.
        download: fetch it when it is absent; otherwise nothing touches the network.

    Raises:
        UserError: absent (says where it comes from, where to put it and the command that does both), or of another size
            than published.
    """
    return find_files([file], download, file.command)[0]


def find_files(files: Sequence[WeightFile], download: bool = False, remedy: str = "") -> list[Path]:
    """Return where all of ``files``, which belong together, are on this machine.

    Args:
        files: what to look for.
        download: fetch those that are absent; otherwise nothing touches the network.
        remedy: what the message about absent ones ends with.

    Raises:
        UserError: some are absent (names each, where it comes from and where to put it), or of another size than published.
    """
    found = [local_copy(file) for file in files]
    missing = [file for file, path in zip(files, found, strict=True) if path is None]
    if missing and not download:
        named = " and ".join(f"{file.filename} ({file.size_text})" for file in missing)
        origins = " and ".join(dict.fromkeys(file.origin for file in missing))
        raise UserError(
            f"weights {named} are not on this machine: get them from {origins} and put them at "
            f"{places_of(missing)}{remedy}"
        )
    for file, path in zip(files, found, strict=True):
        if path is not None:
            file.check_size(path)
    return [download_weights(file) if path is None else path for file, path in zip(files, found, strict=True)]


def places_of(files: Sequence[WeightFile]) -> str:
    """Return where ``files`` belong on this machine, in words."""
    return " and ".join(str(file.path) for file in files)


def local_copy(file: WeightFile) -> Path | None:
    """Return where ``file`` is on this machine, unverified: in latentlab's cache or in the Hugging Face cache; None if absent."""
    if file.path.is_file():
        return file.path
    if file.repo is None or file.url is not None:
        return None
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(file.repo, file.filename)
    return Path(found) if isinstance(found, str) else None


def converted_copy(path: Path) -> Path | None:
    """Return the file beside ``path`` that `latentlab convert` made of it, of exactly these bytes; None where there is none."""
    copy = path.with_suffix(".safetensors")
    if copy == path or not copy.is_file():
        return None
    return copy if original_of(copy) == path else None


def original_of(path: Path) -> Path | None:
    """Return the checkpoint beside ``path`` that `latentlab convert` made it of, if it is still what it was; else None.

    Only what lies in latentlab's own cache is believed to be what its header says: elsewhere anybody may have written it.
    """
    in_cache = path.suffix == ".safetensors" and path.absolute().is_relative_to((home() / "weights").absolute())
    header = read_metadata(path) if in_cache else {}
    if "converted_from" not in header:
        return None
    original = path.with_name(Path(header["converted_from"]).name)
    same = original.is_file() and file_sha256(original) == header.get("converted_sha256")
    return original if same else None


def read_state_dict(path: Path, key: str | None = None, *, wrappers: Sequence[str] = ()) -> "dict[str, Tensor]":
    """Return the tensors of a safetensors file or of a torch checkpoint, on the CPU, memory-mapped where the format allows.

    Pickles are read by torch's restricted unpickler only, which builds tensors and plain containers and calls nothing else.
    A caller that knows a file to hold harmless further classes names them with `torch.serialization.safe_globals`.

    Args:
        path: .safetensors, or what `torch.save` wrote (zip or the older plain pickle).
        key: entry of the file that holds the state dict (``state_dict``, ``module``, ``model``); must be there.
        wrappers: entries that may hold it: the first present one is unwrapped, else the file itself is the state dict.

    Raises:
        UserError: missing, empty, damaged or unsafe file, absent key, or something that is not a tensor among the values.
    """
    check_file(path)
    content = _read_safetensors(path) if is_safetensors(path) else _read_torch(path)
    if key is not None and key not in content:
        raise UserError(f"{path} has no entry '{key}'; it holds {_names(content)}")
    key = key if key is not None else next((name for name in wrappers if name in content), None)
    where = str(path) if key is None else f"{path}, entry '{key}'"
    return _only_tensors(content if key is None else content[key], where)


def read_metadata(path: Path) -> dict[str, str]:
    """Return the text entries in the header of a safetensors file; empty when it has none.

    Raises:
        UserError: missing, damaged or another kind of file.
    """
    from safetensors import SafetensorError, safe_open

    check_file(path)
    try:
        with safe_open(path, framework="numpy") as file:
            return dict(file.metadata() or {})
    except (SafetensorError, OSError) as error:
        raise _damaged(path, "safetensors file", error) from error


def check_file(path: Path) -> None:
    """Raise `UserError` unless ``path`` is a file that can be read and is not empty."""
    if path.is_dir():
        raise UserError(f"{path} is a folder: give the weight file in it")
    try:
        with open(path, "rb") as file:
            if not file.read(1):
                raise UserError(f"{path} is empty (0 bytes): download it again")
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist: check the path") from error
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}; check its permissions") from error


def is_safetensors(path: Path) -> bool:
    """Tell by suffix, or by content: eight bytes of header length, then a JSON object (neither zip nor pickle)."""
    if path.suffix == ".safetensors":
        return True
    with open(path, "rb") as file:
        start = file.read(9)
    return len(start) == 9 and start[8:] == b"{" and int.from_bytes(start[:8], "little") <= _HEADER_LIMIT


def _read_safetensors(path: Path) -> "dict[str, Any]":
    """Return the tensors by name; of a file of `latentlab convert` as its source had them, in their entries."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise _damaged(path, "safetensors file", error) from error
    entries = _entries(path)
    whole: dict[str, Any] = {entry: {} for entry in entries}
    for name, tensor in tensors.items():
        entry = next((entry for entry in entries if name.startswith(f"{entry}.")), None)
        if entry is None:
            whole[name] = tensor
        else:
            whole[entry][name.removeprefix(f"{entry}.")] = tensor
    return whole


def _entries(path: Path) -> list[str]:
    """Return the entries that a converted checkpoint kept its tensors in; empty for any other file."""
    text = read_metadata(path).get(ENTRIES, "[]")
    try:
        entries = json.loads(text)
    except json.JSONDecodeError:
        entries = None
    if not isinstance(entries, list) or not all(isinstance(entry, str) for entry in entries):
        raise UserError(f"{path}: the header is damaged ('{ENTRIES}' is not a list of names): convert the file again")
    return entries


def _read_torch(path: Path) -> Mapping[str, Any]:
    import torch

    with open(path, "rb") as file:
        start = file.read(2)
    is_zip = start == b"PK"
    if is_zip:
        check_archive(path)
    elif start != _TORCH_PICKLE:
        kind = "a plain pickle, which could run code" if start[:1] == _TORCH_PICKLE[:1] else "of an unknown kind"
        raise UserError(
            f"{path} is neither a safetensors file nor a torch checkpoint but {_stand_in(path) or kind}: check the file"
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickle protocols; what cannot be read becomes an error below
            content = torch.load(str(path), map_location="cpu", weights_only=True, mmap=is_zip)
    except Exception as error:  # an unpickler that is fed arbitrary bytes can raise anything
        raise _refusal(path, error) from error
    if not isinstance(content, Mapping):
        raise UserError(f"{path} holds a {type(content).__name__}, not a state dict: check the file")
    return content


def _refusal(path: Path, error: Exception) -> UserError:
    """Say what the restricted unpickler refused and how to convert the file, or that the file is damaged."""
    beyond = _BEYOND.search(str(error))
    if beyond is None:  # what torch says after its advice to load the file unsafely
        reason = (str(error).partition("WeightsUnpickler error:")[2] or str(error)).strip()
        return _damaged(path, "torch checkpoint", reason.partition("\n")[0] or type(error).__name__)
    refused = _REFUSED.search(beyond[0])
    what = f"beside tensors it asks for {refused[1]}, which could run code" if refused else one_line(beyond[0])
    target = path.with_suffix(".safetensors")
    return UserError(
        f"{path} is refused: {what}. Take out its tensors alone, once and without running anything, with "
        f"`{conversion_command(path, target)}` and give {target} instead"
    )


def conversion_command(path: Path, target: Path) -> str:
    """Return the command line that converts ``path`` into ``target``."""
    return shlex.join(["latentlab", "convert", str(path), str(target)])


def _stand_in(path: Path) -> str | None:
    """Say what a small text file is that came in place of the weights, and what to do; None for anything else."""
    with open(path, "rb") as file:
        start = file.read(200).lstrip().lower()
    if start.startswith(b"version https://git-lfs"):
        return "a pointer of Git LFS (run `git lfs pull` in its repository, or download the file itself)"
    if start.startswith((b"<!doctype html", b"<html")):
        return "a web page (a notice about logins or quotas?)"
    return None


def _damaged(path: Path, kind: str, error: Exception | str) -> UserError:
    if what := _stand_in(path):
        return UserError(f"{path} is no {kind} but {what}: check the file")
    return UserError(f"{path} is not a readable {kind}, or is damaged ({one_line(error)}): download it again")


def _only_tensors(content: Any, where: str) -> "dict[str, Tensor]":
    from torch import Tensor

    if not isinstance(content, Mapping):
        raise UserError(f"{where} is a {type(content).__name__}, not a state dict")
    others = [str(name) for name, value in content.items() if not (isinstance(name, str) and isinstance(value, Tensor))]
    if others:
        raise UserError(
            f"{where} is not a state dict: not tensors: {_names(others)}; give the entry that holds one as key"
        )
    return dict(content)


def _names(content: Mapping[str, Any] | Sequence[str], shown: int = 12) -> str:
    names = [str(name) for name in content]
    rest = f" and {len(names) - shown} more" if len(names) > shown else ""
    return (", ".join(names[:shown]) or "nothing") + rest
