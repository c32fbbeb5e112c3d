"""Downloading a published weight file: resumed where an earlier attempt stopped, kept only when it is whole and right."""

import os
import re
import shutil
import sys
from http.client import HTTPException
from pathlib import Path
from ssl import SSLError
from typing import Any, BinaryIO
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from latentlab.errors import UserError
from latentlab.files import file_sha256
from latentlab.weight_file import WeightFile

TIMEOUT = 8.0
"""Seconds without an answer after which a server counts as unreachable."""

_BLOCK = 1 << 20
_SHA256 = re.compile(r"[0-9a-f]{64}")


class DownloadError(UserError):
    """A file that could not be downloaded; its place on this machine is named last."""


def download_weights(file: WeightFile) -> Path:
    """Download ``file``, verify its size and hash, and return its path; an interrupted download is resumed.

    The file gets its final name only when it is whole and right. Does nothing when it is there already.

    Raises:
        UserError: no address, no network, no such file, interrupted, wrong size or hash, or the folder is not writable.
    """
    from huggingface_hub.utils import WeakFileLock

    try:
        file.path.parent.mkdir(parents=True, exist_ok=True)
        with WeakFileLock(file.beside(".lock")):  # several ranks may start at once: one downloads, the others wait
            if not file.path.is_file():
                part = _fetch(file)
                _verify(file, part)
                os.replace(part, file.path)
    except OSError as error:
        raise UserError(
            f"cannot write {file.path}: {error.strerror or error}; free space or set LATENTLAB_HOME"
        ) from error
    file.check_size(file.path)
    return file.path


def one_line(reason: object) -> str:
    """Return ``reason`` as one line of at most 200 characters; its type when it has no words."""
    text = " ".join(str(reason).split()) or type(reason).__name__
    return text if len(text) <= 200 else f"{text[:200]}..."


def _verify(file: WeightFile, part: Path) -> None:
    """Raise `UserError` and delete ``part`` unless it has the published size and hash."""
    if wrong := file.misfit(part):
        part.unlink()
        raise UserError(f"{file.filename} from {file.origin} {wrong}: it is not the published file and was not kept")


def _unreachable(file: WeightFile, reason: object, remedy: str = "try again") -> DownloadError:
    return DownloadError(
        f"cannot download {file.filename} ({file.size_text}) from {file.origin} ({one_line(reason)}): "
        f"{remedy}, or put the file at {file.path}"
    )


def _refused_access(file: WeightFile, error: Exception) -> DownloadError | None:
    """Return what to do where the hub wants to know who asks; None for any other error."""
    code = getattr(getattr(error, "response", None), "status_code", None)
    if code not in (401, 403):
        return None
    account = f"accept its terms at https://huggingface.co/{file.repo}, run `hf auth login` and try again"
    return _unreachable(file, f"HTTP {code}: the repository is gated, or not there", account)


def _fetch(file: WeightFile) -> Path:
    """Download to a hidden file beside the final one and return its path; size and hash are not verified yet."""
    if file.url is not None:
        return _fetch_url(file, file.url)
    if file.repo is not None:
        return _fetch_hub(file, file.repo)
    raise UserError(f"weights {file.filename} have no known address: put them at {file.path} by hand")


def _fetch_hub(file: WeightFile, repo: str) -> Path:
    """Download from the Hugging Face hub into a hidden folder, where the hub client keeps what it needs to resume.

    The hub's tag of a large file is the SHA-256 of its content: where no hash is published otherwise, that one must fit.
    """
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url

    staging = file.beside(".hub")
    try:
        # The metadata first, with a time limit: the download itself retries for 20 s.
        tag = get_hf_file_metadata(hf_hub_url(repo, file.filename), timeout=TIMEOUT).etag or ""
        fetched = Path(hf_hub_download(repo, file.filename, local_dir=staging, etag_timeout=TIMEOUT))
    except Exception as error:  # the hub client's errors have no common base
        raise _refused_access(file, error) or _unreachable(file, error) from error
    part = file.beside(".part")
    os.replace(fetched, part)
    shutil.rmtree(staging)
    if file.sha256 is None and _SHA256.fullmatch(tag) and file_sha256(part) != tag:
        part.unlink()
        raise _unreachable(file, f"what came does not have the SHA-256 {tag} that the hub states, and was not kept")
    return part


def _fetch_url(file: WeightFile, url: str) -> Path:
    """Download from a plain address, going on where an earlier attempt stopped."""
    if not url.startswith(("https://", "http://")):
        raise UserError(f"weights {file.filename}: {url} is not an http(s) address")
    part = file.beside(".part")
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
    if answer.headers.get_content_type() == "text/html":  # a notice about quotas or logins, with status 200
        answer.close()
        raise URLError("a web page came instead of the file")
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
