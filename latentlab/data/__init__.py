"""Images to measure tokenizers on: the embedded Fashion-MNIST, image folders, parquet files and CIFAR-10.

`open_data` turns what a user writes after ``--data`` into an `ImageSet`. Each source lives in a module of its own, which is
imported when it is opened, so that importing this package stays instant.
"""

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from latentlab.errors import UserError, unknown_name

if TYPE_CHECKING:
    from latentlab.data.base import ImageSet

__all__ = ["ImageSet", "data_sources", "open_data"]


class _Source(NamedTuple):
    module: str
    usage: str
    needs: str
    """What must follow the colon; empty when nothing must."""
    summary: str


_SOURCES = {
    "fashion": _Source(
        "fashion", "fashion[:train|:test]", "", "embedded Fashion-MNIST, 32x32, with foreground masks (default: test)"
    ),
    "imagefolder": _Source("folder", "imagefolder:DIR", "a folder", "DIR/class/*.jpg, or DIR/*.jpg without labels"),
    "parquet": _Source("parquet", "parquet:FILES", "files", "Hugging Face parquet files: a glob or a list with commas"),
    "cifar10": _Source(
        "cifar10", "cifar10:DIR[:train|:test]", "a folder", "CIFAR-10 as parquet or binary files (default: test)"
    ),
}


def data_sources() -> dict[str, str]:
    """Return what can be written after ``--data``, with one phrase about each."""
    return {source.usage: source.summary for source in _SOURCES.values()}


def open_data(
    source: str,
    *,
    image_size: int | None = None,
    limit: int | None = None,
    masks: str | None = None,
    skip_bad: bool = False,
    seed: int = 0,
) -> "ImageSet":
    """Open a set of images.

    Args:
        source: ``fashion[:train|:test]``, ``imagefolder:DIR``, ``parquet:FILES`` or ``cifar10:DIR[:train|:test]``.
        image_size: side in pixels after the centre crop (default: 32 for fashion and cifar10, 256 otherwise).
        limit: use at most this many images, balanced over classes (`latentlab.data.subset.choose_subset` says how).
        masks: folder of foreground masks for ``imagefolder``: ``DIR`` or ``binary:DIR`` (non-zero is foreground), or
            ``imagenet-s:DIR`` (class ids of ImageNet-S).
        skip_bad: decode every chosen image once while opening and leave out those that cannot be read (counted in
            `ImageSet.skipped`). The subset is chosen before, so fewer than ``limit`` images may remain.
        seed: decides which images ``limit`` keeps.

    Raises:
        UserError: unknown source, missing or broken files, a wrong layout, or an option the source does not have.
    """
    kind, _, argument = source.partition(":")
    if kind not in _SOURCES:
        raise _unknown_source(source, kind)
    if _SOURCES[kind].needs and not argument:
        raise UserError(f"the data source '{kind}' needs {_SOURCES[kind].needs}: write {_SOURCES[kind].usage}")
    from latentlab.data.base import DataRequest

    request = DataRequest(source, argument, image_size, limit, masks, skip_bad, seed)
    opened: ImageSet = import_module(f"latentlab.data.{_SOURCES[kind].module}").open_source(request)
    return opened


def _unknown_source(source: str, kind: str) -> UserError:
    if Path(source).expanduser().is_dir():
        return UserError(f"{source} is a folder: write imagefolder:{source} (or parquet:, cifar10: for those layouts)")
    return unknown_name("data source", kind, _SOURCES)


def __getattr__(name: str) -> Any:
    if name == "ImageSet":
        return import_module("latentlab.data.base").ImageSet
    raise AttributeError(f"module 'latentlab.data' has no attribute '{name}'")
