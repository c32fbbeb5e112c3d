"""Image folders: layouts, order, broken files, subsets, fingerprints, and real photographs."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.datasets import ImageFolder

from latentlab.data import open_data
from latentlab.data.transforms import centre_crop
from latentlab.errors import UserError

SAMPLE = Path(__file__).parents[4] / "shared" / "data" / "imagenet_sample"


def write_image(path: Path, seed: int = 0, size: tuple[int, int] = (20, 16)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)).save(path)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Three classes, awkward names, files that are no images."""
    folder = tmp_path / "my pictures"
    names = ["zebra/b.png", "zebra/a.PNG", "cat fish/x 1.jpg", "cat fish/y.JPEG", "żółw/1.webp", "żółw/2.bmp"]
    for seed, name in enumerate(names):
        write_image(folder / name, seed)
    (folder / "zebra" / "rest.zip").write_bytes(b"PK\x03\x04")
    (folder / "zebra" / ".hidden.png").write_bytes(b"junk")
    (folder / "README.txt").write_text("not an image")
    (folder / ".cache").mkdir()
    return folder


def everything(data) -> torch.Tensor:
    return data.images(np.arange(data.n))


def open_folder(root: Path, **options):
    return open_data(f"imagefolder:{root}", **{"image_size": 8, **options})


def test_order_labels_and_pixels(root: Path) -> None:
    data = open_folder(root)
    assert data.class_names == ("cat fish", "zebra", "żółw")
    assert data.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert data.labels.dtype == np.int64
    assert (data.name, data.n, data.image_size, data.has_masks) == (f"imagefolder:{root}", 6, 8, False)
    names = ["cat fish/x 1.jpg", "cat fish/y.JPEG", "zebra/a.PNG", "zebra/b.png", "żółw/1.webp", "żółw/2.bmp"]
    images = everything(data)
    assert (images.shape, images.dtype) == ((6, 3, 8, 8), torch.uint8)
    for image, name in zip(images, names, strict=True):
        expected = np.asarray(centre_crop(Image.open(root / name).convert("RGB"), 8))
        assert np.array_equal(image.permute(1, 2, 0).numpy(), expected)


def test_same_order_as_torchvision(root: Path) -> None:
    (root / ".cache").rmdir()  # torchvision takes it for a class
    (root / "zebra" / ".hidden.png").unlink()
    theirs = ImageFolder(str(root), transform=lambda image: np.asarray(centre_crop(image, 8)).transpose(2, 0, 1))
    ours = open_folder(root)
    assert ours.labels.tolist() == theirs.targets
    assert list(ours.class_names) == theirs.classes
    assert np.array_equal(everything(ours).numpy(), np.stack([image for image, _ in theirs]))


def test_default_size_is_256(root: Path) -> None:
    assert open_data(f"imagefolder:{root}").images(np.array([0])).shape == (1, 3, 256, 256)


def test_flat_folder_has_no_labels(tmp_path: Path) -> None:
    for i in range(3):
        write_image(tmp_path / f"{i}.png", i)
    data = open_folder(tmp_path)
    assert (data.n, data.labels, data.class_names) == (3, None, None)
    assert open_folder(tmp_path, limit=2).n == 2


def test_reading_does_not_depend_on_the_batch(root: Path) -> None:
    data = open_folder(root)
    whole = everything(data)
    for size in (1, 4, 100):
        assert torch.equal(torch.cat([images for _, images in data.batches(size)]), whole)
    backwards = np.arange(data.n)[::-1]
    assert torch.equal(data.images(backwards), whole.flip(0))


def test_limit_is_balanced_and_keeps_images_with_their_labels(root: Path) -> None:
    data, whole = open_folder(root, limit=3), open_folder(root)
    assert data.labels.tolist() == [0, 1, 2]
    pool = everything(whole).flatten(1)
    rows = [int((pool == image).all(1).nonzero()) for image in everything(data).flatten(1)]
    assert whole.labels[rows].tolist() == [0, 1, 2]


def break_two(root: Path) -> list[str]:
    """Cut a JPEG short and put text into a PNG; return their paths."""
    jpeg, png = root / "cat fish" / "x 1.jpg", root / "zebra" / "b.png"
    jpeg.write_bytes(jpeg.read_bytes()[:-100])
    png.write_text("this is a text file")
    return [str(jpeg), str(png)]


def test_a_broken_image_is_named_with_what_to_do(root: Path) -> None:
    jpeg, _ = break_two(root)
    data = open_folder(root)
    assert data.n == 6
    with pytest.raises(UserError) as first:
        data.images(np.array([0, 1]))
    assert str(first.value).startswith(f"{jpeg} cannot be read as an image (")
    assert "truncated" in str(first.value)
    with pytest.raises(UserError, match=r"b\.png cannot .*not a JPEG, PNG, WEBP or BMP file.*--skip-bad"):
        data.images(np.array([3]))
    assert "\n" not in str(first.value)
    with pytest.raises(UserError, match="truncated"):
        list(data.batches(2))
    assert data.images(np.array([1, 2, 4, 5])).shape == (4, 3, 8, 8)  # the others can still be read


def test_skip_bad_leaves_out_and_counts(root: Path) -> None:
    whole, names = everything(open_folder(root)), break_two(root)
    data = open_folder(root, skip_bad=True)
    assert list(data.skipped) == names
    assert data.labels.tolist() == [0, 1, 2, 2]
    assert torch.equal(everything(data), whole[[1, 2, 4, 5]])
    assert data.fingerprint != open_folder(root).fingerprint


def test_skip_bad_changes_nothing_when_all_is_well(root: Path) -> None:
    data = open_folder(root, skip_bad=True)
    assert data.skipped == ()
    assert data.fingerprint == open_folder(root).fingerprint


def test_nothing_readable(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_text("text")
    with pytest.raises(UserError, match="none of the 1 images can be read"):
        open_folder(tmp_path, skip_bad=True)


def test_decompression_bomb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_image(tmp_path / "bomb.png", size=(64, 64))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(UserError, match=r"bomb\.png cannot be read as an image \(Image size \(4096 pixels\) exceeds"):
        everything(open_folder(tmp_path))
    with pytest.raises(UserError, match="none of the 1 images"):
        open_folder(tmp_path, skip_bad=True)


def test_dangling_link(tmp_path: Path) -> None:
    write_image(tmp_path / "a.png")
    (tmp_path / "b.png").symlink_to(tmp_path / "gone.png")
    with pytest.raises(UserError, match=r"b\.png cannot be read as an image \(No such file"):
        everything(open_folder(tmp_path))
    assert open_folder(tmp_path, skip_bad=True).skipped == (str(tmp_path / "b.png"),)


def test_missing_and_wrong_layouts(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nowhere does not exist"):
        open_folder(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"holds no images .* and no class folders"):
        open_folder(tmp_path)
    write_image(tmp_path / "train" / "cat" / "1.png")
    with pytest.raises(UserError, match=rf"holds folders \(cat\).*write imagefolder:{tmp_path}/train"):
        open_folder(tmp_path)
    (tmp_path / "train" / "dog").mkdir()
    with pytest.raises(UserError, match=r"class folder .*dog holds no images \(\.jpg.*fill or remove it"):
        open_folder(tmp_path / "train")
    write_image(tmp_path / "1.png")
    with pytest.raises(UserError, match=r"holds images \(1\.png\) beside folders \(train\)"):
        open_folder(tmp_path)
    with pytest.raises(UserError, match=r"1\.png is a file: imagefolder needs a folder"):
        open_folder(tmp_path / "1.png")


def test_fingerprint_follows_content_and_preparation(root: Path) -> None:
    first = open_folder(root)
    assert open_folder(root).fingerprint == first.fingerprint
    names = {first.fingerprint}
    for options in ({"image_size": 9}, {"limit": 3}, {"limit": 4}, {"limit": 4, "seed": 1}, {"limit": 4, "seed": 5}):
        names.add(open_folder(root, **options).fingerprint)
    os.utime(root / "zebra" / "b.png", ns=(1, 1))
    names.add(open_folder(root).fingerprint)
    (root / "zebra").rename(root / "horse")
    names.add(open_folder(root).fingerprint)
    (root / "horse" / "b.png").unlink()
    names.add(open_folder(root).fingerprint)
    assert len(names) == 9


def test_fingerprint_does_not_follow_the_place(root: Path) -> None:
    before = open_folder(root).fingerprint
    moved = root.rename(root.with_name("elsewhere"))
    assert open_folder(moved).fingerprint == before


@pytest.mark.skipif(not SAMPLE.is_dir(), reason="needs ../shared/data/imagenet_sample beside the repository")
def test_imagenet_sample() -> None:
    data = open_data(f"imagefolder:{SAMPLE}", limit=40, skip_bad=True)
    assert (data.n, data.skipped, len(data.class_names)) == (40, (), 500)
    assert len(set(data.labels)) == 40
    images = everything(data)
    assert images.shape == (40, 3, 256, 256)
    file = min((SAMPLE / data.class_names[data.labels[7]]).iterdir())
    expected = np.asarray(Image.open(file).convert("RGB")).transpose(2, 0, 1)  # already 256x256
    assert np.array_equal(images[7].numpy(), expected)
