"""Encoding a folder of photographs: what reading ahead and writing behind save, and that memory does not grow with the images.

The peer is the same loop with nothing in the background: read, encode and write in turns. Beside it stand reading alone and
encoding alone: with perfect overlap the whole takes as long as the slower of the two. Two tokenizers:

* TAEF2 where its weights are here (else the embedded ``kl``), computed by one thread;
* a stand-in for an accelerator, which takes a fixed time per image and leaves the CPU alone: what an encoder on a GPU sees. Four
  such times, down to those of a fast GPU, show where reading begins to hold it up.

    python benchmarks/encoding.py [images]
"""

import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
from common import peak_memory, print_setting
from PIL import Image
from torch import Tensor

from latentlab import Tokenizer, TokenizerSpec, encoding, load_tokenizer, open_data, store_writer
from latentlab.encoding import encode_images
from latentlab.prefetching import WriteBehind
from latentlab.tokenizers.zoo import find_release, local_path

N, REPEATS, BATCH = 16, 3, 8
STAND_IN_IMAGES, STAND_IN_SECONDS = 200, (0.02, 0.005, 0.002, 0.001)
FEW_AND_MANY = (100, 1600)
SIZE = (500, 375)
"""Width and height of a typical photograph of ImageNet."""


class StandIn(Tokenizer):
    """Takes a fixed time per image without using the CPU; its latents are thinned pixels, [n,3,32,32]."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.seconds = seconds
        name = f"stand-in of {1000 * seconds:.0f} ms"
        self.spec = TokenizerSpec(name, "benchmark", "continuous", "grid", channels=3, downsampling=8)

    def encode(self, images: Tensor, sample: bool = False, generator: torch.Generator | None = None) -> Tensor:
        """Wait, and return every eighth pixel."""
        time.sleep(self.seconds * len(images))
        return images[:, :, ::8, ::8]

    def decode(self, latents: Tensor) -> Tensor:
        """Return the pixels, each eight times."""
        return latents.repeat_interleave(8, 2).repeat_interleave(8, 3)


def real_tokenizer() -> Tokenizer:
    here = local_path("taef2", find_release("taef2", "flux2"))
    return load_tokenizer("taef2" if here else "kl")


def write_photographs(folder: Path, n: int) -> None:
    """Write JPEG files with the detail of photographs: noise at several scales."""
    rng = np.random.default_rng(0)
    for i in range(n):
        layers = [rng.integers(0, 256, (SIZE[1] // step + 1, SIZE[0] // step + 1, 3), np.uint8) for step in (4, 16, 64)]
        scaled = [np.asarray(Image.fromarray(layer).resize(SIZE, Image.Resampling.BICUBIC), float) for layer in layers]
        Image.fromarray(np.mean(scaled, axis=0).astype(np.uint8)).save(folder / f"{i:04d}.jpg", quality=92)


def overlapped(folder: Path, n: int, model: Tokenizer) -> float:
    """Return the seconds that it takes to encode ``n`` images into a new store."""
    images = open_data(f"imagefolder:{folder}", limit=n)
    with tempfile.TemporaryDirectory() as out:
        started = time.perf_counter()
        encode_images(model, images, Path(out) / "store", batch_size=BATCH)
        return time.perf_counter() - started


def in_turns(folder: Path, n: int, model: Tokenizer) -> float:
    with patch.object(encoding, "read_ahead", _not_ahead), patch.object(encoding, "WriteBehind", _Immediately):
        return overlapped(folder, n, model)


def _not_ahead(items: Iterable, read: Callable) -> Iterator:
    return ((item, read(item)) for item in items)


class _Immediately(WriteBehind):
    def do(self, work: Callable[[], object]) -> None:
        work()


def reading(folder: Path, n: int, model: Tokenizer) -> float:
    images = open_data(f"imagefolder:{folder}", limit=n)
    started = time.perf_counter()
    for start in range(0, n, BATCH):
        images.images(np.arange(start, min(start + BATCH, n)))
    return time.perf_counter() - started


def encoding_alone(folder: Path, n: int, model: Tokenizer) -> float:
    batch = open_data(f"imagefolder:{folder}", limit=BATCH).images(np.arange(BATCH)).float() / 127.5 - 1
    with torch.inference_mode():
        started = time.perf_counter()
        for _ in range(n // BATCH):
            model.encode(batch)
        return time.perf_counter() - started


def compare_ways(folder: Path, n: int, model: Tokenizer) -> None:
    """Time the four in turns and print the best of each."""
    overlapped(folder, BATCH, model)
    ways = (reading, encoding_alone, in_turns, overlapped)
    times: dict[str, list[float]] = {way.__name__: [] for way in ways}
    for _ in range(REPEATS):
        for way in ways:
            times[way.__name__].append(way(folder, n, model))
    best = {way: min(seconds) for way, seconds in times.items()}
    whole = best["overlapped"]
    print(
        f"{model.spec.name}, {n} images: reading {best['reading']:.2f} s, encoding {best['encoding_alone']:.2f} s, in turns "
        f"{best['in_turns']:.2f} s, overlapped {whole:.2f} s ({n / whole:.1f} images/s): ratio {best['in_turns'] / whole:.2f}x, "
        f"the tokenizer is busy {best['encoding_alone'] / whole:.0%} of the time (best of {REPEATS})",
        flush=True,
    )


def prepared(folder: str, n: int) -> tuple[Path, int, Tokenizer]:
    store_writer.SHARD_IMAGES = 16
    model = StandIn(STAND_IN_SECONDS[0])
    overlapped(Path(folder), BATCH, model)
    return Path(folder), n, model


def run(given: tuple[Path, int, Tokenizer]) -> float:
    return overlapped(*given)


if __name__ == "__main__":
    n = int(sys.argv[1]) if len(sys.argv) > 1 else N
    torch.set_num_threads(1)
    print_setting()
    with tempfile.TemporaryDirectory() as name:
        write_photographs(Path(name), max(n, STAND_IN_IMAGES))
        for seconds in STAND_IN_SECONDS:
            compare_ways(Path(name), STAND_IN_IMAGES, StandIn(seconds))
        for i in range(STAND_IN_IMAGES, max(FEW_AND_MANY)):
            shutil.copy(Path(name) / f"{i % STAND_IN_IMAGES:04d}.jpg", Path(name) / f"{i:04d}.jpg")
        few, many = (peak_memory(prepared, run, name, count) for count in FEW_AND_MANY)
        print(
            f"peak memory: {few:.0f} MiB for {FEW_AND_MANY[0]} images, {many:.0f} MiB for {FEW_AND_MANY[1]}", flush=True
        )
        compare_ways(Path(name), n, real_tokenizer())
