"""Mask folders: both formats, the geometry, and everything that can be wrong with one."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from latentlab.data import open_data
from latentlab.data.masks import imagenet_s_foreground
from latentlab.data.transforms import centre_crop_mask
from latentlab.errors import UserError


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Two photographs in one class, 24x16."""
    folder = tmp_path / "images"
    (folder / "dog").mkdir(parents=True)
    for name in ("a.JPEG", "b 2.png"):
        Image.new("RGB", (24, 16), (200, 10, 10)).save(folder / "dog" / name)
    return folder


def save_masks(folder: Path, *masks: Image.Image) -> Path:
    (folder / "dog").mkdir(parents=True, exist_ok=True)
    for name, mask in zip(("a.png", "b 2.png"), masks, strict=False):
        mask.save(folder / "dog" / name)
    return folder


def random_mask(seed: int, shape: tuple[int, int] = (16, 24)) -> np.ndarray:
    return np.random.default_rng(seed).random(shape) > 0.5


def grey(mask: np.ndarray, value: int = 255) -> Image.Image:
    return Image.fromarray(mask.astype(np.uint8) * value)


def open_masked(images: Path, masks: str, **options):
    return open_data(f"imagefolder:{images}", masks=masks, **{"image_size": 16, **options})


def test_class_ids_of_imagenet_s() -> None:
    """0 is other and 1000 = 232 + 256 * 3 is ignore; 1, 919 and 232 alone are classes."""
    rgb = np.array([[[0, 0, 0], [232, 3, 0], [1, 0, 0], [151, 3, 9], [232, 0, 0], [0, 3, 0], [0, 0, 7]]], np.uint8)
    assert imagenet_s_foreground(rgb).tolist() == [[False, False, True, True, True, True, False]]


def test_binary_masks_of_every_mode(images: Path, tmp_path: Path) -> None:
    palette = grey(random_mask(1), 1)
    palette.putpalette([0, 0, 0, 0, 0, 0])  # both black: the index counts, not the colour
    for i, other in enumerate(
        [grey(random_mask(1)), grey(random_mask(1), 1), Image.fromarray(random_mask(1)), palette]
    ):
        folder = save_masks(tmp_path / f"m{i}", grey(random_mask(0)), other)
        for text in (str(folder), f"binary:{folder}"):
            data = open_masked(images, text)
            masks = data.masks(np.array([1, 0]))
            assert data.has_masks
            assert (masks.shape, masks.dtype) == ((2, 16, 16), torch.bool)
            for mask, seed in zip(masks, (1, 0), strict=True):
                assert np.array_equal(mask.numpy(), random_mask(seed)[:, 4:20])


def test_imagenet_s_masks_are_decoded_and_cropped(images: Path, tmp_path: Path) -> None:
    ids = np.random.default_rng(2).choice([0, 1000, 5, 700], (16, 24))
    rgb = np.stack([ids % 256, ids // 256, np.zeros_like(ids)], -1).astype(np.uint8)
    folder = save_masks(tmp_path / "s", *[Image.fromarray(rgb)] * 2)
    mask = open_masked(images, f"imagenet-s:{folder}", image_size=8).masks(np.array([0]))[0]
    expected = centre_crop_mask((ids == 5) | (ids == 700), 8)
    assert np.array_equal(mask.numpy(), expected)


def test_mask_lies_where_the_object_is(tmp_path: Path) -> None:
    """The image is its own mask: what is foreground after the crop is what is bright after the crop."""
    y, x = np.mgrid[:210, :150]
    blob = grey((y - 70) ** 2 + (x - 90) ** 2 < 45**2)
    for kind in ("images", "masks"):
        (tmp_path / kind).mkdir()
        blob.save(tmp_path / kind / "a.png")
    data = open_masked(tmp_path / "images", str(tmp_path / "masks"), image_size=32)
    image, mask = data.images(np.array([0]))[0, 0].numpy(), data.masks(np.array([0]))[0].numpy()
    clear = (image < 60) | (image > 195)
    assert clear.mean() > 0.85
    assert np.array_equal(mask[clear], image[clear] > 127)


def test_missing_mask_is_named_while_opening(images: Path, tmp_path: Path) -> None:
    folder = save_masks(tmp_path / "m", grey(random_mask(0)))
    with pytest.raises(UserError, match=r"1 of 2 images have no mask: expected .*m/dog/b 2\.png for dog/b 2\.png"):
        open_masked(images, str(folder))
    with pytest.raises(
        UserError, match=r"mask folder .*nowhere does not exist: give DIR, binary:DIR or imagenet-s:DIR"
    ):
        open_masked(images, f"imagenet-s:{tmp_path}/nowhere")


def test_masks_are_needed_only_for_chosen_images(images: Path, tmp_path: Path) -> None:
    (images / "dog" / "a.JPEG").write_text("broken")
    folder = save_masks(tmp_path / "m", grey(random_mask(0)), grey(random_mask(1)))
    (folder / "dog" / "a.png").unlink()
    data = open_masked(images, str(folder), skip_bad=True)
    assert np.array_equal(data.masks(np.array([0]))[0].numpy(), random_mask(1)[:, 4:20])


def test_wrong_masks(images: Path, tmp_path: Path) -> None:
    rgb = Image.new("RGB", (24, 16))
    cases = [
        (
            grey(random_mask(0, (16, 16))),
            "binary",
            r"mask .*a\.png is 16x16 pixels, its image 24x16: they must be equal",
        ),
        (rgb, "binary", r"a\.png has mode RGB, a binary mask needs .*write imagenet-s:"),
        (grey(random_mask(0)), "imagenet-s", r"a\.png has mode L, ImageNet-S masks are RGB: use binary:"),
    ]
    for i, (mask, kind, problem) in enumerate(cases):
        folder = save_masks(tmp_path / f"m{i}", mask, mask)
        with pytest.raises(UserError, match=problem):
            open_masked(images, f"{kind}:{folder}").masks(np.array([0]))
    folder = save_masks(tmp_path / "broken", rgb, rgb)
    (folder / "dog" / "a.png").write_text("text")
    with pytest.raises(UserError, match=r"the mask .*a\.png cannot be read \(it is not"):
        open_masked(images, f"imagenet-s:{folder}").masks(np.array([0]))


def test_masks_change_the_fingerprint(images: Path, tmp_path: Path) -> None:
    folder = save_masks(tmp_path / "m", grey(random_mask(0)), grey(random_mask(1)))
    names = [
        open_data(f"imagefolder:{images}", image_size=16).fingerprint,
        open_masked(images, str(folder)).fingerprint,
        open_masked(images, f"imagenet-s:{folder}").fingerprint,
    ]
    save_masks(folder, grey(random_mask(7)))
    names.append(open_masked(images, str(folder)).fingerprint)
    assert len(set(names)) == 4
    assert open_masked(images, f"binary:{folder}").fingerprint == names[-1]


def test_without_masks(images: Path) -> None:
    data = open_data(f"imagefolder:{images}")
    assert not data.has_masks
    with pytest.raises(UserError, match="has no masks"):
        data.masks(np.array([0]))
