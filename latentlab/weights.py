"""Weight files: where they are, how they get there (verified), and how their tensors are read without running anything.

Nothing here unpickles freely: a weight file from elsewhere is untrusted until its tensors are in memory. torch is imported
where tensors are read, so that listing which weights are present stays quick.
"""

import os
import re
import shlex
import shutil
import sys
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path, PurePosixPath
from ssl import SSLError
from typing import TYPE_CHECKING, Any, BinaryIO
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from latentlab.errors import UserError
from latentlab.files import file_sha256, home

if TYPE_CHECKING:
    from torch import Tensor

TIMEOUT = 8.0
"""Seconds without an answer after which a server counts as unreachable."""

_BLOCK = 1 << 20
_HEADER_LIMIT = 100_000_000  # bytes; the safetensors format's own limit
_TORCH_PICKLE = b"\x80\x02"  # torch.save writes pickle protocol 2
_REFUSED = re.compile(r"GLOBAL (\S+)")


@dataclass(frozen=True)
class WeightFile:
    """A published weight file.

    Attributes:
        repo: who published it: a Hugging Face hub id, unless ``url`` says otherwise; names the local folder.
        filename: name inside the repository (may have folders).
        size: bytes, where known.
        sha256: hex digest, where known.
        url: https address to download from instead of the hub.
        licence: of the weights.
    """

    repo: str | None
    filename: str
    size: int | None = None
    sha256: str | None = None
    url: str | None = None
    licence: str | None = None

    @property
    def folder(self) -> Path:
        """Folder under latentlab's cache in which the file is looked for and put."""
        root = home() / "weights"
        return root / self.repo.replace("/", "--") if self.repo else root

    @property
    def path(self) -> Path:
        """Where the file belongs on this machine."""
        return self.folder / self.filename

    @property
    def origin(self) -> str:
        """Address or hub id, for messages."""
        return self.url or (f"huggingface.co/{self.repo}" if self.repo else "no known address")


def find_weights(file: WeightFile, download: bool = False) -> Path:
    """Return where ``file`` is on this machine: in latentlab's cache or in the Hugging Face cache.

    Args:
        file: what to look for.
        download: fetch it when it is absent; otherwise nothing touches the network.

    Raises:
        UserError: absent (says where it comes from, where to put it and the command that does both), or of another size
            than published.
    """
    found = file.path if file.path.is_file() else _in_hub_cache(file)
    if found is not None:
        _check_size(file, found)
        return found
    if download:
        return download_weights(file)
    raise UserError(
        f"weights {file.filename} ({_megabytes(file.size)}) are not on this machine: get them from {file.origin} and put "
        f"them at {file.path}{_command(file)}"
    )


def download_weights(file: WeightFile) -> Path:
    """Download ``file``, verify its size and hash, and return its path; an interrupted download is resumed.

    The file gets its final name only when it is whole and right. Does nothing when it is there already.

    Raises:
        UserError: no address, no network, no such file, interrupted, wrong size or hash, or the folder is not writable.
    """
    from huggingface_hub.utils import WeakFileLock

    try:
        file.path.parent.mkdir(parents=True, exist_ok=True)
        with WeakFileLock(_beside(file, ".lock")):  # several ranks may start at once: one downloads, the others wait
            if not file.path.is_file():
                part = _fetch(file)
                _verify(file, part)
                os.replace(part, file.path)
    except OSError as error:
        raise UserError(
            f"cannot write {file.path}: {error.strerror or error}; free space or set LATENTLAB_HOME"
        ) from error
    _check_size(file, file.path)
    return file.path


def _beside(file: WeightFile, suffix: str) -> Path:
    return file.path.with_name(f".{file.path.name}{suffix}")


def _in_hub_cache(file: WeightFile) -> Path | None:
    if file.repo is None or file.url is not None:
        return None
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(file.repo, file.filename)
    return Path(found) if isinstance(found, str) else None


def _command(file: WeightFile) -> str:
    """Return a shell command that puts the file in place, with what leads to it in a sentence."""
    path = shlex.quote(str(file.path))
    if file.url is not None:
        return f", for example: curl --create-dirs -L -C - -o {path} {shlex.quote(file.url)}"
    if file.repo is not None:
        return f", for example: hf download {file.repo} {file.filename} --local-dir {shlex.quote(str(file.folder))}"
    return ""


def _megabytes(size: int | None) -> str:
    return "size unknown" if size is None else f"{size / 1e6:.1f} MB"


def _check_size(file: WeightFile, path: Path) -> None:
    size = path.stat().st_size
    if file.size is not None and size != file.size:
        raise UserError(f"{path} has {size} bytes instead of {file.size}: delete it and download it again")


def _verify(file: WeightFile, part: Path) -> None:
    """Raise `UserError` and delete ``part`` unless it has the published size and hash."""
    size = part.stat().st_size
    wrong = f"has {size} bytes instead of {file.size}" if file.size not in (None, size) else None
    if wrong is None and file.sha256 is not None:
        found = file_sha256(part)
        wrong = f"has SHA-256 {found} instead of {file.sha256}" if found != file.sha256.lower() else None
    if wrong is not None:
        part.unlink()
        raise UserError(f"{file.filename} from {file.origin} {wrong}: it is not the published file and was not kept")


def _unreachable(file: WeightFile, reason: object) -> UserError:
    why = _one_line(reason)
    return UserError(
        f"cannot download {file.filename} from {file.origin} ({why}): try again, or put the file at {file.path}"
    )


def _fetch(file: WeightFile) -> Path:
    """Download to a hidden file beside the final one and return its path; nothing is verified yet."""
    if file.url is not None:
        return _fetch_url(file, file.url)
    if file.repo is not None:
        return _fetch_hub(file, file.repo)
    raise UserError(f"weights {file.filename} have no known address: put them at {file.path} by hand")


def _fetch_hub(file: WeightFile, repo: str) -> Path:
    """Download from the Hugging Face hub into a hidden folder, where the hub client keeps what it needs to resume."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url

    staging = _beside(file, ".hub")
    try:
        get_hf_file_metadata(hf_hub_url(repo, file.filename), timeout=TIMEOUT)  # the download itself retries for 20 s
        fetched = Path(hf_hub_download(repo, file.filename, local_dir=staging, etag_timeout=TIMEOUT))
    except Exception as error:  # the hub client's errors have no common base
        raise _unreachable(file, error) from error
    part = _beside(file, ".part")
    os.replace(fetched, part)
    shutil.rmtree(staging)
    return part


def _fetch_url(file: WeightFile, url: str) -> Path:
    """Download from a plain address, going on where an earlier attempt stopped."""
    if not url.startswith(("https://", "http://")):
        raise UserError(f"weights {file.filename}: {url} is not an http(s) address")
    part = _beside(file, ".part")
    if file.size is not None and part.is_file() and part.stat().st_size >= file.size:
        return part
    try:
        missing = _receive(url, part)
    except HTTPError as error:
        error.close()
        raise _unreachable(file, f"HTTP {error.code} {error.reason}") from error
    except (URLError, HTTPException, TimeoutError, ConnectionError, SSLError) as error:
        raise _unreachable(file, getattr(error, "reason", error)) from error
    if missing:
        raise _unreachable(file, f"interrupted with {missing} bytes to go; the next attempt resumes")
    return part


def _receive(url: str, part: Path) -> int:
    """Append what ``part`` lacks; return how many announced bytes did not come."""
    start = part.stat().st_size if part.is_file() else 0
    try:
        answer = urlopen(Request(url, headers={"Range": f"bytes={start}-"} if start else {}), timeout=TIMEOUT)
    except HTTPError as error:
        if error.code != 416 or not start:
            raise
        error.close()  # nothing follows these bytes: they are all there, or of another file; begin again
        part.unlink()
        return _receive(url, part)
    with answer, open(part, "ab" if answer.status == 206 else "wb") as file:
        announced = int(answer.headers.get("Content-Length") or 0)
        before = file.tell()
        _copy(answer, file, announced)
        return max(0, announced - (file.tell() - before))


def _copy(source: Any, target: BinaryIO, size: int) -> None:
    """Copy with a progress bar when somebody watches, and flush to disk."""
    from rich.console import Console
    from rich.progress import wrap_file

    watched = sys.stderr.isatty()
    with wrap_file(
        source, size, description="downloading", console=Console(stderr=True), disable=not watched
    ) as reader:
        shutil.copyfileobj(reader, target, _BLOCK)
    target.flush()
    os.fsync(target.fileno())


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
    _check_file(path)
    content = _read_safetensors(path) if _is_safetensors(path) else _read_torch(path)
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

    _check_file(path)
    try:
        with safe_open(path, framework="numpy") as file:
            return dict(file.metadata() or {})
    except (SafetensorError, OSError) as error:
        raise _damaged(path, "safetensors file", error) from error


def _check_file(path: Path) -> None:
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


def _is_safetensors(path: Path) -> bool:
    """Tell by suffix, or by content: eight bytes of header length, then a JSON object (neither zip nor pickle)."""
    if path.suffix == ".safetensors":
        return True
    with open(path, "rb") as file:
        start = file.read(9)
    return len(start) == 9 and start[8:] == b"{" and int.from_bytes(start[:8], "little") <= _HEADER_LIMIT


def _read_safetensors(path: Path) -> "dict[str, Tensor]":
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise _damaged(path, "safetensors file", error) from error


def _read_torch(path: Path) -> Mapping[str, Any]:
    import torch

    with open(path, "rb") as file:
        start = file.read(2)
    is_zip = start == b"PK"
    if is_zip:
        _check_archive(path)
    elif start != _TORCH_PICKLE:
        kind = "a plain pickle, which could run code" if start[:1] == _TORCH_PICKLE[:1] else "of an unknown kind"
        raise UserError(f"{path} is neither a safetensors file nor a torch checkpoint but {kind}: check the file")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickle protocols; what cannot be read becomes an error below
            content = torch.load(str(path), map_location="cpu", weights_only=True, mmap=is_zip)
    except Exception as error:  # an unpickler that is fed arbitrary bytes can raise anything
        raise _refusal(path, error) from error
    if not isinstance(content, Mapping):
        raise UserError(f"{path} holds a {type(content).__name__}, not a state dict: check the file")
    return content


def _check_archive(path: Path) -> None:
    """Raise `UserError` unless a zip is laid out as torch writes it: plain stored members that fit into the file.

    Torch never compresses, so a compressed member can only be a bomb or another program's archive.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except (zipfile.BadZipFile, NotImplementedError, OSError, ValueError) as error:
        raise _damaged(path, "torch checkpoint", error) from error
    for member in members:
        name = PurePosixPath(member.filename.replace("\\", "/"))
        if name.is_absolute() or ".." in name.parts or ":" in name.parts[0]:
            raise UserError(f"{path} is refused: its member '{member.filename!r}' points outside the archive")
        if member.compress_type != zipfile.ZIP_STORED or member.file_size != member.compress_size:
            raise UserError(
                f"{path} is refused: its member '{member.filename}' is compressed, torch checkpoints never are"
            )
    if sum(member.file_size for member in members) > path.stat().st_size:
        raise UserError(f"{path} is refused: its members are larger than the file")
    if not any(member.filename.endswith("/data.pkl") for member in members):
        raise UserError(f"{path} is a zip archive but not a torch checkpoint: check the file")


def _refusal(path: Path, error: Exception) -> UserError:
    """Say which class the restricted unpickler refused, or that the file is damaged."""
    reason = str(error).partition("WeightsUnpickler error:")[2] or str(
        error
    )  # without torch's advice to load it unsafely
    refused = _REFUSED.search(reason)
    if refused is None:
        return _damaged(path, "torch checkpoint", reason.strip().split("\n")[0] or type(error).__name__)
    return UserError(
        f"{path} is refused: beside tensors it asks for {refused[1]}, which could run code. Use a safetensors file, or have "
        "somebody who trusts its source save only the state dict as safetensors"
    )


def _damaged(path: Path, kind: str, error: Exception | str) -> UserError:
    return UserError(f"{path} is not a readable {kind}, or is damaged ({_one_line(error)}): download it again")


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


def _one_line(reason: object) -> str:
    text = " ".join(str(reason).split()) or type(reason).__name__
    return text if len(text) <= 200 else f"{text[:200]}..."
