"""Latents on disk, read: our own stores, and the folders that LightningDiT's feature extraction writes, as they are."""

from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from latentlab.errors import UserError
from latentlab.files import digest, file_sha256, quick_fingerprint
from latentlab.latents import ChannelMoments, Latents, channel_moments, integer_labels
from latentlab.shards import Shard
from latentlab.store_layout import MANIFEST, PATTERN, StoreManifest, mask_path, read_manifest


class LatentStore(Latents):
    """A folder of latents, streamed or read at random without loading it.

    Attributes:
        path: the folder.
        manifest: content of ``store.json``; None for a folder somebody else wrote.
        has_mirrored: whether the latents of the mirrored images are there too.
    """

    def __init__(self, path: str | Path, *, mirrored: bool = False) -> None:
        """Open a finished store, or a folder in LightningDiT's layout.

        Args:
            path: the folder.
            mirrored: read the latents of the images mirrored left to right, with their codes and masks, instead.

        Raises:
            UserError: no such folder, nothing in it, unfinished, truncated, shards that do not fit together, or no mirrored
                latents there.
        """
        self.path, self._mirrored = Path(path), mirrored
        manifest = read_manifest(self.path)
        self._open([entry.file for entry in manifest.shards] if manifest else self._foreign_shards(), manifest)
        if mirrored and not self.has_mirrored:
            raise UserError(f"{self.path} holds no latents of mirrored images: encode with --flip")

    @classmethod
    def unfinished(cls, path: Path, names: list[str]) -> "LatentStore":
        """Open shards that are on disk but not yet listed in a ``store.json``."""
        store = cls.__new__(cls)
        store.path, store._mirrored = path, False
        store._open(names, None)
        return store

    def mirrored(self) -> "LatentStore":
        """Return the same images mirrored left to right, in the same order.

        Raises:
            UserError: they were not encoded.
        """
        return LatentStore(self.path, mirrored=True)

    def _open(self, names: list[str], manifest: StoreManifest | None) -> None:
        self.manifest = manifest
        self._shards = [Shard(self.path / name) for name in names]
        self.has_mirrored = all(_twin(shard) for shard in self._shards)
        self._sequence = self._check_shards()
        lengths = [shard.shapes["latents"][0] for shard in self._shards]
        self._starts = np.concatenate([[0], np.cumsum(lengths)])
        self.n = int(self._starts[-1])
        item = self._shards[0].shapes["latents"][1:]
        self.shape = (item[1], item[0]) if self._sequence else item
        self.labels = self._read_labels()
        self._latents, self._codes = ("latents_flip", "codes_flip") if self._mirrored else ("latents", "codes")
        self.has_codes = all(self._codes in shard for shard in self._shards)
        self._mask_size = manifest.mask_size if manifest else None
        self.has_masks = self._mask_size is not None
        self._mask_shards = [Shard(mask_path(self.path, name)) for name in names] if self.has_masks else []
        if manifest:
            self.spec = manifest.spec
            self.class_names = tuple(manifest.class_names) if manifest.class_names else None

    @cached_property
    def fingerprint(self) -> str:  # type: ignore[override]
        """Digest of the content (of size, date and samples of the bytes of all shards where there is no ``store.json``)."""
        if self.manifest and self.manifest.content is not None:
            seen = [self.manifest.content]
        elif self.manifest:  # of an earlier version: by its shards
            masks = [file_sha256(shard.path) for shard in self._mask_shards]
            seen = [entry.sha256 for entry in self.manifest.shards] + masks
        else:
            seen = [quick_fingerprint(shard.path) for shard in self._shards]
        return digest(["mirrored", *seen] if self._mirrored else seen)

    @cached_property
    def moments(self) -> ChannelMoments:
        """Per-channel mean and standard deviation, from ``store.json`` when it is there."""
        if self.manifest and not self._mirrored:
            mean, std = (torch.tensor(v, dtype=torch.float64) for v in (self.manifest.mean, self.manifest.std))
            return ChannelMoments(mean, std)
        return channel_moments(self)

    def take(self, indices: np.ndarray | slice) -> Tensor:
        """Return the latents at ``indices`` as float32 (float64 when stored so)."""
        rows = self._gather(self._shards, self._latents, indices)
        if self._sequence:
            rows = rows.transpose(1, 2).contiguous()
        return rows if rows.dtype == torch.float64 else rows.float()

    def codes(self, indices: np.ndarray | slice) -> Tensor:
        """Return the codebook indices at ``indices``, int64 [b,h,w] or [b,l]."""
        return self._gather(self._shards, self._codes, indices).long() if self.has_codes else super().codes(indices)

    def masks(self, indices: np.ndarray | slice) -> Tensor:
        """Return the foreground masks at ``indices``, bool [b,H,W] at image resolution."""
        if self._mask_size is None:
            return super().masks(indices)
        height, width = self._mask_size
        packed = self._gather(self._mask_shards, "masks", indices).numpy()
        bits = np.unpackbits(packed, axis=1, count=height * width)
        masks = torch.from_numpy(bits.reshape(-1, height, width)).bool()
        return masks.flip(2) if self._mirrored else masks

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

    def _foreign_shards(self) -> list[str]:
        names = sorted(file.name for file in self.path.glob(PATTERN))
        if not names:
            raise UserError(
                f"{self.path} has no {PATTERN} files: is it a latent store or a LightningDiT feature folder?"
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


def _twin(shard: Shard) -> bool:
    """Whether a shard holds mirrored latents of the shape and type of the others."""
    names = ("latents", "latents_flip")
    if not all(name in shard for name in names):
        return False
    first, second = ((shard.shapes[name], shard.dtype(name)) for name in names)
    return first == second


def open_if_current(path: Path, request: dict[str, Any]) -> LatentStore | None:
    """Return the finished store at ``path`` if it was made by exactly this ``request`` and is undamaged, else None."""
    if not (path / MANIFEST).exists():
        return None
    try:
        store = LatentStore(path)
    except UserError:  # damaged or of another format: written anew
        return None
    return store if store.manifest is not None and store.manifest.request == request else None
