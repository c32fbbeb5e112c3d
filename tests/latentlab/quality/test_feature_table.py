"""Features on disk: they go on after a kill, whatever it left, are made once by processes that ask together, and stay there."""

import subprocess
import sys
import threading
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from analyses.frechet import frechet_distance
from latentlab.pixels import ArrayPixels
from latentlab.quality import features as module
from latentlab.quality.feature_table import FileTable, growing_table, kept_features
from latentlab.quality.features import FeatureExtractor, features_of
from latentlab.quality.generation import frechet_of_features

N = 53
IMAGES = np.random.default_rng(0).integers(0, 256, (N, 3, 4, 4), dtype=np.uint8)


@pytest.fixture(autouse=True)
def small_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LATENTLAB_HOME", str(tmp_path))
    monkeypatch.setattr(module, "_BLOCK", 8)
    return tmp_path / "features"


class Network:
    """Pixels as features; counts the images that came."""

    def __init__(self) -> None:
        self.seen = 0

    def __call__(self, images: Tensor) -> Tensor:
        self.seen += len(images)
        return images.flatten(1)


def extractor(network: Network) -> FeatureExtractor:
    return FeatureExtractor("pixels", "fd_pixels", network, version="pixels 1")


def expected() -> np.ndarray:
    return (torch.from_numpy(IMAGES).float() / 127.5 - 1).flatten(1).numpy()


KILLED = """
import os, signal, numpy as np
from latentlab.pixels import ArrayPixels
from latentlab.quality import features as module
from latentlab.quality.features import FeatureExtractor, features_of
module._BLOCK, seen = 8, 0
def network(images):
    global seen
    seen += len(images)
    if seen > 30:
        os.kill(os.getpid(), signal.SIGKILL)
    return images.flatten(1)
images = np.random.default_rng(0).integers(0, 256, (53, 3, 4, 4), dtype=np.uint8)
features_of(FeatureExtractor("pixels", "fd_pixels", network, version="pixels 1"), ArrayPixels(images))
"""


def test_goes_on_after_a_kill(small_blocks: Path) -> None:
    done = subprocess.run([sys.executable, "-c", KILLED], check=False)
    assert done.returncode == -9
    assert not list(small_blocks.glob("*.npy")) and len(list(small_blocks.glob(".*.npy.part"))) == 1
    network = Network()
    np.testing.assert_array_equal(features_of(extractor(network), ArrayPixels(IMAGES)), expected())
    assert network.seen == N - 24  # three blocks of 8 were safe
    assert [path.suffix for path in small_blocks.iterdir()] == [".npy"]  # and nothing is left lying about


@pytest.mark.parametrize(
    ("left", "rows"),
    [(0, 0), (20, 0), (128, 0), (128 + 4 * 48 * 3, 0), (128 + 4 * 48 * 9 + 5, 8), (128 + 4 * 48 * N, 52)],
)
def test_takes_up_complete_passes_only(tmp_path: Path, left: int, rows: int) -> None:
    """A file cut within its header, within a row or within a pass of 4 images; or whole, and killed before it got its name."""
    whole, path = expected(), tmp_path / "a.npy"
    np.save(path, whole)
    part = path.rename(tmp_path / ".a.npy.part")
    part.write_bytes(part.read_bytes()[:left])
    table = FileTable(path, N, 4)
    assert table.rows == rows
    table.append(whole[rows:])
    found = table.finished()
    assert isinstance(found, np.memmap)
    np.testing.assert_array_equal(found, whole)


def test_what_another_set_left_is_not_taken_up(tmp_path: Path) -> None:
    for other in (np.zeros((N + 1, 48), np.float32), np.zeros((N, 48)), np.zeros(N, np.float32), b"something"):
        part = tmp_path / ".a.npy.part"
        with part.open("wb") as file:
            file.write(other) if isinstance(other, bytes) else np.save(file, other)
        table = FileTable(tmp_path / "a.npy", N, 4)
        table.append(expected())
        np.testing.assert_array_equal(table.finished(), expected())


def test_processes_that_ask_together_share_the_work() -> None:
    networks, found = [Network() for _ in range(3)], {}

    def ask(i: int) -> None:
        found[i] = features_of(extractor(networks[i]), ArrayPixels(IMAGES))

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(network.seen for network in networks) == N
    for one in found.values():
        np.testing.assert_array_equal(one, expected())


def test_where_nothing_can_be_written_features_stay_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a file").write_text("")
    monkeypatch.setenv("LATENTLAB_HOME", str(tmp_path / "a file"))
    found = features_of(extractor(Network()), ArrayPixels(IMAGES))
    assert not isinstance(found, np.memmap)
    np.testing.assert_array_equal(found, expected())


def test_damaged_tables_are_made_again(tmp_path: Path) -> None:
    path = tmp_path / "a.npy"
    for content in (expected()[:-1], expected().astype(np.float64), expected().ravel(), np.array([{}])):
        np.save(path, content, allow_pickle=True)
        assert kept_features(path, N) is None
    np.save(path, expected())
    assert kept_features(path, N) is not None
    path.write_bytes(path.read_bytes()[:-1])
    assert kept_features(path, N) is None
    with growing_table(path, N) as table:
        assert table.rows == 0


def test_memory_does_not_grow_with_the_number_of_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """What describing images and the distance with its interval take: four times the images may cost a few numbers each, not
    their features."""
    monkeypatch.setattr(module, "_BLOCK", 256)
    peaks = {n: peak_of(n) for n in (4000, 16_000)}
    more = 12_000 * 48 * 4
    assert all(last - first < more / 2 for first, last in zip(peaks[4000], peaks[16_000], strict=True)), peaks


def peak_of(n: int) -> tuple[int, int]:
    """Return the most memory of describing ``n`` images and of comparing them with the first half."""
    images = ArrayPixels(np.random.default_rng(n).integers(0, 256, (n, 3, 4, 4), dtype=np.uint8))
    features_of(extractor(Network()), ArrayPixels(IMAGES))  # what is loaded at the first call does not count
    _ = images.fingerprint
    tracemalloc.start()
    try:
        found = features_of(extractor(Network()), images, batch=256)
        described = tracemalloc.get_traced_memory()[1]
        tracemalloc.reset_peak()
        estimate = frechet_of_features(found, found[: n // 2])
        compared = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert isinstance(found, np.memmap)
    moments = [(x.mean(0, dtype=np.float64), np.cov(x.T)) for x in (np.array(found), np.array(found[: n // 2]))]
    assert estimate.value == pytest.approx(frechet_distance(*moments[0], *moments[1]), rel=1e-6)
    return described, compared
