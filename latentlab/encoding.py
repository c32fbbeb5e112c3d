"""Images through a tokenizer into a latent store, continued where an interrupted run stopped."""

import hashlib
import re
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.utils import WeakFileLock
from torch import Tensor

from latentlab import __version__
from latentlab.data.base import ImageSet
from latentlab.errors import UserError
from latentlab.files import digest, home
from latentlab.pixels import to_unit_range
from latentlab.randomness import generator
from latentlab.runtime import make_writable, progress
from latentlab.store import LatentStore, StoreWriter, open_if_current
from latentlab.tokenizers import default_release, load_tokenizer
from latentlab.tokenizers.base import DiscreteTokenizer, Tokenizer

_CPU_PIXELS, _GPU_PIXELS = 1 << 17, 1 << 21
"""Pixels per pass. The widest activations of the published tokenizers take 512 bytes per pixel, several of them at a time."""


def open_tokenizer(
    name: str,
    data: str,
    *,
    weights: Path | None = None,
    release: str | None = None,
    device: torch.device | str = "cpu",
) -> Tokenizer:
    """Load the tokenizer ``name`` with the weights that suit the data source ``data``, unless others are given.

    Raises:
        UserError: unknown tokenizer or release, or weights that are missing or do not fit.
    """
    if weights is None and release is None:
        release = default_release(name, data.partition(":")[0])
    return load_tokenizer(name, weights=weights, release=release, device=device)


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
) -> LatentStore:
    """Encode all ``images`` and return the store at ``path``; one that holds exactly this already is returned as it is.

    Latents are stored un-normalised, with labels, foreground masks and codes where there are any.

    Args:
        tokenizer: moved to ``device`` and put in evaluation mode.
        images: given to the tokenizer in [-1,1].
        path: folder of the store.
        batch_size: images per pass through the tokenizer, by default as `default_batch_size` says.
        device: where the tokenizer runs.
        dtype: precision on disk: ``float32``, ``float16`` or ``bfloat16``.
        sample: draw from the posterior instead of taking its mode.
        seed: seed of these draws; each batch has its own stream, so that an interrupted run continues identically.

    Raises:
        UserError: batch size below 1, unknown dtype, unreadable image, non-finite latent, or a folder that cannot be written.
    """
    batch_size = default_batch_size(images.image_size, device) if batch_size is None else batch_size
    if batch_size < 1:
        raise UserError(f"batch size must be at least 1, got {batch_size}")
    request = store_request(tokenizer, images, dtype, (seed, batch_size) if sample else None)
    if finished := open_if_current(path, request):
        return finished
    make_writable(path)
    with WeakFileLock(path / ".lock"):  # two analyses that want the same latents: one encodes, the other waits
        if finished := open_if_current(path, request):
            return finished
        writer = StoreWriter(path, request=request, spec=tokenizer.spec, dtype=dtype, class_names=images.class_names)
        tokenizer = tokenizer.to(device).eval()
        done = writer.done
        with progress(f"encoding {images.name}", images.n, done) as advance, torch.inference_mode():
            for indices, pixels in images.batches(batch_size, first=done - done % batch_size):
                noise = _generator(device, seed, int(indices[0])) if sample else None
                latents, codes = encode_batch(tokenizer, to_unit_range(pixels.to(device)), noise)
                missing = slice(max(done - indices[0], 0), None)  # a shard may end inside a batch
                kept = indices[missing]
                writer.append(
                    latents[missing],
                    labels=None if images.labels is None else images.labels[kept],
                    codes=None if codes is None else codes[missing],
                    masks=images.masks(kept) if images.has_masks else None,
                )
                advance(len(kept))
        return writer.finish()


def store_request(
    tokenizer: Tokenizer, images: ImageSet, dtype: str = "float32", draws: tuple[int, int] | None = None
) -> dict[str, Any]:
    """Return everything that determines the content of a store, as JSON values.

    Args:
        tokenizer: its specification and weights.
        images: their fingerprint.
        dtype: precision on disk.
        draws: (seed, batch size) when latents are drawn from the posterior, None for its mode.
    """
    return {
        "latentlab": __version__,
        "tokenizer": digest(tokenizer.spec.to_dict()),
        "weights": weights_digest(tokenizer),
        "data": images.fingerprint,
        "images": images.n,
        "dtype": dtype,
        "draws": list(draws) if draws else None,
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


def _generator(device: torch.device | str, seed: int, start: int) -> torch.Generator:
    """Return the generator of the batch that begins at image ``start``."""
    return torch.Generator(device).manual_seed(generator(seed, "posterior", start).initial_seed())


def weights_digest(tokenizer: Tokenizer) -> str:
    """Return the SHA-256 of the weight file, or of all parameters and buffers where there is none."""
    if tokenizer.spec.weights_sha256:
        return tokenizer.spec.weights_sha256
    seen = hashlib.sha256()
    for name, tensor in tokenizer.state_dict().items():
        seen.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        seen.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return seen.hexdigest()
