"""Fashion-MNIST (Xiao et al. 2017, MIT licence), shipped in its original files: ``fashion:train`` and ``fashion:test``."""

import gzip
import struct
import zlib
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from latentlab.data.base import DataRequest, ImageSet
from latentlab.data.subset import choose_subset
from latentlab.errors import UserError, unknown_name
from latentlab.files import digest, file_sha256

FOLDER = Path(__file__).parent / "fashion_mnist"

CLASS_NAMES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)

_PREFIX = {"train": "train", "test": "t10k"}
_MARGIN = 2  # 28 + 2 * 2 = 32, a side that tokenizers can halve


class FashionImages(ImageSet):
    """One split: 28x28 grey images padded with zeros to 32x32 and repeated in 3 channels; foreground is what is not zero.

    The pixels are read at the first access and kept as uint8 [n,28,28] (47 MB for the 60,000 of ``train``); padding is
    done per batch.
    """

    def __init__(self, request: DataRequest, split: str, folder: Path = FOLDER) -> None:
        """Open the ``split`` ("train" or "test") in ``folder``.

        Raises:
            UserError: a file is missing or broken.
        """
        files = [folder / f"{_PREFIX[split]}-{kind}-ubyte.gz" for kind in ("images-idx3", "labels-idx1")]
        self._file, labels = files[0], read_idx(files[1], 1)
        self._total = len(labels)
        self._rows = choose_subset(self._total, labels, request.limit, request.seed)
        self.name, self.n, self.image_size = request.source, len(self._rows), 28 + 2 * _MARGIN
        self.labels, self.class_names = labels[self._rows].astype(np.int64), CLASS_NAMES
        self.has_masks = True
        self.fingerprint = digest({"files": [_sha256(file) for file in files], "rows": self._rows.tolist()})

    def images(self, indices: np.ndarray) -> Tensor:
        """Return the images at ``indices``, uint8 [b,3,32,32]."""
        return self._padded(indices)[:, None].expand(-1, 3, -1, -1).contiguous()

    def masks(self, indices: np.ndarray) -> Tensor:
        """Return where the images at ``indices`` are not zero, bool [b,32,32]."""
        return self._padded(indices) > 0

    def _padded(self, indices: np.ndarray) -> Tensor:  # => uint8 [b,32,32]
        return pad(torch.from_numpy(self._pixels[indices]), (_MARGIN,) * 4)

    @cached_property
    def _pixels(self) -> np.ndarray:  # uint8 [n,28,28]
        pixels = read_idx(self._file, 3)
        if pixels.shape != (self._total, 28, 28):
            raise UserError(f"{self._file} holds images of shape {pixels.shape}, expected {(self._total, 28, 28)}")
        return pixels[self._rows]


def open_source(request: DataRequest) -> FashionImages:
    """Open ``fashion``, ``fashion:train`` or ``fashion:test``."""
    split = request.argument or "test"
    if split not in _PREFIX:
        raise unknown_name("split of fashion", split, _PREFIX)
    if request.image_size not in (None, 32):
        raise UserError(f"fashion images are 32x32, image size {request.image_size} is not possible: leave it out")
    request.refuse_masks("its masks are built in")
    return FashionImages(request, split)


def read_idx(path: Path, dimensions: int) -> np.ndarray:
    """Read a gzipped idx file of unsigned bytes.

    The format (LeCun, Cortes and Burges, MNIST): two zero bytes, a type byte (8: unsigned byte), the number of dimensions,
    each dimension as a big-endian 32-bit integer, then the values, last dimension fastest.

    Raises:
        UserError: the file is missing, damaged or truncated, or has another type or number of dimensions.
    """
    expected = bytes((0, 0, 8, dimensions))
    try:
        with gzip.open(path) as file:
            magic = file.read(4)
            if magic != expected:
                raise UserError(f"{path} is not the expected idx file: starts with {magic.hex()}, not {expected.hex()}")
            shape = struct.unpack(f">{dimensions}I", file.read(4 * dimensions))
            count = int(np.prod(shape, dtype=np.int64))
            values = file.read(count + 1)
    except (OSError, EOFError, zlib.error, struct.error) as error:
        raise UserError(f"{path} is missing or damaged ({error}): install latentlab again") from error
    if len(values) != count:
        raise UserError(f"{path} announces {count} values and holds {'fewer' if len(values) < count else 'more'}")
    return np.frombuffer(values, np.uint8).reshape(shape)


def _sha256(file: Path) -> str:
    try:
        return file_sha256(file)
    except OSError as error:
        raise UserError(f"{file} cannot be read ({error}): install latentlab again") from error
