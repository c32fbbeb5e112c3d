"""The ADM centre crop against a slow recomputation and exact cases; decoding of every colour mode."""

import io

import numpy as np
import pytest
from PIL import Image

from latentlab.data.transforms import centre_crop, centre_crop_mask, decode_rgb, plan_centre_crop


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8))


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def box_halving(pixels: np.ndarray) -> np.ndarray:  # uint8 [h,w,3], h and w even => [h/2,w/2,3]
    """Average pairs of columns, then pairs of rows, rounding half up each time as Pillow does."""
    wide = pixels.astype(int)
    columns = (wide[:, ::2] + wide[:, 1::2] + 1) // 2
    return ((columns[::2] + columns[1::2] + 1) // 2).astype(np.uint8)


def cubic_weights(source: int, target: int) -> np.ndarray:  # => [target, source]
    """Antialiased bicubic interpolation (Keys 1981, a = -1/2), written from its definition."""
    scale = source / target
    stretch = max(scale, 1.0)
    centres = (np.arange(target) + 0.5) * scale
    x = np.abs((np.arange(source) + 0.5)[None] - centres[:, None]) / stretch
    near, far = 1.5 * x**3 - 2.5 * x**2 + 1, -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
    weights = np.where(x < 1, near, np.where(x < 2, far, 0))
    return weights / weights.sum(1, keepdims=True)


def slow_crop(pixels: np.ndarray, side: int) -> np.ndarray:  # float arithmetic; sides divisible by the halvings
    while min(pixels.shape[:2]) >= 2 * side:
        pixels = box_halving(pixels)
    height, width = pixels.shape[:2]
    scale = side / min(height, width)
    rows, columns = cubic_weights(height, round(height * scale)), cubic_weights(width, round(width * scale))
    # Pillow resizes the rows first and rounds in between.
    resized = np.clip(np.rint(np.einsum("xw,hwc->hxc", columns, pixels.astype(float))), 0, 255)
    resized = np.clip(np.rint(np.einsum("yh,hxc->yxc", rows, resized)), 0, 255)
    top, left = (resized.shape[0] - side) // 2, (resized.shape[1] - side) // 2
    return resized[top : top + side, left : left + side]


@pytest.mark.parametrize("size", [(64, 64), (96, 64), (64, 100), (200, 136), (45, 33), (24, 20), (512, 304)])
def test_crop_agrees_with_the_definition(size: tuple[int, int]) -> None:
    """Off by one where Pillow's fixed-point arithmetic rounds the other way, never more."""
    image = noise(*size)
    ours = np.asarray(centre_crop(image, 32)).astype(float)
    difference = np.abs(ours - slow_crop(np.asarray(image), 32))
    assert ours.shape == (32, 32, 3)
    assert difference.max() <= 1
    assert (difference > 0).mean() < 0.05


def test_an_image_of_the_target_size_is_unchanged() -> None:
    image = noise(48, 48)
    assert np.array_equal(np.asarray(centre_crop(image, 48)), np.asarray(image))


def test_with_the_target_height_only_the_centre_is_cut_out() -> None:
    image = noise(61, 48)
    assert np.array_equal(np.asarray(centre_crop(image, 48)), np.asarray(image)[:, 6:54])


def test_exactly_twice_the_target_is_one_box_halving() -> None:
    image = noise(64, 64)
    assert np.array_equal(np.asarray(centre_crop(image, 32)), box_halving(np.asarray(image)))


def test_a_constant_image_stays_constant() -> None:
    image = Image.new("RGB", (611, 377), (12, 200, 77))
    assert set(centre_crop(image, 64).get_flattened_data()) == {(12, 200, 77)}


@pytest.mark.parametrize(
    ("width", "height", "halvings", "resized", "box"),
    [
        (500, 375, (), (341, 256), (42, 0, 298, 256)),  # the usual ImageNet photograph
        (512, 512, ((256, 256),), (256, 256), (0, 0, 256, 256)),
        (511, 511, (), (256, 256), (0, 0, 256, 256)),
        (1500, 1025, ((750, 512), (375, 256)), (375, 256), (59, 0, 315, 256)),
        (100, 301, (), (256, 771), (0, 257, 256, 513)),  # enlarged; 257.5 is rounded down
    ],
)
def test_plan(width: int, height: int, halvings: tuple, resized: tuple, box: tuple) -> None:
    assert plan_centre_crop(width, height, 256) == (halvings, resized, box)


def test_a_strip_is_refused_before_it_fills_the_memory() -> None:
    with pytest.raises(ValueError, match="sides are too unequal to be resized to 256x5120000 pixels"):
        centre_crop(Image.new("L", (1, 20_000)), 256)


def test_mask_follows_the_image() -> None:
    """A white disc on black: the mask of the cropped disc is the cropped mask but for pixels on the rim."""
    y, x = np.mgrid[:301, :420]
    disc = (y - 140) ** 2 + (x - 230) ** 2 < 70**2
    mask = centre_crop_mask(disc, 64)
    picture = np.asarray(centre_crop(Image.fromarray(disc.astype(np.uint8) * 255), 64))
    clear = (picture < 40) | (picture > 215)
    assert clear.mean() > 0.9
    assert np.array_equal(mask[clear], picture[clear] > 127)
    rows, columns = np.nonzero(mask)
    assert abs(rows.mean() + 0.5 - 140.5 * 64 / 301) < 0.2
    # 420x301 is halved to 105x75, so the resized width is 105 * 64 / 75 = 90, of which 13 go on the left.
    assert abs(columns.mean() + 0.5 + 13 - 230.5 * 90 / 420) < 0.2


def test_mask_of_the_target_size_is_unchanged() -> None:
    mask = np.random.default_rng(0).random((32, 32)) > 0.5
    assert np.array_equal(centre_crop_mask(mask, 32), mask)


def test_grey_is_repeated_and_alpha_dropped() -> None:
    grey = noise(8, 8).convert("L")
    assert np.array_equal(np.asarray(decode_rgb(encoded(grey))), np.asarray(grey)[..., None].repeat(3, 2))
    rgba = np.random.default_rng(1).integers(0, 256, (8, 8, 4), np.uint8)
    assert np.array_equal(np.asarray(decode_rgb(encoded(Image.fromarray(rgba)))), rgba[..., :3])
    bits = grey.point(lambda v: 255 * (v > 127)).convert("1")
    assert set(np.unique(np.asarray(decode_rgb(encoded(bits))))) == {0, 255}


def test_16_bit_grey_keeps_the_high_byte() -> None:
    values = np.array([[0, 255, 256], [32768, 65280, 65535]], np.uint16)
    decoded = np.asarray(decode_rgb(encoded(Image.fromarray(values))))
    assert decoded[..., 0].tolist() == [[0, 0, 1], [128, 255, 255]]
    assert decoded.shape == (2, 3, 3)


def test_palette_with_transparency() -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putdata([0, 1])
    decoded = decode_rgb(encoded(image, transparency=bytes([0, 128])))
    assert list(decoded.get_flattened_data()) == [(10, 20, 30), (40, 50, 60)]


def test_cmyk_jpeg_keeps_its_colours() -> None:
    red = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    decoded = np.asarray(decode_rgb(encoded(red, "JPEG", quality=95))).astype(int)
    assert (decoded.reshape(-1, 3).mean(0) - (255, 0, 0) < 6).all()
    assert decoded[..., 0].min() > 245


@pytest.mark.parametrize(("kind", "options"), [("BMP", {}), ("WEBP", {"lossless": True}), ("PNG", {})])
def test_lossless_formats(kind: str, options: dict) -> None:
    image = noise(9, 7)
    assert np.array_equal(np.asarray(decode_rgb(encoded(image, kind, **options))), np.asarray(image))


def test_orientation_is_not_applied() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # "rotate by 90 degrees to view"
    assert decode_rgb(encoded(noise(20, 10), "JPEG", exif=exif)).size == (20, 10)


def test_other_formats_are_not_decoded() -> None:
    with pytest.raises(OSError, match="cannot identify"):
        decode_rgb(encoded(noise(8, 8), "GIF"))
