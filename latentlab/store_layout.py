"""How a latent store lies on disk: names, the manifest, and what an unfinished store knows about itself.

A folder holds ``latents_rank00_shard000.safetensors``, ... with ``latents`` [m,c,h,w] or [m,l,c], ``labels`` [m] and, for
discrete tokenizers, ``codes`` [m,h,w] or [m,l]; where mirrored images were encoded too, ``latents_flip`` and ``codes_flip``.
In the folder ``masks`` ``masks_rank00_shard000.safetensors``, ... hold the foreground masks as bits: not beside the latents,
since LightningDiT reads every safetensors file there as latents (earlier stores have them there). ``store.json`` is written last:
without it a folder of ours is unfinished. Every process (rank) writes shards of its own and notes each whole one in
``store.partial.rankRR.json``; together these say which images are done, whoever encoded them.
"""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from latentlab.errors import UserError
from latentlab.files import file_sha256, read_json_as, write_json
from latentlab.latents import TokenizerSpec

FORMAT_VERSION = 1
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}

MANIFEST = "store.json"
PATTERN = "latents_rank*_shard*.safetensors"
MASKS = "masks"
_MASK_PATTERN = "masks_rank*_shard*.safetensors"
_ALL_MASKS = (_MASK_PATTERN, f"{MASKS}/{_MASK_PATTERN}")
"""Where masks are, earlier stores' first."""

_KEPT = "store.partial.json"
_PARTIAL = "store.partial*.json"


@dataclass(frozen=True)
class ShardEntry:
    """One finished shard as the manifest lists it; ``modified`` (nanoseconds) tells when its bytes must be checked again."""

    file: str
    n: int
    size: int
    modified: int
    sha256: str

    @classmethod
    def of(cls, file: Path, n: int) -> "ShardEntry":
        """Describe a shard of ``n`` images that has just been written."""
        status = file.stat()
        return cls(file.name, n, status.st_size, status.st_mtime_ns, file_sha256(file))

    def fault(self, folder: Path) -> str | None:
        """Return what is wrong with the file, None when it is the one that was written; reads it only if touched since."""
        file = folder / self.file
        if not file.exists():
            return "is missing"
        status = file.stat()
        if status.st_size != self.size:
            return f"has {status.st_size} bytes instead of {self.size}"
        if status.st_mtime_ns != self.modified and file_sha256(file) != self.sha256:
            return "was changed after it was written"
        return None


@dataclass(frozen=True)
class StoreManifest:
    """Content of ``store.json``."""

    format_version: int
    request: dict[str, Any]
    """Everything that determined the content (tokenizer, weights, data, precision, ...), for reuse."""
    spec: TokenizerSpec
    n: int
    shards: list[ShardEntry]
    """In the order of the images."""
    mean: list[float]
    std: list[float]
    class_names: list[str] | None = None
    mask_size: tuple[int, int] | None = None
    content: str | None = None
    """Digest of all columns in the order of the images, however they lie in shards; absent in stores of earlier versions."""


@dataclass(frozen=True)
class _Version:
    """The part of ``store.json`` that stores of all formats have."""

    format_version: int


@dataclass(frozen=True)
class Written:
    """A whole shard of an unfinished store, which begins with image ``first``."""

    first: int
    shard: ShardEntry

    @property
    def end(self) -> int:
        """The image after its last one."""
        return self.first + self.shard.n


@dataclass(frozen=True)
class _Progress:
    """Content of ``store.partial*.json``: which shards of which request are safely on disk."""

    request: dict[str, Any]
    written: list[Written]


def shard_name(rank: int, number: int) -> str:
    """Return the name of a shard, as LightningDiT's feature extraction gives it."""
    return f"latents_rank{rank:02d}_shard{number:03d}.safetensors"


def mask_path(folder: Path, shard: str) -> Path:
    """Return where the masks that belong to a shard of the store ``folder`` are, or are to be written."""
    name = shard.replace("latents_", "masks_", 1)
    earlier = folder / name
    return earlier if earlier.is_file() else folder / MASKS / name


def read_manifest(folder: Path) -> StoreManifest | None:
    """Return the manifest of a finished store, its shards checked; None for a folder that somebody else wrote.

    Raises:
        UserError: no such folder, an unfinished store, one of another version, or a damaged one.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder: give one with {PATTERN} files")
    if not (folder / MANIFEST).exists():
        if any(folder.glob(_PARTIAL)):
            raise UserError(f"{folder} is unfinished: run the same encode command again, it continues where it stopped")
        return None
    manifest = _manifest(folder)
    for entry in manifest.shards:
        if fault := entry.fault(folder):
            raise UserError(f"{folder / entry.file} {fault}: delete {folder} and encode again")
    return manifest


def _manifest(folder: Path) -> StoreManifest:
    """Return the content of ``store.json``, which must be there.

    Raises:
        UserError: of another version, or damaged.
    """
    found = read_json_as(_Version, folder / MANIFEST).format_version
    if found != FORMAT_VERSION:
        raise UserError(f"{folder} has store format {found}, this latentlab reads {FORMAT_VERSION}: encode again")
    return read_json_as(StoreManifest, folder / MANIFEST)


@dataclass(frozen=True)
class Held:
    """Latents of ours in a folder, finished or not.

    Attributes:
        request: everything that determines them.
        finished: whether all are there.
        with_masks: whether the foreground masks of the images are there too.
    """

    request: dict[str, Any]
    finished: bool
    with_masks: bool


def held(folder: Path) -> Held | None:
    """Return what would be lost if another request was written into ``folder``; None where that is nothing.

    Raises:
        UserError: a finished store of another version, or with a damaged ``store.json``.
    """
    if (folder / MANIFEST).exists():
        manifest = _manifest(folder)
        return Held(manifest.request, True, manifest.mask_size is not None)
    requests = [_request(file) for file in folder.glob(_PARTIAL)]
    known = [request for request in requests if request is not None]
    if not known or not any(folder.glob(PATTERN)):
        return None
    return Held(known[0], False, any(any(folder.glob(pattern)) for pattern in _ALL_MASKS))


def note_written(folder: Path, request: dict[str, Any], written: Sequence[Written], rank: int | None = None) -> None:
    """Write down which shards are whole: those of one rank, or those that all of them start from."""
    name = _KEPT if rank is None else f"store.partial.rank{rank:02d}.json"
    write_json(folder / name, asdict(_Progress(request, list(written))))


def kept_shards(folder: Path) -> list[Written]:
    """Return the shards that `resume` left, in the order of the images."""
    return read_json_as(_Progress, folder / _KEPT).written


def written_shards(folder: Path) -> list[Written]:
    """Return the shards that are whole, of all ranks, in the order of the images."""
    notes = (read_json_as(_Progress, file).written for file in folder.glob(_PARTIAL))
    by_name = {written.shard.file: written for part in notes for written in part}
    return sorted(by_name.values(), key=lambda written: written.first)


def resume(folder: Path, request: dict[str, Any]) -> None:
    """Make ``folder`` ready for writing: keep what interrupted runs of the same request left whole, clear away the rest.

    Raises:
        UserError: the folder holds latents that are not ours.
    """
    notes = list(folder.glob(_PARTIAL))
    if not notes and not (folder / MANIFEST).exists() and any(folder.glob(PATTERN)):
        raise UserError(f"{folder} holds latents that latentlab did not write: choose another folder")
    kept = []
    if notes and all(_request(file) == request for file in notes):
        kept = _whole(folder, written_shards(folder))
    (folder / MANIFEST).unlink(missing_ok=True)
    note_written(folder, request, kept)
    for file in folder.glob("store.partial.rank*.json"):
        file.unlink()
    files = {file for written in kept for file in (folder / written.shard.file, mask_path(folder, written.shard.file))}
    for stale in {file for pattern in (PATTERN, *_ALL_MASKS) for file in folder.glob(pattern)}:
        if stale not in files:
            stale.unlink()


def _request(notes: Path) -> dict[str, Any] | None:
    """Return the request of an unfinished store; None for notes that cannot be read, which are as good as none."""
    try:
        return read_json_as(_Progress, notes).request
    except UserError:
        return None


def _whole(folder: Path, written: Iterable[Written]) -> list[Written]:
    """Return the shards whose files have their size and which do not repeat images of those before."""
    kept: list[Written] = []
    for part in written:
        file = folder / part.shard.file
        fits = file.exists() and file.stat().st_size == part.shard.size
        if fits and (not kept or part.first >= kept[-1].end):
            kept.append(part)
    return kept


def clear_notes(folder: Path) -> None:
    """Remove what an unfinished store knew about itself."""
    for file in folder.glob(_PARTIAL):
        file.unlink()


def missing_ranges(n: int, written: Sequence[Written]) -> list[range]:
    """Return the images of 0..n-1 that no shard holds, as ranges in order; ``written`` is in order too."""
    starts = [0, *(part.end for part in written)]
    ends = [*(part.first for part in written), n]
    return [range(start, end) for start, end in zip(starts, ends, strict=True) if start < end]


def share_of(ranges: Sequence[range], rank: int, ranks: int, unit: int) -> list[range]:
    """Return what one of several ranks does of ``ranges``: consecutive images, cut at multiples of ``unit``.

    Batches begin at multiples of the batch size whoever encodes them, so that their content, and with it the rounding of every
    latent, does not depend on the number of ranks.
    """
    total = sum(map(len, ranges))
    low, high = (total * edge // ranks for edge in (rank, rank + 1))
    shares, before = [], 0
    for part in ranges:
        start, stop = (_cut(part, edge - before, unit) for edge in (low, high))
        if start < stop:
            shares.append(range(start, stop))
        before += len(part)
    return shares


def _cut(part: range, offset: int, unit: int) -> int:
    """Return the image at ``offset`` in ``part``, moved to the last multiple of ``unit``, within ``part``."""
    if offset >= len(part):
        return part.stop
    return max(part.start, (part.start + max(0, offset)) // unit * unit)
