"""Latents on disk: safetensors shards in LightningDiT's layout plus ``store.json``, written so that a kill loses one shard.

A folder holds ``latents_rank00_shard000.safetensors``, ... with ``latents`` [m,c,h,w] or [m,l,c], ``labels`` [m] and, for
discrete tokenizers, ``codes`` [m,h,w] or [m,l]; beside them ``masks_rank00_shard000.safetensors``, ... with the foreground
masks as bits. ``store.json`` is written last: without it a folder of ours is unfinished. Folders written by LightningDiT's
feature extraction have no ``store.json`` and are read as they are.
"""

from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from latentlab.errors import UserError
from latentlab.files import atomic_path, digest, file_sha256, quick_fingerprint, read_json_as, write_json
from latentlab.latents import ChannelMoments, Latents, TokenizerSpec, channel_moments, integer_labels
from latentlab.shards import Shard

FORMAT_VERSION = 1
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}

_MANIFEST = "store.json"
_PARTIAL = "store.partial.json"
_PATTERN = "latents_rank*_shard*.safetensors"
_SHARD_BYTES = 128 << 20
_SHARD_IMAGES = 10_000  # LightningDiT's shard length


@dataclass(frozen=True)
class ShardEntry:
    """One finished shard as the manifest lists it; ``modified`` (nanoseconds) tells when its bytes must be checked again."""

    file: str
    n: int
    size: int
    modified: int
    sha256: str


@dataclass(frozen=True)
class StoreManifest:
    """Content of ``store.json``."""

    format_version: int
    request: dict[str, Any]
    """Everything that determined the content (tokenizer, weights, data, precision, ...), for reuse."""
    spec: TokenizerSpec
    n: int
    shards: list[ShardEntry]
    mean: list[float]
    std: list[float]
    class_names: list[str] | None = None
    mask_size: tuple[int, int] | None = None


@dataclass(frozen=True)
class _Progress:
    """Content of ``store.partial.json``: which shards of which request are safely on disk."""

    request: dict[str, Any]
    shards: list[ShardEntry]


class LatentStore(Latents):
    """A folder of latents, streamed or read at random without loading it.

    Attributes:
        path: the folder.
        manifest: content of ``store.json``; None for a folder somebody else wrote.
    """

    def __init__(self, path: str | Path) -> None:
        """Open a finished store, or a folder in LightningDiT's layout.

        Raises:
            UserError: no such folder, nothing in it, unfinished, truncated, or shards that do not fit together.
        """
        self.path = Path(path)
        manifest = self._read_manifest()
        self._open([entry.file for entry in manifest.shards] if manifest else self._foreign_shards(), manifest)

    @classmethod
    def _unfinished(cls, path: Path, names: list[str]) -> "LatentStore":
        """Open shards that are on disk but not yet listed in a ``store.json``."""
        store = cls.__new__(cls)
        store.path = path
        store._open(names, None)
        return store

    def _open(self, names: list[str], manifest: StoreManifest | None) -> None:
        self.manifest = manifest
        self._shards = [Shard(self.path / name) for name in names]
        self._sequence = self._check_shards()
        lengths = [shard.shapes["latents"][0] for shard in self._shards]
        self._starts = np.concatenate([[0], np.cumsum(lengths)])
        self.n = int(self._starts[-1])
        item = self._shards[0].shapes["latents"][1:]
        self.shape = (item[1], item[0]) if self._sequence else item
        self.labels = self._read_labels()
        self.has_codes = all("codes" in shard for shard in self._shards)
        self._mask_size = manifest.mask_size if manifest else None
        self.has_masks = self._mask_size is not None
        self._mask_shards = [Shard(self.path / _mask_file(name)) for name in names] if self.has_masks else []
        if manifest:
            self.spec = manifest.spec
            self.class_names = tuple(manifest.class_names) if manifest.class_names else None

    @cached_property
    def fingerprint(self) -> str:  # type: ignore[override]
        """Digest of the SHA-256 of all shards (of size, date and samples of their bytes where there is no ``store.json``)."""
        if self.manifest:
            masks = [file_sha256(shard.path) for shard in self._mask_shards]
            return digest([entry.sha256 for entry in self.manifest.shards] + masks)
        return digest([quick_fingerprint(shard.path) for shard in self._shards])

    @cached_property
    def moments(self) -> ChannelMoments:
        """Per-channel mean and standard deviation, from ``store.json`` when it is there."""
        if self.manifest:
            mean, std = (torch.tensor(v, dtype=torch.float64) for v in (self.manifest.mean, self.manifest.std))
            return ChannelMoments(mean, std)
        return channel_moments(self)

    def take(self, indices: np.ndarray | slice) -> Tensor:
        """Return the latents at ``indices`` as float32 (float64 when stored so)."""
        rows = self._gather(self._shards, "latents", indices)
        if self._sequence:
            rows = rows.transpose(1, 2).contiguous()
        return rows if rows.dtype == torch.float64 else rows.float()

    def codes(self, indices: np.ndarray | slice) -> Tensor:
        """Return the codebook indices at ``indices``, int64 [b,h,w] or [b,l]."""
        return self._gather(self._shards, "codes", indices).long() if self.has_codes else super().codes(indices)

    def masks(self, indices: np.ndarray | slice) -> Tensor:
        """Return the foreground masks at ``indices``, bool [b,H,W] at image resolution."""
        if self._mask_size is None:
            return super().masks(indices)
        height, width = self._mask_size
        packed = self._gather(self._mask_shards, "masks", indices).numpy()
        bits = np.unpackbits(packed, axis=1, count=height * width)
        return torch.from_numpy(bits.reshape(-1, height, width)).bool()

    def _gather(self, shards: list[Shard], name: str, indices: np.ndarray | slice) -> Tensor:
        """Return rows of the tensor ``name`` from whichever shards hold them, in the order of ``indices``."""
        if isinstance(indices, slice):
            start, stop, step = indices.indices(self.n)
            if step == 1:
                return self._range(shards, name, start, stop)
            indices = np.arange(start, stop, step)
        wanted = np.asarray(indices)
        wanted = np.flatnonzero(wanted) if wanted.dtype == bool else wanted
        if wanted.size and (wanted.min() < 0 or wanted.max() >= self.n):
            raise UserError(f"indices must lie in 0..{self.n - 1}, got {wanted.min()}..{wanted.max()}")
        first = shards[0]
        out = torch.empty((len(wanted), *first.shapes[name][1:]), dtype=first.dtype(name))
        home = np.searchsorted(self._starts, wanted, side="right") - 1
        for which in np.unique(home):
            rows = np.flatnonzero(home == which)
            out[torch.from_numpy(rows)] = shards[which].rows(name, wanted[rows] - self._starts[which])
        return out

    def _range(self, shards: list[Shard], name: str, start: int, stop: int) -> Tensor:
        parts = []
        for which, shard in enumerate(shards):
            low, high = (int(np.clip(v - self._starts[which], 0, shard.shapes[name][0])) for v in (start, stop))
            if low < high:
                parts.append(shard.rows(name, slice(low, high)))
        if not parts:
            return shards[0].rows(name, slice(0, 0))
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _read_manifest(self) -> StoreManifest | None:
        if not self.path.is_dir():
            raise UserError(f"{self.path} is not a folder: give one with {_PATTERN} files")
        if (self.path / _MANIFEST).exists():
            manifest = read_json_as(StoreManifest, self.path / _MANIFEST)
            if manifest.format_version != FORMAT_VERSION:
                raise UserError(
                    f"{self.path} has store format {manifest.format_version}, this latentlab reads {FORMAT_VERSION}: "
                    "encode again"
                )
            self._check_content(manifest)
            return manifest
        if (self.path / _PARTIAL).exists():
            raise UserError(
                f"{self.path} is unfinished: run the same encode command again, it continues where it stopped"
            )
        return None

    def _check_content(self, manifest: StoreManifest) -> None:
        """Check that every shard is the one that was written; its bytes are read only if it was touched since."""
        for entry in manifest.shards:
            file = self.path / entry.file
            status = file.stat() if file.exists() else None
            if status is None:
                problem = "is missing"
            elif status.st_size != entry.size:
                problem = f"has {status.st_size} bytes instead of {entry.size}"
            elif status.st_mtime_ns != entry.modified and file_sha256(file) != entry.sha256:
                problem = "was changed after it was written"
            else:
                continue
            raise UserError(f"{file} {problem}: delete {self.path} and encode again")

    def _foreign_shards(self) -> list[str]:
        names = sorted(file.name for file in self.path.glob(_PATTERN))
        if not names:
            raise UserError(
                f"{self.path} has no {_PATTERN} files: is it a latent store or a LightningDiT feature folder?"
            )
        return names

    def _check_shards(self) -> bool:
        """Check that all shards hold latents of one shape; return whether they are sequences [m,l,c]."""
        for shard in self._shards:
            if "latents" not in shard:
                raise UserError(f"{shard.path} has no tensor 'latents', only {sorted(shard.shapes) or 'nothing'}")
            if not shard.dtype("latents").is_floating_point:
                raise UserError(f"{shard.path}: latents must be floating point, got {shard.dtype('latents')}")
            first = self._shards[0]
            mine, other = shard.shapes["latents"], first.shapes["latents"]
            if mine[1:] != other[1:] or shard.dtype("latents") != first.dtype("latents"):
                raise UserError(
                    f"{shard.path} holds latents {list(mine)}, {first.path.name} holds {list(other)}: they must agree"
                )
            if len(mine) not in (3, 4) or 0 in mine:
                raise UserError(f"{shard.path}: latents must be [n,c,h,w] or [n,l,c] and not empty, got {list(mine)}")
        return len(self._shards[0].shapes["latents"]) == 3

    def _read_labels(self) -> np.ndarray | None:
        if not all("labels" in shard for shard in self._shards):
            return None
        parts = [integer_labels(s.rows("labels", slice(None)).flatten(), f"{s.path}: labels") for s in self._shards]
        for shard, part in zip(self._shards, parts, strict=True):
            if len(part) != shard.shapes["latents"][0]:
                raise UserError(f"{shard.path}: {len(part)} labels for {shard.shapes['latents'][0]} latents")
        return np.concatenate(parts)


def open_if_current(path: Path, request: dict[str, Any]) -> LatentStore | None:
    """Return the finished store at ``path`` if it was made by exactly this ``request`` and is undamaged, else None."""
    if not (path / _MANIFEST).exists():
        return None
    try:
        store = LatentStore(path)
    except UserError:  # damaged or of another format: written anew
        return None
    return store if store.manifest is not None and store.manifest.request == request else None


class StoreWriter:
    """Writes a store shard by shard; an interrupted one continues after its last whole shard.

    Attributes:
        done: images already safely on disk from an earlier run of the same request.
    """

    def __init__(
        self,
        path: Path,
        *,
        request: dict[str, Any],
        spec: TokenizerSpec,
        dtype: str = "float32",
        class_names: tuple[str, ...] | None = None,
    ) -> None:
        """Start or continue the store at ``path``.

        Args:
            path: folder; created when absent. An older store of ours there is replaced.
            request: JSON values that determine the content; another request starts from nothing.
            spec: the tokenizer.
            dtype: ``float32``, ``float16`` or ``bfloat16``.
            class_names: names by label.

        Raises:
            UserError: unknown dtype, or the folder holds files that are not ours.
        """
        if dtype not in DTYPES:
            raise UserError(f"dtype must be one of {', '.join(DTYPES)}, got '{dtype}'")
        self.path, self._request, self._spec = path, request, spec
        self._dtype, self._class_names = DTYPES[dtype], class_names
        self._shards = self._resume()
        self.done = sum(entry.n for entry in self._shards)
        self._buffer: dict[str, list[Tensor]] = {}
        self._buffered = 0

    def append(
        self,
        latents: Tensor,
        labels: np.ndarray | None = None,
        codes: Tensor | None = None,
        masks: Tensor | None = None,
    ) -> None:
        """Add the next images: latents [b,c,h,w] or [b,l,c], labels [b], codes [b,h,w] or [b,l], masks bool [b,H,W].

        Raises:
            UserError: a latent is NaN or infinite (also after rounding to the store's dtype).
        """
        rows = latents.detach().to("cpu", self._dtype)
        finite = torch.isfinite(rows).flatten(1).all(1)
        if not finite.all():
            first = self.done + self._buffered + int(torch.nonzero(~finite)[0])
            raise UserError(
                f"the latent of image {first} is NaN or infinite in {str(self._dtype).removeprefix('torch.')} "
                f"({int((~finite).sum())} in this batch): encode in float32, or check the image and the weights"
            )
        columns: dict[str, Tensor | None] = {
            "latents": rows,
            "labels": None if labels is None else torch.from_numpy(np.asarray(labels, dtype=np.int64)),
            "codes": None if codes is None else codes.to("cpu", torch.int32),
            "masks": None if masks is None else masks.cpu(),
        }
        for name, column in columns.items():
            if column is not None:
                self._buffer.setdefault(name, []).append(column)
        self._buffered += len(rows)
        length = min(_SHARD_IMAGES, max(1, _SHARD_BYTES // (rows[0].numel() * rows.element_size())))
        while self._buffered >= length:
            self._flush(length)

    def finish(self) -> LatentStore:
        """Write what is left and ``store.json``; return the finished store."""
        if self._buffered:
            self._flush(self._buffered)
        if not self._shards:
            raise UserError(f"nothing to store in {self.path}: no image was given")
        moments = channel_moments(LatentStore._unfinished(self.path, [entry.file for entry in self._shards]))
        manifest = StoreManifest(
            format_version=FORMAT_VERSION,
            request=self._request,
            spec=self._spec,
            n=self.done,
            shards=self._shards,
            mean=moments.mean.tolist(),
            std=moments.std.tolist(),
            class_names=list(self._class_names) if self._class_names else None,
            mask_size=self._mask_size(),
        )
        write_json(self.path / _MANIFEST, asdict(manifest))
        (self.path / _PARTIAL).unlink(missing_ok=True)
        return LatentStore(self.path)

    def _mask_size(self) -> tuple[int, int] | None:
        if not (self.path / _mask_file(self._shards[0].file)).exists():
            return None
        height, width = Shard(self.path / _mask_file(self._shards[0].file)).rows("size", slice(None)).tolist()
        return height, width

    def _flush(self, length: int) -> None:
        """Write the first ``length`` buffered images as the next shard and note it as done."""
        tensors = {}
        for name, parts in self._buffer.items():
            column = torch.cat(parts)
            tensors[name], self._buffer[name] = column[:length].contiguous(), [column[length:].clone()]
        self._buffered -= length
        file = f"latents_rank00_shard{len(self._shards):03d}.safetensors"
        if (masks := tensors.pop("masks", None)) is not None:
            packed = torch.from_numpy(np.packbits(masks.flatten(1).numpy(), axis=1))
            with atomic_path(self.path / _mask_file(file)) as temporary:
                save_file({"masks": packed, "size": torch.tensor(masks.shape[1:])}, temporary)
        with atomic_path(self.path / file) as temporary:
            save_file(tensors, temporary)
        whole = self.path / file
        status = whole.stat()
        self._shards.append(ShardEntry(file, length, status.st_size, status.st_mtime_ns, file_sha256(whole)))
        self.done += length
        self._save_progress()

    def _save_progress(self) -> None:
        write_json(self.path / _PARTIAL, asdict(_Progress(self._request, self._shards)))

    def _resume(self) -> list[ShardEntry]:
        """Return the shards an interrupted run of the same request left whole; clear away anything else of ours."""
        kept: list[ShardEntry] = []
        if (self.path / _PARTIAL).exists():
            progress = read_json_as(_Progress, self.path / _PARTIAL)
            if progress.request == self._request:
                kept = [e for e in progress.shards if _size(self.path / e.file) == e.size]
                kept = kept if len(kept) == len(progress.shards) else []
        elif not (self.path / _MANIFEST).exists() and self.path.is_dir() and any(self.path.glob(_PATTERN)):
            raise UserError(f"{self.path} holds latents that latentlab did not write: choose another folder")
        for name in (_MANIFEST, _PARTIAL):
            (self.path / name).unlink(missing_ok=True)
        names = {entry.file for entry in kept} | {_mask_file(entry.file) for entry in kept}
        for stale in [*self.path.glob(_PATTERN), *self.path.glob(_mask_file(_PATTERN))]:
            if stale.name not in names:
                stale.unlink()
        self._shards = kept
        self._save_progress()
        return kept


def _mask_file(name: str) -> str:
    return name.replace("latents_", "masks_", 1)


def _size(file: Path) -> int | None:
    return file.stat().st_size if file.exists() else None
