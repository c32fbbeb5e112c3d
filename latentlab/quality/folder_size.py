"""The size of generated images in a folder: they are judged as they are, neither resized nor cut unless that is said."""

from pathlib import Path

from latentlab.errors import UserError


def native_side(source: str) -> int | None:
    """Return the side of the images of ``imagefolder:DIR``; None where no file there can be read as an image.

    Args:
        source: a data source. Of others than folders, only those have a size that know it themselves.

    Raises:
        UserError: the images differ in size or are not square, or are in files of another kind that have no size of their own.
    """
    kind, _, folder = source.partition(":")
    if kind == "parquet":
        raise UserError(f"{source} does not tell the size of its images: give --image-size")
    root = Path(folder).expanduser()
    if kind != "imagefolder" or not root.is_dir():
        return None  # no folder: which `open_data` explains
    from latentlab.data.encoded import in_threads
    from latentlab.data.folder import find_images

    sizes = {size for size in in_threads(_size, [root / path for path in find_images(root).paths]) if size}
    if len(sizes) > 1 or any(width != height for width, height in sizes):
        found = ", ".join(f"{width}x{height}" for width, height in sorted(sizes)[:3])
        raise UserError(
            f"{source} holds images of {found}{' ...' if len(sizes) > 3 else ''} pixels: generated images are judged as they "
            "are, square and of one size; give --image-size to resize and crop them"
        )
    return next(iter(sizes))[0] if sizes else None


def _size(path: Path) -> tuple[int, int] | None:
    """Return width and height, from the header; None for what is no image, which reading it will explain."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            return image.size
    except Exception:  # Pillow's readers raise errors of many types on broken data
        return None
