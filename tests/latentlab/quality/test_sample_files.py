"""Generated images on disk: the ADM file as numpy reads it, and parts that fill up in any order."""

import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest

from latentlab import UserError
from latentlab.quality.sample_file import SampleFile, check_archive, sample_file_name, write_sample_file
from latentlab.quality.sample_parts import SampleParts

N, HEIGHT, WIDTH = 11, 4, 6


@pytest.fixture
def images() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (N, HEIGHT, WIDTH, 3), dtype=np.uint8)


def fill(path: Path, images: np.ndarray) -> Path:
    batches = (images[first : first + 4] for first in range(0, len(images), 4))
    write_sample_file(path, images.shape[:3], batches, np.arange(len(images)) % 3)
    return path


def test_numpy_reads_the_file(tmp_path: Path, images: np.ndarray) -> None:
    path = fill(tmp_path / "some samples" / sample_file_name(N, HEIGHT, WIDTH), images)
    assert path.name == "samples_11x4x6x3.npz"
    with np.load(path) as file:
        assert sorted(file.files) == ["arr_0", "arr_1"]
        assert file["arr_0"].dtype == np.uint8 and np.array_equal(file["arr_0"], images)
        assert file["arr_1"].dtype == np.int64 and np.array_equal(file["arr_1"], np.arange(N) % 3)


def test_equal_images_give_equal_bytes(tmp_path: Path, images: np.ndarray) -> None:
    first, second = fill(tmp_path / "a.npz", images), fill(tmp_path / "b.npz", images)
    assert first.read_bytes() == second.read_bytes()


def test_writing_holds_one_batch(tmp_path: Path) -> None:
    """64 MB of images, of which 1 MB is in memory at a time."""
    batch = np.zeros((16, 148, 148, 3), np.uint8)
    tracemalloc.start()
    try:
        write_sample_file(
            tmp_path / "a.npz", (64 * 16, 148, 148), (batch + i for i in range(64)), np.zeros(1024, np.int64)
        )
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert (tmp_path / "a.npz").stat().st_size > 64 << 20 and peak < 4 << 20
    read = SampleFile(tmp_path / "a.npz")
    assert (read.levels(np.array([1023, 5])) == np.array([63, 0])[:, None, None, None]).all()


def test_a_wrong_number_of_images_leaves_no_file(tmp_path: Path, images: np.ndarray) -> None:
    with pytest.raises(ValueError, match="12 images were announced, 11 came"):
        write_sample_file(tmp_path / "a.npz", (12, HEIGHT, WIDTH), [images], np.zeros(12, np.int64))
    with pytest.raises(ValueError, match="must be uint8"):
        write_sample_file(tmp_path / "a.npz", (N, HEIGHT, WIDTH), [images.astype(float)], np.zeros(N, np.int64))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_reads_what_numpy_writes(tmp_path: Path, images: np.ndarray, save) -> None:
    save(tmp_path / "theirs.npz", images, np.arange(N))
    read = SampleFile(tmp_path / "theirs.npz")
    assert (read.n, read.shape) == (N, (3, HEIGHT, WIDTH)) and np.array_equal(read.labels, np.arange(N))
    assert np.array_equal(read.levels(slice(2, 9)), images[2:9])
    assert np.array_equal(read.levels(np.array([9, 0, 9])), images[[9, 0, 9]])
    pixels = read.take(np.array([3])).numpy()
    assert np.allclose(pixels, images[3].transpose(2, 0, 1)[None] / 127.5 - 1, atol=1e-6)
    save(tmp_path / "unlabelled.npz", images)
    assert SampleFile(tmp_path / "unlabelled.npz").labels is None


def test_refuses_other_files(tmp_path: Path, images: np.ndarray) -> None:
    def refused(words: str) -> None:
        with pytest.raises(UserError, match=words):
            SampleFile(tmp_path / "a.npz")

    refused("does not exist")
    (tmp_path / "a.npz").write_bytes(b"PK\x03\x04nothing")
    refused("not a readable .npz file")
    np.savez(tmp_path / "a.npz", mu=np.zeros(3))
    refused("no images under 'arr_0', only mu.npy")
    np.savez(tmp_path / "a.npz", images.astype(np.float32))
    refused(r"must be images, uint8 \[n,H,W,3\] with levels 0 to 255 and channels last, got float32 \[11, 4, 6, 3\]")
    np.savez(tmp_path / "a.npz", images[:0])
    refused("must be images")
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive, archive.open("arr_0.npy", "w") as file:
        np.lib.format.write_array(file, np.array([{}], dtype=object), allow_pickle=True)
    refused("Python objects")


def test_a_header_that_announces_more_than_is_there_is_refused(tmp_path: Path, images: np.ndarray) -> None:
    """Else the bytes of the next member would be shown as images."""
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        with archive.open("arr_0.npy", "w") as file:
            shape = (N + 1, HEIGHT, WIDTH, 3)
            np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
            file.write(images.tobytes())
        archive.writestr("other.npy", bytes(10_000))
    with pytest.raises(UserError, match="'arr_0' does not have the size its header says"):
        SampleFile(tmp_path / "a.npz")


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_changed_bytes_are_noticed(tmp_path: Path, images: np.ndarray, save) -> None:
    path = tmp_path / "a.npz"
    save(path, images)
    check_archive(path)
    damaged = bytearray(path.read_bytes())
    damaged[300] ^= 8
    path.write_bytes(damaged)
    with pytest.raises(UserError, match=r"damaged.*make it again"):
        check_archive(path)
    if save is np.savez_compressed:  # which is decoded when it is opened
        with pytest.raises(UserError, match=r"not a readable \.npz file, or is damaged"):
            SampleFile(path)


def test_parts_fill_up(tmp_path: Path, images: np.ndarray) -> None:
    parts = SampleParts(tmp_path / "some parts")
    labels = np.arange(N) % 3
    assert parts.missing(slice(0, N)) == [slice(0, N)]
    for first, end in ((3, 5), (8, 11)):
        parts.write(first, images[first:end], labels[first:end], {"seconds": f"{first}"})
    assert parts.missing(slice(0, N)) == [slice(0, 3), slice(5, 8)]
    assert parts.missing(slice(4, 7)) == [slice(5, 7)] and parts.missing(slice(8, 10)) == []
    with pytest.raises(UserError, match="lacks image 0"):
        parts.images()
    for first, end in ((5, 8), (0, 3)):
        parts.write(first, images[first:end], labels[first:end], {"seconds": f"{first}"})
    whole = parts.images()
    assert (whole.n, whole.shape) == (N, (3, HEIGHT, WIDTH)) and np.array_equal(whole.labels, labels)
    assert np.array_equal(np.concatenate(list(whole.in_parts())), images)
    assert np.array_equal(whole.levels(np.array([10, 0, 4])), images[[10, 0, 4]])
    assert [part.facts()["seconds"] for part in parts.found()] == ["0", "3", "5", "8"]
    parts.clear()
    assert not parts.folder.exists()


def test_a_damaged_part_is_named(tmp_path: Path, images: np.ndarray) -> None:
    parts = SampleParts(tmp_path)
    parts.write(0, images, np.zeros(N), {})
    file = parts.found()[0].path
    file.rename(tmp_path / "images_00000000_00000009.safetensors")
    with pytest.raises(UserError, match="does not hold the images its name says"):
        parts.images()
