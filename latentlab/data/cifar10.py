"""CIFAR-10 (Krizhevsky 2009): ``cifar10:DIR`` (test), ``cifar10:DIR:train`` or ``cifar10:DIR:test``.

DIR holds the parquet files of the Hugging Face hub (``train-*.parquet``, ``test-*.parquet``, possibly below ``plain_text/``)
or the binary version of the original (``data_batch_1.bin`` ... ``test_batch.bin``, possibly below ``cifar-10-batches-bin/``).
The original Python version consists of pickles, which can run code when read, and is refused.
"""

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from latentlab.data.base import DataRequest, ImageSet
from latentlab.data.encoded import in_threads
from latentlab.data.parquet import ParquetImages
from latentlab.data.subset import choose_subset
from latentlab.data.transforms import centre_crop
from latentlab.errors import UserError
from latentlab.files import digest, file_sha256

CLASS_NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")

_SIDE = 32
_RECORD = 1 + 3 * _SIDE * _SIDE  # label, then the red, green and blue planes, row by row
_BATCHES = {"train": [f"data_batch_{i}.bin" for i in range(1, 6)], "test": ["test_batch.bin"]}


class BinaryCifar(ImageSet):
    """The binary version, held in memory as uint8 [n,3,32,32] (154 MB for the 50,000 of ``train``)."""

    def __init__(self, request: DataRequest, paths: list[Path]) -> None:
        """Read the batches ``paths``.

        Raises:
            UserError: a file is missing or does not consist of CIFAR-10 records.
        """
        request.refuse_masks("only imagefolder:DIR has paths that masks can be matched with")
        records = np.concatenate([read_records(path) for path in paths])
        labels = records[:, 0].astype(np.int64)
        rows = choose_subset(len(records), labels, request.limit, request.seed)
        self._pixels = records[rows, 1:].reshape(-1, 3, _SIDE, _SIDE)
        self.name, self.n, self.image_size = request.source, len(rows), request.image_size or _SIDE
        self.labels, self.class_names = labels[rows], CLASS_NAMES
        files = [file_sha256(path) for path in paths]
        self.fingerprint = digest({"files": files, "rows": rows.tolist(), "image_size": self.image_size})

    def images(self, indices: np.ndarray) -> Tensor:
        """Return the images at ``indices``, uint8 [b,3,H,W]."""
        pixels = self._pixels[indices]
        if self.image_size != _SIDE:
            pixels = np.stack(in_threads(self._resized, pixels))
        return torch.from_numpy(pixels)

    def _resized(self, pixels: np.ndarray) -> np.ndarray:  # [3,32,32] => [3,H,W]
        image = Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0)))
        return np.asarray(centre_crop(image, self.image_size)).transpose(2, 0, 1)


def open_source(request: DataRequest) -> ImageSet:
    """Open ``cifar10:DIR[:train|:test]``."""
    folder, split = split_argument(request.argument)
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder: write cifar10:DIR, cifar10:DIR:train or cifar10:DIR:test")
    for place in (folder, folder / "plain_text"):
        if parquet := sorted(place.glob(f"{split}-*.parquet")):
            return ParquetImages(request, parquet, _SIDE, CLASS_NAMES)
    for place in (folder, folder / "cifar-10-batches-bin"):
        if any(place.glob("*_batch*.bin")):
            return BinaryCifar(request, [place / name for name in _BATCHES[split]])
    for place in (folder, folder / "cifar-10-batches-py"):
        if (place / "data_batch_1").exists() or (place / "test_batch").exists():
            raise UserError(
                f"{place} holds the Python version of CIFAR-10, whose pickles can run code when read: use the binary "
                "version (cifar-10-binary.tar.gz, unpacked) or the parquet files instead"
            )
    raise UserError(f"{folder} holds neither {split}-*.parquet nor {_BATCHES[split][0]}")


def split_argument(argument: str) -> tuple[Path, str]:
    """Return folder and split of ``DIR[:train|:test]``; a colon before anything else belongs to the folder's name."""
    folder, _, split = argument.rpartition(":")
    if folder and split in _BATCHES:
        return Path(folder).expanduser(), split
    return Path(argument).expanduser(), "test"


def read_records(path: Path) -> np.ndarray:  # => uint8 [n,3073]
    """Read the records of one binary batch.

    Raises:
        UserError: the file is missing, is not a whole number of records, or has a label above 9.
    """
    try:
        content = np.fromfile(path, np.uint8)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from error
    if not len(content) or len(content) % _RECORD:
        raise UserError(f"{path} has {len(content)} bytes, not a multiple of {_RECORD}: it is damaged, fetch it again")
    records = content.reshape(-1, _RECORD)
    if records[:, 0].max() >= len(CLASS_NAMES):
        raise UserError(f"{path} has the label {records[:, 0].max()}, CIFAR-10 has 0 to 9: it is another data set")
    return records
