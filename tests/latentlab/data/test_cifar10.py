"""CIFAR-10: the binary records, the parquet layout, and the refusal of pickles."""

import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from latentlab.data import open_data
from latentlab.data.cifar10 import CLASS_NAMES
from latentlab.data.transforms import centre_crop
from latentlab.errors import UserError

CIFAR = Path(__file__).parents[4] / "shared" / "data" / "cifar10"


def write_batch(path: Path, n: int, seed: int) -> np.ndarray:
    """Write ``n`` random records; return them, uint8 [n,3073]."""
    records = np.random.default_rng(seed).integers(0, 256, (n, 3073), np.uint8)
    records[:, 0] %= 10
    records.tofile(path)
    return records


@pytest.fixture
def binary(tmp_path: Path) -> tuple[Path, np.ndarray]:
    """A folder as unpacked from the archive, four records in a batch, and the records of ``train``."""
    folder = tmp_path / "cifar-10-batches-bin"
    folder.mkdir()
    train = [write_batch(folder / f"data_batch_{i}.bin", 4, i) for i in range(1, 6)]
    write_batch(folder / "test_batch.bin", 6, 9)
    return tmp_path, np.concatenate(train)


def test_binary_records(binary: tuple[Path, np.ndarray]) -> None:
    folder, records = binary
    data = open_data(f"cifar10:{folder}:train")
    assert (data.n, data.image_size, data.class_names) == (20, 32, CLASS_NAMES)
    assert data.labels.tolist() == records[:, 0].tolist()
    assert np.array_equal(data.images(np.array([19, 3])).flatten(1).numpy(), records[[19, 3], 1:])


def test_splits(binary: tuple[Path, np.ndarray]) -> None:
    folder, _ = binary
    test = open_data(f"cifar10:{folder}")
    assert test.n == 6
    assert open_data(f"cifar10:{folder}:test").fingerprint == test.fingerprint
    assert open_data(f"cifar10:{folder}/cifar-10-batches-bin").fingerprint == test.fingerprint
    with pytest.raises(UserError, match=r":tset is not a folder: write cifar10:DIR, cifar10:DIR:train"):
        open_data(f"cifar10:{folder}:tset")


def test_binary_resized(binary: tuple[Path, np.ndarray]) -> None:
    folder, records = binary
    image = open_data(f"cifar10:{folder}:train", image_size=48).images(np.array([2]))[0]
    picture = Image.fromarray(records[2, 1:].reshape(3, 32, 32).transpose(1, 2, 0).copy())
    assert np.array_equal(image.permute(1, 2, 0).numpy(), np.asarray(centre_crop(picture, 48)))


def test_fingerprint_follows_content_and_preparation(binary: tuple[Path, np.ndarray]) -> None:
    folder, _ = binary
    source = f"cifar10:{folder}:train"
    options = [{}, {"image_size": 16}, {"limit": 5}, {"limit": 5, "seed": 1}, {"limit": 6}]
    names = {open_data(source, **option).fingerprint for option in options}
    write_batch(folder / "cifar-10-batches-bin" / "data_batch_3.bin", 4, 77)
    names.add(open_data(source).fingerprint)
    assert len(names) == 6


def test_damaged_binary(binary: tuple[Path, np.ndarray]) -> None:
    folder = binary[0] / "cifar-10-batches-bin"
    content = (folder / "test_batch.bin").read_bytes()
    for broken, problem in [
        (content[:-1], "18437 bytes, not a multiple of 3073"),
        (b"", "0 bytes, not a multiple"),
        (b"\x0a" + content[1:], "has the label 10"),
    ]:
        (folder / "test_batch.bin").write_bytes(broken)
        with pytest.raises(UserError, match=problem):
            open_data(f"cifar10:{folder}")
    (folder / "data_batch_4.bin").unlink()
    with pytest.raises(UserError, match=r"data_batch_4\.bin cannot be read: No such file"):
        open_data(f"cifar10:{folder}:train")
    with pytest.raises(UserError, match="takes no mask folder"):
        open_data(f"cifar10:{folder}:train", masks=str(folder))


def test_pickles_are_refused_unread(tmp_path: Path) -> None:
    class Touch:
        def __reduce__(self) -> tuple:
            return Path.touch, (tmp_path / "ran",)

    (tmp_path / "cifar-10-batches-py").mkdir()
    (tmp_path / "cifar-10-batches-py" / "data_batch_1").write_bytes(pickle.dumps(Touch()))
    for folder in (tmp_path, tmp_path / "cifar-10-batches-py"):
        with pytest.raises(UserError, match=r"pickles can run code when read: use the binary version"):
            open_data(f"cifar10:{folder}")
    assert not (tmp_path / "ran").exists()


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds neither test-\*\.parquet nor test_batch\.bin"):
        open_data(f"cifar10:{tmp_path}")
    with pytest.raises(UserError, match="nowhere is not a folder"):
        open_data(f"cifar10:{tmp_path}/nowhere")


@pytest.mark.skipif(not CIFAR.is_dir(), reason="needs ../shared/data/cifar10 beside the repository")
def test_parquet_layout(tmp_path: Path) -> None:
    test, train = open_data(f"cifar10:{CIFAR}"), open_data(f"cifar10:{CIFAR}:train")
    assert (test.n, train.n, test.image_size, test.class_names) == (10_000, 10_000, 32, CLASS_NAMES)
    assert test.fingerprint != train.fingerprint
    (tmp_path / "plain_text").symlink_to(CIFAR)
    assert open_data(f"cifar10:{tmp_path}").fingerprint == test.fingerprint
    part = open_data(f"cifar10:{CIFAR}:train", limit=100)
    assert np.bincount(part.labels).tolist() == [10] * 10
