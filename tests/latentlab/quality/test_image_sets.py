"""What may be evaluated and against what: runs, files of the ADM suite, folders, and what is recorded of them."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from latentlab.errors import UserError
from latentlab.quality.image_sets import EvaluationSet, open_reference, open_samples, side_of
from latentlab.quality.sample_file import write_sample_file
from latentlab.quality.sample_parts import SampleParts

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (6, 8, 8, 3), dtype=np.uint8)
FEATURES = RNG.standard_normal((9, 4))
STATISTICS = {"mu": FEATURES.mean(0), "sigma": np.cov(FEATURES.T)}


def run_folder(folder: Path, request: dict[str, object]) -> Path:
    write_sample_file(folder / "samples_6x8x8x3.npz", (6, 8, 8), [IMAGES], np.zeros(6))
    (folder / "settings.json").write_text(json.dumps({"request": request, "record": {"seconds_per_image": 2.0}}))
    return folder


REQUEST = {
    "n": 6, "seed": 3, "generator": "sit", "precision": "float32",
    "sampler": {"solver": "euler", "steps": 50, "cfg_scale": 1.5, "cfg_t_min": 0.1},
}  # fmt: skip


def test_a_run_tells_how_its_images_were_made(tmp_path: Path) -> None:
    folder = run_folder(tmp_path / "a run", REQUEST)
    for source in (folder, folder / "samples_6x8x8x3.npz"):
        samples = open_samples(str(source))
        assert samples.n == 6 and side_of(samples) == 8
        assert samples.sampling["seed"] == 3 and samples.sampling["steps"] == 50
        assert samples.sampling["guidance"] == {"cfg_scale": 1.5, "cfg_t_min": 0.1}
        assert samples.sampling["precision"] == "float32" and samples.sampling["request"] == REQUEST
        assert samples.facts["path"] == str(source) and samples.facts["n"] == 6


def test_settings_of_other_images_are_not_believed(tmp_path: Path) -> None:
    folder = run_folder(tmp_path, {**REQUEST, "n": 7})
    assert open_samples(str(folder)).sampling == {}
    (folder / "settings.json").unlink()
    assert open_samples(str(folder)).sampling == {}


def test_folders_keep_the_size_of_their_images(tmp_path: Path) -> None:
    (tmp_path / "generated").mkdir()
    for i, image in enumerate(IMAGES):
        Image.fromarray(image).save(tmp_path / "generated" / f"{i}.png")
    samples = open_samples(f"imagefolder:{tmp_path / 'generated'}")
    assert samples.images.shape == (3, 8, 8)
    assert open_samples(f"imagefolder:{tmp_path / 'generated'}", 4).images.shape == (3, 4, 4)
    reference = open_reference(f"imagefolder:{tmp_path / 'generated'}", like=open_samples("fashion:test"))
    assert reference.images.shape == (3, 32, 32)
    assert open_reference("fashion:test", like=samples).images.shape == (3, 32, 32)  # which has no other size
    assert open_reference("fashion:test", limit=20).n == 20
    with pytest.raises(UserError, match="write imagefolder:"):
        open_samples(str(tmp_path / "generated"))


def pngs(folder: Path, *shapes: tuple[int, int]) -> str:
    folder.mkdir()
    for i, shape in enumerate(shapes):
        Image.fromarray(RNG.integers(0, 256, (*shape, 3), dtype=np.uint8)).save(folder / f"{i}.png")
    return f"imagefolder:{folder}"


@pytest.mark.parametrize("shapes", [((8, 8), (9, 9)), ((8, 6), (8, 6))])
def test_generated_images_are_not_cut_or_resized_unless_that_is_said(
    tmp_path: Path, shapes: tuple[tuple[int, int], ...]
) -> None:
    source = pngs(tmp_path / "images", *shapes)
    with pytest.raises(UserError, match=r"holds images of (8x8, 9x9|6x8) pixels: .* give --image-size"):
        open_samples(source)
    assert open_samples(source, 6).images.shape == (3, 6, 6)
    assert open_reference(source, like=open_samples(source, 6)).images.shape == (3, 6, 6)
    with pytest.raises(UserError, match="does not tell the size of its images"):
        open_samples("parquet:a.parquet")


def test_images_that_cannot_be_read(tmp_path: Path) -> None:
    source = pngs(tmp_path / "images", (8, 8), (8, 8))
    (tmp_path / "images" / "bad.png").write_bytes(b"nothing")
    assert open_samples(source).n == 3  # the message comes when it is read
    for found in (open_samples(source, skip_bad=True), open_reference(source, 8, skip_bad=True)):
        assert found.n == 2 and len(found.facts["skipped"]) == 1
        assert found.cautions == (f"1 images of {source} cannot be read and were left out",)
    with pytest.raises(UserError, match="cannot be read as an image"):
        open_samples(source).images.take(slice(0, 3))


def test_an_unfinished_run_is_not_judged(tmp_path: Path) -> None:
    """Parts without a gap, but fewer than were asked for, as a kill leaves them."""
    parts = SampleParts(tmp_path / "parts")
    parts.write(0, IMAGES[:4], np.zeros(4), {})
    (tmp_path / "settings.json").write_text(json.dumps({"request": REQUEST, "record": None}))
    with pytest.raises(UserError, match="holds 4 of 6 images: run the same command again"):
        open_samples(str(tmp_path))
    parts.write(4, IMAGES[4:], np.zeros(2), {})
    samples = open_samples(str(tmp_path))
    assert samples.n == 6 and samples.sampling["steps"] == 50


@pytest.mark.parametrize("open_set", [open_samples, open_reference])
def test_changed_bytes_are_noticed(tmp_path: Path, open_set: Callable[[str], EvaluationSet]) -> None:
    np.savez(tmp_path / "a file.npz", IMAGES)
    content = bytearray((tmp_path / "a file.npz").read_bytes())
    content[500] ^= 1
    (tmp_path / "a file.npz").write_bytes(content)
    with pytest.raises(UserError, match=r"the bytes of 'arr_0\.npy' are not those that were written"):
        open_set(str(tmp_path / "a file.npz"))


@pytest.mark.parametrize("compressed", [False, True])
def test_reference_files_hold_statistics_images_or_both(tmp_path: Path, compressed: bool) -> None:
    write = np.savez_compressed if compressed else np.savez
    path = tmp_path / "VIRTUAL.npz"
    write(path, arr_0=IMAGES, **STATISTICS, mu_s=np.zeros(3), sigma_s=np.eye(3))
    both = open_reference(str(path))
    assert both.n == 6 and sorted(both.moments) == ["inception", "inception-spatial"]
    np.testing.assert_allclose(both.moments["inception"].covariance, STATISTICS["sigma"])
    assert both.facts["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert both.facts["content"] == {
        "arr_0": "uint8 [6, 8, 8, 3]", "mu": "float64 [4]", "sigma": "float64 [4, 4]",
        "mu_s": "float64 [3]", "sigma_s": "float64 [3, 3]",
    }  # fmt: skip
    write(path, **STATISTICS)
    statistics = open_reference(str(path))
    assert statistics.pixels is None and statistics.n is None and list(statistics.moments) == ["inception"]
    with pytest.raises(UserError, match=r"holds statistics \(inception\) and no images"):
        _ = statistics.images
    write(path, arr_0=IMAGES)
    assert open_reference(str(path)).moments == {} and open_reference(str(path)).n == 6


def test_what_is_no_reference(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    np.savez(path, mu=np.zeros(3), sigma=np.zeros((2, 2)))
    with pytest.raises(UserError, match="no mean and covariance"):
        open_reference(str(path))
    np.savez(path, mu=np.full(2, np.nan), sigma=np.eye(2))
    with pytest.raises(UserError, match="mu or sigma contains NaN or infinity"):
        open_reference(str(path))
    np.savez(path, mu=np.array(["a", "b"]), sigma=np.eye(2))
    with pytest.raises(UserError, match="no mean and covariance"):
        open_reference(str(path))
    np.savez(path, latents=np.zeros(3))
    with pytest.raises(UserError, match=r"neither images \(arr_0\) nor statistics \(mu, sigma\), only latents"):
        open_reference(str(path))
    np.savez(path, mu=np.array([{}]), sigma=np.zeros((1, 1)))  # holds an object: nothing is unpickled
    with pytest.raises(UserError, match=r"not a readable \.npz file"):
        open_reference(str(path))
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(UserError, match=r"not a readable \.npz file"):
        open_reference(str(path))
    with pytest.raises(UserError, match="does not exist"):
        open_reference(str(tmp_path / "none.npz"))
    with pytest.raises(UserError, match="is a folder: write imagefolder:"):
        open_reference(str(tmp_path))
    with pytest.raises(UserError, match="does not exist"):
        open_samples(str(tmp_path / "none.npz"))
