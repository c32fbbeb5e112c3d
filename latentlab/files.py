"""Files that are either whole or absent, and names for their content."""

import hashlib
import json
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError

from latentlab.errors import UserError

T = TypeVar("T")
_SAMPLES, _SAMPLE_BYTES = 16, 1 << 16


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path to write to; on success it is flushed and renamed to ``path``, on failure removed.

    A reader (or a restart after kill -9) therefore never sees a half-written file under its final name.

    Raises:
        UserError: the folder is not writable or the disk is full.
    """
    # The process number alone would not do: two machines that share the folder may both have a process of that number.
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)  # some writers make files that nobody else may read
        os.replace(temporary, path)
    except (OSError, SafetensorError) as error:  # the second one where the disk is full
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise UserError(f"cannot write {path}: {reason}; free space or choose another folder") from error
    finally:
        with suppress(OSError):  # read-only folder: there is nothing of ours to remove
            temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write ``text`` to ``path`` atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as indented JSON, atomically."""
    write_text(path, json.dumps(value, indent=1, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        UserError: the file is missing or is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist") from error
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(f"{path} is not a readable JSON file: {error}") from error


def read_json_as(model: type[T], path: Path) -> T:
    """Read a JSON file and check its content against ``model`` (a dataclass, pydantic model or type).

    Raises:
        UserError: the file is missing, is not JSON, or does not fit; names the first field that does not.
    """
    content = read_json(path)
    try:
        return TypeAdapter(model).validate_python(content)
    except ValidationError as error:
        raise UserError(f"{path}: {first_problem(error)}") from error


def first_problem(error: ValidationError) -> str:
    """Return the first problem of a failed validation as ``field.path: what is wrong``."""
    first = error.errors()[0]
    where = "".join(f"{part}." for part in first["loc"]).rstrip(".")
    what = first["msg"].removeprefix("Value error, ")  # pydantic's words for a ValueError of ours
    return f"{where}: {what}" if where else what


def digest(value: Any) -> str:
    """Return a short name (16 hex digits) for a JSON-serialisable value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:16]


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, read in blocks."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def quick_fingerprint(path: Path) -> str:
    """Return a name for a large file without reading all of it: size, modification time and 16 blocks of its bytes."""
    status = path.stat()
    seen = hashlib.sha256(f"{status.st_size} {status.st_mtime_ns}".encode())
    with open(path, "rb") as file:
        for i in range(_SAMPLES):  # the first begins at the start, the last ends at the end
            file.seek(i * max(status.st_size - _SAMPLE_BYTES, 0) // (_SAMPLES - 1))
            seen.update(file.read(_SAMPLE_BYTES))
    return seen.hexdigest()[:16]


def home() -> Path:
    """Return the folder for caches: ``$LATENTLAB_HOME``, else ``$XDG_CACHE_HOME/latentlab``, else ``~/.cache/latentlab``."""
    if chosen := os.environ.get("LATENTLAB_HOME"):
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "latentlab"  # set but empty means unset


def first_difference(there: Any, here: Any, name: str = "") -> str | None:
    """Return the first setting that differs between two tables of JSON values, in words; None when they are equal."""
    if isinstance(there, dict) and isinstance(here, dict):
        pairs = ((key, there.get(key), here.get(key)) for key in sorted({*there, *here}))
        found = (first_difference(old, new, f"{name}.{key}".lstrip(".")) for key, old, new in pairs)
        return next((text for text in found if text), None)
    return None if there == here else f"{name} is {there} there, {here} here"
