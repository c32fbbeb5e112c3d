"""The embedded Fashion-MNIST: the published counts, the padding, and damaged files."""

import gzip
import struct

import numpy as np
import pytest
import torch

from latentlab.data.base import DataRequest
from latentlab.data.fashion import FOLDER, FashionImages, open_source, read_idx
from latentlab.errors import UserError


def raw_images(split: str) -> np.ndarray:
    """Read the pixels the short way, without any check."""
    content = gzip.decompress((FOLDER / f"{split}-images-idx3-ubyte.gz").read_bytes())
    return np.frombuffer(content, np.uint8, offset=16).reshape(-1, 28, 28)


def open_fashion(text: str = "fashion", **options: object) -> FashionImages:
    return open_source(DataRequest(text, text.partition(":")[2], **options))


@pytest.mark.parametrize(("split", "n"), [("train", 60_000), ("test", 10_000)])
def test_published_counts(split: str, n: int) -> None:
    data = open_fashion(f"fashion:{split}")
    assert (data.n, data.image_size, data.has_masks) == (n, 32, True)
    assert data.labels.dtype == np.int64
    assert np.bincount(data.labels).tolist() == [n // 10] * 10
    assert len(data.class_names) == 10


def test_default_split_is_test() -> None:
    assert open_fashion().fingerprint == open_fashion("fashion:test").fingerprint


def test_images_are_padded_grey_and_exact() -> None:
    indices = np.array([0, 9_999, 17])
    images = open_fashion().images(indices)
    assert images.shape == (3, 3, 32, 32)
    assert images.dtype == torch.uint8
    for channel in range(3):
        assert np.array_equal(images[:, channel, 2:30, 2:30].numpy(), raw_images("t10k")[indices])
    centre = images[:, :, 2:30, 2:30].sum(dtype=torch.long)
    assert images.sum(dtype=torch.long) == centre  # the margin is zero


def test_masks_are_the_pixels_that_are_not_zero() -> None:
    data = open_fashion()
    indices = np.arange(50, 60)
    masks = data.masks(indices)
    assert masks.dtype == torch.bool
    assert np.array_equal(masks.numpy(), data.images(indices)[:, 0].numpy() != 0)


def test_first_labels_are_the_published_ones() -> None:
    """The first test images are an ankle boot, a pullover and two trousers."""
    data = open_fashion()
    assert [data.class_names[label] for label in data.labels[:4]] == ["Ankle boot", "Pullover", "Trouser", "Trouser"]


def test_limit_keeps_pixels_and_labels_together() -> None:
    whole, part = open_fashion(), open_fashion(limit=20, seed=3)
    assert np.bincount(part.labels).tolist() == [2] * 10
    images = whole.images(np.arange(whole.n)).flatten(1)
    for i, image in enumerate(part.images(np.arange(part.n)).flatten(1)):
        matches = (images == image).all(1).nonzero().flatten()
        assert part.labels[i] in whole.labels[matches.numpy()]


def test_fingerprint_follows_content() -> None:
    names = {
        open_fashion(text, **options).fingerprint
        for text, options in [
            ("fashion:test", {}),
            ("fashion:train", {}),
            ("fashion", {"limit": 10}),
            ("fashion", {"limit": 20}),
            ("fashion", {"limit": 20, "seed": 1}),
        ]
    }
    assert len(names) == 5
    assert open_fashion(limit=20_000).fingerprint == open_fashion().fingerprint  # the same images


def test_batches_cover_everything_in_order() -> None:
    data = open_fashion(limit=25)
    parts = list(data.batches(10))
    assert [len(indices) for indices, _ in parts] == [10, 10, 5]
    assert torch.equal(torch.cat([images for _, images in parts]), data.images(np.arange(25)))


def test_impossible_requests() -> None:
    with pytest.raises(UserError, match=r"unknown split of fashion 'tset'. Did you mean test\?"):
        open_fashion("fashion:tset")
    with pytest.raises(UserError, match="fashion images are 32x32"):
        open_fashion(image_size=64)
    with pytest.raises(UserError, match="its masks are built in"):
        open_fashion(masks="somewhere")


IDX = struct.pack(">4B3I", 0, 0, 8, 3, 2, 2, 2) + bytes(range(8))


def write_gz(path, content: bytes):
    path.write_bytes(gzip.compress(content))
    return path


def test_idx_is_read(tmp_path) -> None:
    assert read_idx(write_gz(tmp_path / "a.gz", IDX), 3).tolist() == [[[0, 1], [2, 3]], [[4, 5], [6, 7]]]


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (IDX[:-1], "announces 8 values and holds fewer"),
        (IDX + b"x", "announces 8 values and holds more"),
        (b"\0\0\x09\x03" + IDX[4:], "starts with 00000903, not 00000803"),
        (b"\0\0\x08\x01" + IDX[4:], "starts with 00000801, not 00000803"),
        (IDX[:9], "missing or damaged"),
        (b"", "starts with , not 00000803"),
    ],
)
def test_damaged_idx(tmp_path, content: bytes, problem: str) -> None:
    with pytest.raises(UserError, match=problem):
        read_idx(write_gz(tmp_path / "a.gz", content), 3)


def test_damaged_gzip(tmp_path) -> None:
    whole = gzip.compress(IDX)
    for name, content in [("cut", whole[:-6]), ("plain", IDX), ("flipped", whole[:15] + b"\xff\xff" + whole[17:])]:
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=f"{name} is missing or damaged"):
            read_idx(tmp_path / name, 3)
    with pytest.raises(UserError, match="nowhere is missing or damaged"):
        read_idx(tmp_path / "nowhere", 3)


def test_images_and_labels_must_agree(tmp_path) -> None:
    write_gz(tmp_path / "t10k-images-idx3-ubyte.gz", IDX)
    write_gz(tmp_path / "t10k-labels-idx1-ubyte.gz", struct.pack(">4BI", 0, 0, 8, 1, 3) + bytes(3))
    data = FashionImages(DataRequest("fashion"), "test", folder=tmp_path)
    with pytest.raises(UserError, match=r"holds images of shape \(2, 2, 2\), expected \(3, 28, 28\)"):
        data.images(np.array([0]))
