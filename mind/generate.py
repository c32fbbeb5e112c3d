"""From a generator to files: labels are decided, images are made batch after batch, and what is finished survives a kill.

A generator is anything that turns classes and sample numbers into images (`ImageGenerator`): MIND here, a diffusion model of
continuous latents just as well. Sample i depends on (seed, i, class) alone, so neither the batch size nor the number of ranks
nor an interruption changes it, as far as rounding goes: a GPU may choose other kernels for other batch sizes.

A run folder holds ``settings.json`` (what was asked for, then how it went), ``samples_{n}x{H}x{W}x3.npz``, ``grid.png``, ``png/``
on request, and while images are missing ``parts/``.
"""

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol, cast

import numpy as np
import torch
from torch import Tensor

from latentlab import __version__
from latentlab.errors import UserError
from latentlab.files import digest, first_difference, read_json, write_json
from latentlab.locks import alone
from latentlab.quality.fidelity import to_uint8
from latentlab.quality.generated_images import GeneratedImages
from latentlab.quality.generation import PARTS
from latentlab.quality.sample_file import SampleFile, sample_file_name, write_sample_file
from latentlab.quality.sample_parts import Part, PartImages, SampleParts
from latentlab.ranks import Ranks
from latentlab.runtime import make_writable, progress, say
from mind.labels import class_labels, rank_slice
from mind.output import write_class_grid, write_pngs

SETTINGS, GRID, PNGS = "settings.json", "grid.png", "png"
_FILLED = 4
"""Batches on a CPU are filled up to a multiple of this many images: its matrix products take rows in groups, those left over are
rounded otherwise, and one bit is enough to draw another token."""

Labels = Literal["equal", "random"] | Sequence[int] | np.ndarray


class Drawn(NamedTuple):
    """One batch of a generator."""

    images: Tensor
    """[b,3,H,W] in [-1,1]."""
    evaluations: float
    """Passes of one image through the network; a guided step is two."""


class Placed(Protocol):
    """What every generator says of itself."""

    @property
    def num_classes(self) -> int:
        """Classes are 0 .. num_classes-1."""

    @property
    def batch_size(self) -> int:
        """Samples at a time that suit the model and its device."""

    @property
    def device(self) -> str:
        """Where it runs."""

    def facts(self) -> Mapping[str, Any]:
        """Return what determines its samples, labels and seed aside, as JSON values."""


class ImageGenerator(Placed, Protocol):
    """A model with its sampler and decoder."""

    @property
    def batch_dependent(self) -> bool:
        """Whether an image depends on the others of its batch, as when one stream of random numbers serves all."""

    def draw(self, labels: Tensor, indices: Tensor, seed: int) -> Drawn:
        """Return images for classes ``labels`` [b] as the samples of the numbers ``indices`` [b], int64 both."""


@dataclass(frozen=True)
class Generated:
    """A finished run.

    Attributes:
        folder: where everything is.
        images: all of them, with labels.
        grid: the picture.
        npz: the file in the ADM format; None when it was not asked for.
        record: how it went, as in ``settings.json``.
    """

    folder: Path
    images: GeneratedImages
    grid: Path
    npz: Path | None
    record: dict[str, Any]


def generate(
    generator: ImageGenerator,
    out: Path,
    *,
    n: int,
    labels: Labels = "equal",
    classes: Sequence[int] | None = None,
    batch_size: int | None = None,
    seed: int = 0,
    ranks: Ranks = Ranks(),
    npz: bool = True,
    png: bool = False,
) -> Generated:
    """Make ``n`` images in the folder ``out``, or those that an interrupted run of the same request left to do.

    Args:
        generator: what draws.
        out: created when absent.
        n: number of images.
        labels: ``equal`` (every class equally often), ``random``, or the class of every image.
        classes: those that ``equal`` and ``random`` draw from; None for all of the model.
        batch_size: images at a time; None leaves it to the generator.
        seed: of labels and noise.
        ranks: processes that share the work; all must call this.
        npz: write the file in the ADM format; the parts are deleted then, since it holds all of them.
        png: write every image as a PNG as well.

    Raises:
        UserError: n or batch size below 1, a class the model does not have, a folder that holds another request or cannot be
            written, a batch too large for the device, or images that are not finite.
    """
    size = generator.batch_size if batch_size is None else batch_size
    for name, value in (("n", n), ("batch size", size)):
        if value < 1:
            raise UserError(f"{name} must be at least 1, got {value}")
    chosen = wanted_labels(labels, n, generator.num_classes, seed, classes)
    given = {"labels": labels if isinstance(labels, str) else f"list {digest(chosen.tolist())}"}
    if classes is not None:
        given["classes"] = ",".join(map(str, classes))
    request = _request(generator, n, given, seed, size, ranks)
    make_writable(out)
    with alone(out, ranks):
        _claim(out, request, ranks)
        ranks.wait()
        whole = _whole(out, n)
        ranks.wait()  # every rank has looked before the first one tidies up
        if whole is None:
            _make_all(generator, SampleParts(out / PARTS), chosen, size, seed, ranks)
        if ranks.first:
            _finish(out, request, npz, png)
        ranks.wait()
    images = _all_of(out, n)
    file = out / _file_name(images)
    return Generated(out, images, out / GRID, file if file.exists() else None, read_json(out / SETTINGS)["record"])


def sample_images(
    generator: ImageGenerator,
    labels: Sequence[int] | np.ndarray,
    *,
    seed: int = 0,
    batch_size: int | None = None,
    part: slice | None = None,
) -> np.ndarray:
    """Return images in memory, uint8 [m,H,W,3]: of samples 0, 1, ... for the class of each, or of a ``part`` of them.

    Raises:
        UserError: a class the model does not have, or images that are not finite.
    """
    classes = wanted_labels(labels, len(labels), generator.num_classes, seed)
    first, end, _ = (part or slice(None)).indices(len(classes))
    size = batch_size or generator.batch_size
    batches = [slice(start, min(start + size, end)) for start in range(first, end, size)]
    return np.concatenate([_levels(generator, classes, batch, seed)[0] for batch in batches])


def wanted_labels(
    labels: Labels, n: int, num_classes: int, seed: int, classes: Sequence[int] | None = None
) -> np.ndarray:
    """Return the class of every image, int64 [n]; arguments as in `generate`.

    Raises:
        UserError: unknown rule, not n labels, or classes that the model does not have or that are named twice.
    """
    if not isinstance(labels, str):
        wanted = np.asarray(labels, dtype=np.int64)
        if wanted.shape != (n,):
            raise UserError(f"{n} images need {n} labels, got {wanted.size}")
        check_classes(wanted, num_classes)
        return wanted
    pool = np.arange(num_classes) if classes is None else np.asarray(classes, dtype=np.int64)
    check_classes(pool, num_classes)
    if len(np.unique(pool)) < len(pool):
        raise UserError(f"classes {', '.join(map(str, pool))}: one is named twice")
    drawn: np.ndarray = pool[class_labels(n, len(pool), cast(Any, labels), seed).numpy()]
    return drawn


def check_classes(classes: Sequence[int] | np.ndarray, num_classes: int) -> None:
    """Raise `UserError` when a model of ``num_classes`` classes has too few for one of ``classes``."""
    outside = [int(label) for label in classes if not 0 <= label < num_classes]
    if outside:
        raise UserError(f"class {outside[0]}: the model has too few classes, only 0 to {num_classes - 1}")


def _request(
    generator: ImageGenerator, n: int, labels: Mapping[str, Any], seed: int, batch_size: int, ranks: Ranks
) -> dict[str, Any]:
    """Return everything that determines the images, as JSON values."""
    batches = {"batch_size": batch_size, "ranks": ranks.size} if generator.batch_dependent else {}
    request = {"latentlab": __version__, "n": n, **labels, "seed": seed, **batches, **generator.facts()}
    plain: dict[str, Any] = json.loads(json.dumps(request))
    return plain


def _claim(out: Path, request: dict[str, Any], ranks: Ranks) -> None:
    """Check that the folder is free or belongs to this very request, and note the request in it.

    Raises:
        UserError: it belongs to another one; says in what they differ.
    """
    file = out / SETTINGS
    kept = read_json(file) if file.exists() else {"request": request, "record": None}
    if not isinstance(kept, dict) or not isinstance(kept.get("request"), dict):
        raise UserError(f"{file} is not of a sampling run: choose another --out")
    if difference := first_difference(kept["request"], request):
        raise UserError(f"{out} holds images of another request ({difference}): choose another --out, or delete it")
    if not file.exists() and (any(out.glob("samples_*.npz")) or SampleParts(out / PARTS).found()):
        raise UserError(f"{out} holds images without the {SETTINGS} that explains them: choose another --out")
    if ranks.first:
        for left_by_a_kill in [*out.glob(".*.tmp"), *out.glob("*/.*.tmp")]:
            left_by_a_kill.unlink()
        write_json(file, kept)


def _whole(out: Path, n: int) -> GeneratedImages | None:
    """Return the images of the folder if all ``n`` are there, whole."""
    sources: list[Path | SampleParts] = [*sorted(out.glob(f"samples_{n}x*x3.npz")), SampleParts(out / PARTS)]
    for source in sources:
        with suppress(UserError):  # absent, unfinished or damaged: the next one, or they are made
            images = SampleFile(source) if isinstance(source, Path) else source.images()
            if images.n == n and images.labels is not None:
                return images
    return None


def _make_all(
    generator: ImageGenerator, parts: SampleParts, classes: np.ndarray, batch_size: int, seed: int, ranks: Ranks
) -> None:
    """Make what is missing of this rank's share, a part for every batch."""
    own = rank_slice(len(classes), ranks.rank, ranks.size)
    batches = [
        slice(first, min(first + batch_size, gap.stop))
        for gap in parts.missing(own)
        for first in range(gap.start, gap.stop, batch_size)
    ]
    missing = sum(batch.stop - batch.start for batch in batches)
    share = own.stop - own.start
    began = time.monotonic()
    with _bar(share, share - missing, ranks) as advance:
        for batch in batches:
            started = time.monotonic()
            levels, evaluations = _levels(generator, classes, batch, seed)
            facts = {
                "seconds": f"{time.monotonic() - started:.6f}",
                "evaluations": f"{evaluations:g}",
                "device": generator.device,
            }
            parts.write(batch.start, levels, classes[batch], facts)
            advance(len(levels))
    made = sum(ranks.gather(missing))
    if ranks.first and made:
        seconds = time.monotonic() - began
        say(f"{made:,} images in {seconds:.1f} s: {made / seconds:.2f} images/s")


@contextmanager
def _bar(total: int, done: int, ranks: Ranks) -> Iterator[Any]:
    """Show the progress of rank 0, which is about that of every rank."""
    if not ranks.first:
        yield lambda amount: None
        return
    with progress("sampling", total, done) as advance:
        yield advance


def _levels(
    generator: ImageGenerator, classes: np.ndarray, batch: slice, seed: int
) -> tuple[np.ndarray, float]:  # => uint8 [b,H,W,3], evaluations
    rows = np.arange(batch.start, batch.stop)
    if generator.device == "cpu" and not generator.batch_dependent and len(classes) >= _FILLED:
        rows = np.pad(rows, (0, -len(rows) % _FILLED), mode="edge")
    try:
        images, evaluations = generator.draw(torch.from_numpy(classes[rows]), torch.from_numpy(rows), seed)
        levels = to_uint8(images[: batch.stop - batch.start])
    except torch.OutOfMemoryError as error:
        raise UserError(
            f"{len(rows)} images at a time are too many for the memory of {generator.device}: give a smaller batch size"
        ) from error
    return levels.permute(0, 2, 3, 1).contiguous().cpu().numpy(), evaluations


def _finish(out: Path, request: dict[str, Any], npz: bool, png: bool) -> None:
    """Write the record and what was asked for; then the parts are not needed any more if there is a file of all."""
    images = _all_of(out, request["n"])
    assert images.labels is not None
    if isinstance(images, PartImages):
        write_json(out / SETTINGS, {"request": request, "record": _record(images.parts)})
        if npz:
            write_sample_file(out / _file_name(images), (images.n, *images.shape[1:]), images.in_parts(), images.labels)
    write_class_grid(out / GRID, images)
    if png:
        with progress("writing PNG files", images.n) as advance:
            write_pngs(out / PNGS, images, advance)
    if (out / _file_name(images)).exists():
        SampleParts(out / PARTS).clear()


def _all_of(out: Path, n: int) -> GeneratedImages:
    images = _whole(out, n)
    if images is None:
        raise UserError(f"images in {out} went missing while they were made: run the same command again")
    return images


def _file_name(images: GeneratedImages) -> str:
    return sample_file_name(images.n, *images.shape[1:])


def _record(parts: Sequence[Part]) -> dict[str, Any]:
    """Return how the run went, over all its parts."""
    facts = [part.facts() for part in parts]
    images = np.array([part.end - part.first for part in parts])
    evaluations = np.array([float(fact["evaluations"]) for fact in facts])
    return {
        "images": int(images.sum()),
        "seconds_per_image": sum(float(fact["seconds"]) for fact in facts) / int(images.sum()),
        "evaluations_per_image": float(evaluations @ images / images.sum()),
        "devices": sorted({fact["device"] for fact in facts}),
    }
