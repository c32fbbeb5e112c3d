"""Latents onto disk, shard by shard, written so that a kill loses one shard, or a few minutes, of every process."""

import hashlib
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from latentlab.errors import UserError
from latentlab.files import atomic_path, write_json
from latentlab.latents import TokenizerSpec, channel_moments
from latentlab.ranks import Ranks
from latentlab.shards import Shard
from latentlab.store_layout import (
    DTYPES,
    FORMAT_VERSION,
    MANIFEST,
    ShardEntry,
    StoreManifest,
    Written,
    clear_notes,
    kept_shards,
    mask_path,
    missing_ranges,
    note_written,
    resume,
    shard_name,
    share_of,
    written_shards,
)
from latentlab.stored_latents import LatentStore

SHARD_BYTES = 128 << 20
SHARD_IMAGES = 10_000
"""Length of LightningDiT's shards."""

_HASHED_IMAGES = 256

PATIENCE_SECONDS = 300.0
"""What a kill may lose where encoding is slow: after so long a shard is written, however short."""


class StoreWriter:
    """Writes this process's part of a store; an interrupted store continues after its last whole shards."""

    def __init__(
        self,
        path: Path,
        *,
        request: dict[str, Any],
        spec: TokenizerSpec,
        dtype: str = "float32",
        class_names: tuple[str, ...] | None = None,
        ranks: Ranks = Ranks(),
    ) -> None:
        """Start or continue the store at ``path``; every rank must do so.

        Args:
            path: folder, which all ranks see; created when absent. An older store of ours there is replaced.
            request: JSON values that determine the content; another request starts from nothing.
            spec: the tokenizer.
            dtype: ``float32``, ``float16`` or ``bfloat16``.
            class_names: names by label.
            ranks: the processes that write it together.

        Raises:
            UserError: unknown dtype, or the folder holds files that are not ours.
        """
        if dtype not in DTYPES:
            raise UserError(f"dtype must be one of {', '.join(DTYPES)}, got '{dtype}'")
        self.path, self._request, self._spec = path, request, spec
        self._dtype, self._class_names, self._ranks = DTYPES[dtype], class_names, ranks
        if ranks.first:
            resume(path, request)
        ranks.wait()
        self._kept = kept_shards(path)
        self._written: list[Written] = []
        self._next = missing_ranges(1 << 62, self._kept)[0].start
        self._buffer: dict[str, list[Tensor]] = {}
        self._buffered = 0
        self._since = time.monotonic()

    def missing(self, n: int, unit: int) -> list[range]:
        """Return which of ``n`` images are left for this rank to encode, in batches that begin at multiples of ``unit``."""
        return share_of(missing_ranges(n, self._kept), self._ranks.rank, self._ranks.size, unit)

    def go_to(self, first: int) -> None:
        """Let the next image be number ``first``; what was given before becomes a shard of its own."""
        if first != self._next + self._buffered:
            self.flush()
            self._next = first

    def append(
        self,
        latents: Tensor,
        labels: np.ndarray | None = None,
        codes: Tensor | None = None,
        masks: Tensor | None = None,
        flipped: Tensor | None = None,
        flipped_codes: Tensor | None = None,
    ) -> None:
        """Add the next images.

        Args:
            latents: [b,c,h,w] or [b,l,c].
            labels: [b].
            codes: [b,h,w] or [b,l].
            masks: bool [b,H,W].
            flipped: latents of the images mirrored left to right.
            flipped_codes: codes of the mirrored images.

        Raises:
            UserError: a latent is NaN or infinite (also after rounding to the store's dtype).
        """
        columns: dict[str, Tensor | None] = {
            "latents": self._finite(latents),
            "latents_flip": None if flipped is None else self._finite(flipped),
            "labels": None if labels is None else torch.from_numpy(np.asarray(labels, dtype=np.int64)),
            "codes": None if codes is None else codes.to("cpu", torch.int32),
            "codes_flip": None if flipped_codes is None else flipped_codes.to("cpu", torch.int32),
            "masks": None if masks is None else masks.cpu(),
        }
        given = {name: column for name, column in columns.items() if column is not None}
        for name, column in given.items():
            self._buffer.setdefault(name, []).append(column)
        self._buffered += len(latents)
        per_image = sum(
            column[0].numel() * column.element_size() for column in given.values() if column.is_floating_point()
        )
        length = min(SHARD_IMAGES, max(1, SHARD_BYTES // per_image))
        while self._buffered >= length:
            self._write_shard(length)
        if time.monotonic() - self._since > PATIENCE_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Write what is left as a shard."""
        if self._buffered:
            self._write_shard(self._buffered)

    def finish(self) -> LatentStore:
        """Write what is left and, when every rank is here, ``store.json``; return the finished store."""
        self.flush()
        self._ranks.wait()
        if self._ranks.first:
            self._write_manifest()
        self._ranks.wait()
        return LatentStore(self.path)

    def _finite(self, latents: Tensor) -> Tensor:
        """Return latents as they are stored."""
        rows = latents.detach().to("cpu", self._dtype)
        finite = torch.isfinite(rows).flatten(1).all(1)
        if not finite.all():
            first = self._next + self._buffered + int(torch.nonzero(~finite)[0])
            raise UserError(
                f"the latent of image {first} is NaN or infinite in {str(self._dtype).removeprefix('torch.')} "
                f"({int((~finite).sum())} in this batch): encode in float32, or check the image and the weights"
            )
        return rows

    def _write_manifest(self) -> None:
        shards = [written.shard for written in written_shards(self.path)]
        if not shards:
            raise UserError(f"nothing to store in {self.path}: no image was given")
        moments = channel_moments(LatentStore.unfinished(self.path, [entry.file for entry in shards]))
        manifest = StoreManifest(
            format_version=FORMAT_VERSION,
            request=self._request,
            spec=self._spec,
            n=sum(entry.n for entry in shards),
            shards=shards,
            mean=moments.mean.tolist(),
            std=moments.std.tolist(),
            class_names=list(self._class_names) if self._class_names else None,
            mask_size=self._mask_size(shards[0].file),
            content=self._content([entry.file for entry in shards]),
        )
        write_json(self.path / MANIFEST, asdict(manifest))
        clear_notes(self.path)

    def _content(self, files: list[str]) -> str:
        """Return a digest of every column, image by image: an interruption cuts shards elsewhere, and changes nothing."""
        shards = [Shard(self.path / file) for file in files]
        masks = [Shard(path) for file in files if (path := mask_path(self.path, file)).exists()]
        seen = hashlib.sha256()
        for name in sorted(shards[0].shapes):
            seen.update(f"{name} {shards[0].dtype(name)} {shards[0].shapes[name][1:]}".encode())
            for shard in shards:
                _add_rows(seen, shard, name)
        seen.update(f"masks {self._mask_size(files[0])}".encode())
        for shard in masks:
            _add_rows(seen, shard, "masks")
        return seen.hexdigest()

    def _mask_size(self, shard: str) -> tuple[int, int] | None:
        masks = mask_path(self.path, shard)
        if not masks.exists():
            return None
        height, width = Shard(masks).rows("size", slice(None)).tolist()
        return height, width

    def _write_shard(self, length: int) -> None:
        """Write the first ``length`` buffered images as the next shard of this rank and note it as done."""
        tensors = {}
        for name, parts in self._buffer.items():
            column = torch.cat(parts)
            tensors[name], self._buffer[name] = column[:length].contiguous(), [column[length:].clone()]
        file = self._free_name()
        if (masks := tensors.pop("masks", None)) is not None:
            packed = torch.from_numpy(np.packbits(masks.flatten(1).numpy(), axis=1))
            with atomic_path(mask_path(self.path, file)) as temporary:
                save_file({"masks": packed, "size": torch.tensor(masks.shape[1:])}, temporary)
        with atomic_path(self.path / file) as temporary:
            save_file(tensors, temporary)
        self._written.append(Written(self._next, ShardEntry.of(self.path / file, length)))
        self._buffered -= length
        self._next += length
        self._since = time.monotonic()
        note_written(self.path, self._request, self._written, self._ranks.rank)

    def _free_name(self) -> str:
        """Return the first name of a shard of this rank that is not taken."""
        taken = {written.shard.file for written in (*self._kept, *self._written)}
        rank, number = self._ranks.rank, len(self._written)
        while shard_name(rank, number) in taken:
            number += 1
        return shard_name(rank, number)


def _add_rows(seen: "hashlib._Hash", shard: Shard, name: str) -> None:
    """Add the numbers of a column to a digest, some images at a time."""
    (n, *_) = shard.shapes[name]
    for first in range(0, n, _HASHED_IMAGES):
        rows = shard.rows(name, slice(first, first + _HASHED_IMAGES))
        seen.update(rows.contiguous().flatten().view(torch.uint8).numpy().tobytes())
