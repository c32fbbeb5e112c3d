"""Images through a tokenizer into a latent store, continued where an interrupted run stopped."""

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from latentlab import __version__
from latentlab.data.base import ImageSet
from latentlab.errors import UserError
from latentlab.files import digest, home
from latentlab.locks import alone
from latentlab.pace import shown_pace
from latentlab.pixels import to_unit_range
from latentlab.prefetching import WriteBehind, read_ahead
from latentlab.randomness import generator
from latentlab.ranks import Ranks, launched_ranks
from latentlab.run_folder import stop_signal
from latentlab.runtime import make_writable, say, whole_float32
from latentlab.store import LatentStore, StoreWriter, open_if_current
from latentlab.tokenizers import default_release, load_tokenizer
from latentlab.tokenizers.base import DiscreteTokenizer, Tokenizer
from latentlab.tokenizers.release import FASHION32
from latentlab.tokenizers.zoo import published_namesake

PRECISIONS = ("float32", "bfloat16")

_UNWRITTEN = 32
"""Batches of latents that may wait to be written: a GPU goes on while a shard of 128 MB reaches the disk."""

_CPU_PIXELS, _GPU_PIXELS = 1 << 17, 1 << 21
"""Pixels per pass. The widest activations of the published tokenizers take 512 bytes per pixel, several of them at a time."""


def open_tokenizer(
    name: str,
    data: str,
    *,
    weights: Path | None = None,
    release: str | None = None,
    architecture: Mapping[str, Any] | None = None,
    device: torch.device | str = "cpu",
) -> Tokenizer:
    """Load the tokenizer ``name`` with the weights that suit the data source ``data``, unless others are given.

    Says on stderr when they are made for Fashion-MNIST and the data is something else.

    Raises:
        UserError: unknown tokenizer or release, or weights that are missing or do not fit.
    """
    kind = data.partition(":")[0]
    if weights is None and release is None:
        release = default_release(name, kind)
    tokenizer = load_tokenizer(name, weights=weights, release=release, architecture=architecture, device=device)
    if weights is None and release == FASHION32.name and kind not in ("fashion", "") and launched_ranks().first:
        other = published_namesake(name)
        hint = f"; did you mean {other}?" if other else ""
        say(f"note: '{name}' {release} was trained on Fashion-MNIST at 32x32 pixels, not on images like {data}{hint}")
    return tokenizer


def default_batch_size(image_size: int, device: torch.device | str) -> int:
    """Return how many images of this side are encoded at a time: 128 of 32x32, 2 of 256x256 on a CPU, 32 on a GPU."""
    pixels = _CPU_PIXELS if torch.device(device).type == "cpu" else _GPU_PIXELS
    return max(1, pixels // image_size**2)


def encode_images(
    tokenizer: Tokenizer,
    images: ImageSet,
    path: Path,
    *,
    batch_size: int | None = None,
    device: torch.device | str = "cpu",
    dtype: str = "float32",
    sample: bool = False,
    seed: int = 0,
    flip: bool = False,
    precision: str = "float32",
    ranks: Ranks = Ranks(),
) -> LatentStore:
    """Encode all ``images`` and return the store at ``path``; one that holds exactly this already is returned as it is.

    Latents are stored un-normalised, with labels, foreground masks and codes where there are any. Images are read, and shards
    written, in the background. Memory does not depend on the number of images.

    Args:
        tokenizer: moved to ``device`` and put in evaluation mode.
        images: given to the tokenizer in [-1,1].
        path: folder of the store.
        batch_size: images per pass through the tokenizer, by default as `default_batch_size` says.
        device: where the tokenizer runs.
        dtype: precision on disk: ``float32``, ``float16`` or ``bfloat16``.
        sample: draw from the posterior instead of taking its mode.
        seed: seed of these draws; each batch has its own stream, so that an interrupted run continues identically.
        flip: encode every image mirrored left to right too (`LatentStore.mirrored`).
        precision: of the tokenizer: ``float32``, or ``bfloat16`` for torch's autocast.
        ranks: processes that share the images, all of them in this call; consecutive images each, in whole batches, so that
            every latent is the same for any number of them.

    Raises:
        UserError: batch size below 1, unknown dtype or precision, unreadable image, non-finite latent, or a folder that
            cannot be written.
    """
    batch_size = default_batch_size(images.image_size, device) if batch_size is None else batch_size
    if batch_size < 1:
        raise UserError(f"batch size must be at least 1, got {batch_size}")
    if precision not in PRECISIONS:
        raise UserError(f"precision must be one of {', '.join(PRECISIONS)}, got '{precision}'")
    request = store_request(tokenizer, images, dtype, (seed, batch_size) if sample else None, flip, precision)
    if finished := _finished(path, request, ranks):
        return finished
    make_writable(path)
    with alone(path, ranks):
        if finished := _finished(path, request, ranks):
            return finished
        writer = StoreWriter(
            path, request=request, spec=tokenizer.spec, dtype=dtype, class_names=images.class_names, ranks=ranks
        )
        encoder = BatchEncoder(
            tokenizer.to(device).eval(), torch.device(device), seed if sample else None, flip, precision
        )
        _encode_missing(encoder, images, writer, batch_size, ranks)
        return writer.finish()


def _finished(path: Path, request: dict[str, Any], ranks: Ranks) -> LatentStore | None:
    """Return the store at ``path`` if rank 0 finds it finished.

    Each for itself, one could look before and one after another job has finished it: then one waits for ever for the others.
    """
    found = open_if_current(path, request) if ranks.first else None
    if not ranks.agreed(found is not None):
        return None
    if found is None and not path.is_dir():
        raise UserError(
            f"process {ranks.rank} does not see {path}, which process 0 has: processes of several machines need a disk that they "
            "share (LATENTLAB_HOME, --out)"
        )
    return LatentStore(path) if found is None else found


def _encode_missing(
    encoder: "BatchEncoder", images: ImageSet, writer: StoreWriter, batch_size: int, ranks: Ranks
) -> None:
    """Encode this rank's part of what is not on disk yet.

    Raises:
        KeyboardInterrupt: SIGTERM or Ctrl-C; what was encoded so far is on disk.
    """
    parts = writer.missing(images.n, batch_size)
    label = f"encoding {images.name}" + (f", process 1 of {ranks.size}" if ranks.size > 1 else "")
    pace = shown_pace(label, "images", sum(map(len, parts)), quiet=not ranks.first)
    read = partial(_read, images, encoder.device.type == "cuda")
    with stop_signal() as stop:
        try:
            with pace as advance, torch.inference_mode(), WriteBehind(_UNWRITTEN) as writing:
                for batch, (pixels, masks) in read_ahead(_batches(parts, batch_size, images.n), read):
                    columns = encoder.columns(pixels, batch.whole.start)
                    labels = None if images.labels is None else images.labels[batch.whole.start : batch.whole.stop]
                    writing.do(partial(_store, writer, batch, {**columns, "labels": labels, "masks": masks}))
                    advance(len(batch.kept))
                    if stop:
                        raise KeyboardInterrupt
        finally:  # whatever ended it: what was encoded is kept
            writer.flush()


@dataclass(frozen=True)
class _Batch:
    """Images that pass the tokenizer together, of which those in ``part`` are stored: a shard may begin or end inside."""

    whole: range
    part: range

    @property
    def kept(self) -> range:
        return range(max(self.whole.start, self.part.start), min(self.whole.stop, self.part.stop))


def _batches(parts: Sequence[range], size: int, n: int) -> Iterator[_Batch]:
    """Yield the batches that hold the images in ``parts``; they begin at multiples of the size, whoever encodes them."""
    for part in parts:
        for start in range(part.start - part.start % size, part.stop, size):
            yield _Batch(range(start, min(start + size, n)), part)


def _read(images: ImageSet, pin: bool, batch: _Batch) -> tuple[Tensor, Tensor | None]:
    """Return images and masks of a batch; from pinned memory a GPU takes them while it works on the batch before."""
    indices = np.arange(batch.whole.start, batch.whole.stop)
    pixels = images.images(indices)
    return pixels.pin_memory() if pin else pixels, images.masks(indices) if images.has_masks else None


def _store(writer: StoreWriter, batch: _Batch, columns: Mapping[str, Any]) -> None:
    kept = slice(batch.kept.start - batch.whole.start, batch.kept.stop - batch.whole.start)
    writer.go_to(batch.kept.start)
    chosen: dict[str, Any] = {name: None if column is None else column[kept] for name, column in columns.items()}
    writer.append(**chosen)


@dataclass(frozen=True)
class BatchEncoder:
    """Images of one batch -> the columns of a store.

    Attributes:
        tokenizer: on ``device``, in evaluation mode.
        device: where it runs.
        seed: of draws from the posterior; None for its mode.
        flip: encode the mirrored images too.
        precision: ``float32``, or ``bfloat16`` for autocast.
    """

    tokenizer: Tokenizer
    device: torch.device
    seed: int | None = None
    flip: bool = False
    precision: str = "float32"

    def columns(self, pixels: Tensor, first: int) -> dict[str, Tensor | None]:
        """Return what `StoreWriter.append` takes of images uint8 [b,3,H,W], the first of which is number ``first``."""
        images = to_unit_range(pixels.to(self.device, non_blocking=True))
        latents, codes = self._encode(images, first, "posterior")
        columns = {"latents": latents, "codes": codes}
        if self.flip:
            columns["flipped"], columns["flipped_codes"] = self._encode(
                images.flip(3), first, "posterior of mirrored images"
            )
        return columns

    def _encode(self, images: Tensor, first: int, stream: str) -> tuple[Tensor, Tensor | None]:
        noise = None if self.seed is None else _generator(self.device, self.seed, stream, first)
        half = self.precision == "bfloat16"
        with (
            torch.autocast(self.device.type, torch.bfloat16, enabled=half),
            nullcontext() if half else whole_float32(),
        ):
            return encode_batch(self.tokenizer, images, noise)


def store_request(
    tokenizer: Tokenizer,
    images: ImageSet,
    dtype: str = "float32",
    draws: tuple[int, int] | None = None,
    flip: bool = False,
    precision: str = "float32",
) -> dict[str, Any]:
    """Return everything that determines the content of a store, as JSON values.

    Args:
        tokenizer: its specification, and its weights with what they are put into.
        images: their fingerprint.
        dtype: precision on disk.
        draws: (seed, batch size) when latents are drawn from the posterior, None for its mode.
        flip: whether mirrored images are encoded too.
        precision: of the tokenizer.
    """
    # What is off is not mentioned: stores made before there was a choice stay valid.
    chosen = {"flip": flip or None, "precision": None if precision == "float32" else precision}
    return {
        "latentlab": __version__,
        "tokenizer": digest(tokenizer.spec.to_dict()),
        "weights": weights_digest(tokenizer),
        "data": images.fingerprint,
        "images": images.n,
        "dtype": dtype,
        "draws": list(draws) if draws else None,
        **{name: value for name, value in chosen.items() if value is not None},
    }


def cached_store_path(tokenizer: Tokenizer, images: ImageSet, dtype: str = "float32") -> Path:
    """Return where the posterior-mode latents of ``images`` are kept for reuse; another input has another folder."""
    key = digest(store_request(tokenizer, images, dtype))
    return home() / "stores" / f"{slug(tokenizer.spec.name)}-{slug(images.name)}-{key}"


def slug(name: str) -> str:
    """Return ``name`` as a short part of a file name: ``imagefolder:/data/my val`` becomes ``imagefolder-my-val``."""
    kind, colon, rest = name.partition(":")
    short = f"{kind}{colon}{Path(rest).name}" if rest else name
    return re.sub(r"[^A-Za-z0-9._-]+", "-", short).strip("-.")[:60] or "unnamed"


def unique_slug(name: str | Path) -> str:
    """Return `slug` of ``name``, followed by a digest of all of it where that leaves something out.

    ``fashion:test`` becomes ``fashion-test``, ``imagefolder:/data/a/val`` something like ``imagefolder-val-0d1e2f3a``. Of a path
    the last part is shown.
    """
    short = slug(name.name if isinstance(name, Path) else name)
    return short if short == re.sub("[ :=,]+", "-", str(name)) else f"{short}-{digest(str(name))[:8]}"


def encode_batch(
    tokenizer: Tokenizer, images: Tensor, noise: torch.Generator | None = None
) -> tuple[Tensor, Tensor | None]:
    """Return latents and, for a discrete tokenizer, the codes they stand for; from one pass.

    Args:
        tokenizer: on the device of the images.
        images: [b,3,H,W] in [-1,1].
        noise: draw from the posterior with it; None for its mode.
    """
    if isinstance(tokenizer, DiscreteTokenizer):
        codes = tokenizer.indices(images)
        return tokenizer.codes(codes), codes
    return tokenizer.encode(images, sample=noise is not None, generator=noise), None


def _generator(device: torch.device | str, seed: int, stream: str, start: int) -> torch.Generator:
    """Return the generator of the batch that begins at image ``start``."""
    return torch.Generator(device).manual_seed(generator(seed, stream, start).initial_seed())


def weights_digest(tokenizer: Tokenizer) -> str:
    """Return what names the weights: the SHA-256 of their file, or of all parameters and buffers where there is none.

    Together with what else latents depend on (`Tokenizer.overrides`): the same weights in another architecture, or in other code
    of a plug-in, give other latents.
    """
    weights = tokenizer.spec.weights_sha256 or parameters_digest(tokenizer)
    return digest([weights, dict(tokenizer.overrides)]) if tokenizer.overrides else weights


def parameters_digest(network: torch.nn.Module) -> str:
    """Return the SHA-256 of all parameters and buffers, for a network that comes from no file."""
    seen = hashlib.sha256()
    for name, tensor in network.state_dict().items():
        seen.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        seen.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return seen.hexdigest()
