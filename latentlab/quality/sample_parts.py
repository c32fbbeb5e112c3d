"""Generated images in parts, one file per batch: what is finished stays, whatever happens to the process that makes the rest.

A part ``images_{first}_{end}.safetensors`` holds ``images`` uint8 [m,H,W,3], ``labels`` int64 [m] and ``indices`` int64 [m], the
numbers first .. end-1 of its images among all n; its header holds facts about how it was made, as text.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from latentlab.errors import UserError
from latentlab.files import atomic_path, digest, quick_fingerprint
from latentlab.quality.generated_images import GeneratedImages
from latentlab.shards import Shard
from latentlab.weights import read_metadata

_NAME = re.compile(r"images_(\d+)_(\d+)\.safetensors")


@dataclass(frozen=True)
class Part:
    """One file: images ``first`` to ``end`` (exclusive)."""

    path: Path
    first: int
    end: int

    def facts(self) -> dict[str, str]:
        """Return what the header says about how it was made."""
        return read_metadata(self.path)


@dataclass(frozen=True)
class SampleParts:
    """The parts in one folder, which may not exist yet."""

    folder: Path

    def write(self, first: int, images: np.ndarray, labels: np.ndarray, facts: Mapping[str, str]) -> None:
        """Write images ``first`` and following, uint8 [m,H,W,3] with labels [m], as one part, atomically.

        Raises:
            UserError: the folder cannot be written.
        """
        end = first + len(images)
        columns = {
            "images": np.ascontiguousarray(images),
            "labels": labels.astype(np.int64),
            "indices": np.arange(first, end),
        }
        with atomic_path(self.folder / f"images_{first:08d}_{end:08d}.safetensors") as temporary:
            save_file(columns, temporary, metadata=dict(facts))

    def found(self) -> list[Part]:
        """Return the parts in order."""
        files = self.folder.iterdir() if self.folder.is_dir() else ()
        named = ((file, _NAME.fullmatch(file.name)) for file in files)
        parts = [Part(file, int(name[1]), int(name[2])) for file, name in named if name]
        return sorted(parts, key=lambda part: part.first)

    def missing(self, wanted: slice) -> list[slice]:
        """Return the ranges of images inside ``wanted`` that no part has."""
        gaps, next_one = [], wanted.start
        for part in self.found():
            if part.first > next_one:
                gaps.append(slice(next_one, min(part.first, wanted.stop)))
            next_one = max(next_one, part.end)
            if next_one >= wanted.stop:
                break
        if next_one < wanted.stop:
            gaps.append(slice(next_one, wanted.stop))
        return gaps

    def images(self) -> "PartImages":
        """Return the images of all parts.

        Raises:
            UserError: there are none, some are missing between them, or a file is damaged.
        """
        return PartImages(self)

    def clear(self) -> None:
        """Delete all parts, and the folder when nothing else is in it."""
        for part in self.found():
            part.path.unlink(missing_ok=True)
        if self.folder.is_dir() and not any(self.folder.iterdir()):
            self.folder.rmdir()


class PartImages(GeneratedImages):
    """The images of all parts of a folder, 0 to the last without a gap.

    Attributes:
        parts: the files, in order.
    """

    def __init__(self, parts: SampleParts) -> None:
        """Open all parts.

        Raises:
            UserError: there are none, some are missing between them, or a file is damaged.
        """
        self.parts = parts.found()
        if not self.parts:
            raise UserError(f"{parts.folder} holds no generated images")
        self.n = self.parts[-1].end
        if gaps := parts.missing(slice(0, self.n)):
            raise UserError(
                f"{parts.folder} lacks image {gaps[0].start}: run the same command again, it continues there"
            )
        self._shards = [Shard(part.path) for part in self.parts]
        for part, shard in zip(self.parts, self._shards, strict=True):
            if shard.shapes.get("images", ())[:1] != (part.end - part.first,) or "labels" not in shard:
                raise UserError(
                    f"{part.path} does not hold the images its name says: delete it and run the command again"
                )
        height, width = self._shards[0].shapes["images"][1:3]
        self.shape = (3, height, width)
        self._starts = np.array([part.first for part in self.parts])
        self.labels = np.concatenate([shard.rows("labels", slice(None)).numpy() for shard in self._shards])

    @cached_property
    def fingerprint(self) -> str:  # type: ignore[override]
        """Digest of every file's size, date and samples of its bytes."""
        return digest([quick_fingerprint(part.path) for part in self.parts])

    def levels(self, indices: np.ndarray | slice) -> np.ndarray:
        """Return the images at ``indices``, uint8 [b,H,W,3]."""
        wanted = np.arange(self.n)[indices]
        images = np.empty((len(wanted), *self.shape[1:], 3), np.uint8)
        home = np.searchsorted(self._starts, wanted, "right") - 1
        for which in np.unique(home):
            rows = np.flatnonzero(home == which)
            images[rows] = self._shards[which].rows("images", wanted[rows] - self._starts[which]).numpy()
        return images

    def in_parts(self) -> Iterator[np.ndarray]:
        """Yield the images of one part after another, uint8 [m,H,W,3]."""
        for part in self.parts:
            yield self.levels(slice(part.first, part.end))
