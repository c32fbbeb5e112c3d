"""Reconstruction scores against window-by-window and image-by-image versions."""

import math

import numpy as np
import pytest
import torch
from sklearn.datasets import load_sample_images
from torch import Tensor, nn
from torch.nn import functional

from latentlab.data.base import ImageSet
from latentlab.errors import UserError
from latentlab.latents import TokenizerSpec
from latentlab.measurement import Estimate
from latentlab.quality.fidelity import psnr, ssim, to_uint8
from latentlab.quality.reconstruction import codebook_scores, reconstruction_scores
from latentlab.quality.stlpips import STLPIPS
from latentlab.tokenizers.base import DiscreteTokenizer, Tokenizer


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> None:
    torch.set_num_threads(1)


class Photographs(ImageSet):
    """32x32 pieces of the two photographs that come with scikit-learn."""

    name, image_size, labels, class_names, fingerprint = "photographs", 32, None, None, "0" * 16

    def __init__(self, n: int) -> None:
        photos = torch.from_numpy(np.stack(load_sample_images().images)).permute(0, 3, 1, 2)
        tiles = photos.unfold(2, 64, 64).unfold(3, 64, 64)[..., ::2, ::2].permute(0, 2, 3, 1, 4, 5)
        self.tiles = tiles.reshape(-1, 3, 32, 32)[:: len(tiles.reshape(-1, 3, 32, 32)) // n][:n].contiguous()
        self.n = n

    def images(self, indices: np.ndarray) -> Tensor:
        return self.tiles[indices]


class Halved(Tokenizer):
    """Keeps the mean of 2x2 pixels, with a little less contrast so that no pixel lies halfway between two levels."""

    spec = TokenizerSpec("halved", "test", "continuous", "grid", 3, 2)

    def encode(self, images: Tensor, sample: bool = False, generator: torch.Generator | None = None) -> Tensor:
        return functional.avg_pool2d(images, 2)

    def decode(self, latents: Tensor) -> Tensor:
        return 0.9713 * functional.interpolate(latents, scale_factor=2.0)


class Greys(DiscreteTokenizer):
    """The grey of every 4x4 block as one of 32 levels from -2 to 2, half of which no image can need."""

    spec = TokenizerSpec("greys", "test", "vq", "grid", 3, 4, codebook_size=32)

    def __init__(self) -> None:
        super().__init__()
        self.levels = nn.Parameter(torch.linspace(-2, 2, 32)[:, None].expand(32, 3).clone())

    @property
    def codebook(self) -> Tensor:
        return self.levels

    def indices(self, images: Tensor) -> Tensor:
        grey = functional.avg_pool2d(images.mean(1), 4)
        return (grey[..., None] - self.levels[:, 0]).abs().argmin(-1)

    def codes(self, indices: Tensor) -> Tensor:
        return self.levels[indices].movedim(-1, 1)

    def encode(self, images: Tensor, sample: bool = False, generator: torch.Generator | None = None) -> Tensor:
        return self.codes(self.indices(images))

    def decode(self, latents: Tensor) -> Tensor:
        return functional.interpolate(latents, scale_factor=4.0)


def window_by_window(x: np.ndarray, y: np.ndarray) -> float:
    """SSIM of two images [c,H,W] straight from the paper: weighted moments of every window (equations 14 to 16, then 13)."""
    at = np.arange(11) - 5
    weight = np.exp(-(at[:, None] ** 2 + at[None, :] ** 2) / (2 * 1.5**2))
    weight /= weight.sum()
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    values = []
    for a, b in zip(x.astype(np.float64), y.astype(np.float64), strict=True):
        for i in range(a.shape[0] - 10):
            for j in range(a.shape[1] - 10):
                p, q = a[i : i + 11, j : j + 11], b[i : i + 11, j : j + 11]
                mp, mq = (weight * p).sum(), (weight * q).sum()
                vp, vq = (weight * (p - mp) ** 2).sum(), (weight * (q - mq) ** 2).sum()
                cov = (weight * (p - mp) * (q - mq)).sum()
                values.append((2 * mp * mq + c1) * (2 * cov + c2) / ((mp**2 + mq**2 + c1) * (vp + vq + c2)))
    return float(np.mean(values))


def noisy(images: Tensor, deviation: float) -> Tensor:
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    return (images + deviation * noise).round().clamp(0, 255).to(torch.uint8)


def test_ssim_window_by_window() -> None:
    images = Photographs(3).tiles[..., :27]
    images[2] = 200  # flat: nothing but the constants stabilises the structure term
    others = noisy(images, 25)
    expected = [window_by_window(x.numpy(), y.numpy()) for x, y in zip(images, others, strict=True)]
    np.testing.assert_allclose(ssim(images, others).numpy(), expected, rtol=1e-10)
    assert max(expected) - min(expected) > 0.2


def test_ssim_of_flat_images_is_the_luminance_term() -> None:
    """No variance: (2 a b + C1) / (a^2 + b^2 + C1)."""
    a, b, c1 = 100, 180, (0.01 * 255) ** 2
    flat = [torch.full((1, 3, 16, 16), level, dtype=torch.uint8) for level in (a, b)]
    assert ssim(*flat).item() == pytest.approx((2 * a * b + c1) / (a**2 + b**2 + c1), rel=1e-12)


def test_equal_images() -> None:
    images = Photographs(4).tiles
    np.testing.assert_allclose(ssim(images, images).numpy(), 1, rtol=1e-12)
    assert (psnr(images, images) == math.inf).all()


def test_psnr_closed_form() -> None:
    """An error of e in every pixel gives 20 log10(255 / e)."""
    images = torch.full((2, 3, 11, 11), 100, dtype=torch.uint8)
    assert psnr(images, images + 5).tolist() == pytest.approx([20 * math.log10(255 / 5)] * 2, rel=1e-12)


def test_pixels_are_rounded_to_the_nearest_of_256_levels() -> None:
    levels = torch.arange(256, dtype=torch.uint8)
    exact = levels.double() / 127.5 - 1
    for shift in (-0.49, 0, 0.49):
        assert torch.equal(to_uint8((exact + shift / 127.5).float()), levels)
    assert to_uint8(torch.tensor([-7.0, 7.0])).tolist() == [0, 255]
    with pytest.raises(UserError, match="NaN or infinite"):
        to_uint8(torch.tensor([0.0, math.nan]))


def test_codebook_scores_closed_form() -> None:
    """k equally frequent codes have perplexity k; frequencies 1/2, 1/4, 1/4 have entropy 1.5 ln 2."""
    assert codebook_scores(np.array([5, 0, 5, 5, 0])) == {
        "codebook_usage": Estimate(0.6),
        "perplexity": Estimate(pytest.approx(3)),
    }
    assert codebook_scores(np.array([0, 4, 2, 2]))["perplexity"].value == pytest.approx(2**1.5)


@pytest.mark.parametrize("tokenizer", [Halved(), Greys()], ids=["continuous", "discrete"])
def test_scores_image_by_image(tokenizer: Tokenizer) -> None:
    images = Photographs(5)
    scores = reconstruction_scores(tokenizer, images, batch_size=2)
    distance = STLPIPS("alex")
    expected: dict[str, list[float]] = {"psnr": [], "ssim": [], "st_lpips": []}
    codes: list[int] = []
    for original in images.tiles:
        unit = original[None].float() / 127.5 - 1
        with torch.no_grad():
            decoded = tokenizer.decode(tokenizer.encode(unit))
            if isinstance(tokenizer, Greys):
                codes += tokenizer.indices(unit).flatten().tolist()
            pixels = np.clip(np.rint((decoded[0].double().numpy() + 1) * 127.5), 0, 255)
            expected["st_lpips"].append(distance(torch.from_numpy(pixels)[None].float() / 127.5 - 1, unit).item())
        expected["psnr"].append(10 * math.log10(255**2 / np.mean((pixels - original.numpy()) ** 2)))
        expected["ssim"].append(window_by_window(pixels, original.numpy()))
    for name, values in expected.items():
        assert scores[name].value == pytest.approx(np.mean(values), rel=1e-6)
        low, high = scores[name].interval
        assert low < scores[name].value < high
    if not isinstance(tokenizer, Greys):
        assert set(scores) == set(expected)
        return
    used, counts = np.unique(codes, return_counts=True)
    share = counts / counts.sum()
    assert scores["codebook_usage"] == (len(used) / 32, None)
    assert scores["perplexity"].value == pytest.approx(math.exp(-(share * np.log(share)).sum()))


def test_batch_size_does_not_matter_and_the_seed_only_moves_the_interval() -> None:
    images, tokenizer = Photographs(12), Greys()
    scores = [reconstruction_scores(tokenizer, images, batch_size=size) for size in (None, 1, 7)]
    for other in scores[1:]:
        for name, (value, interval) in scores[0].items():
            assert other[name].value == pytest.approx(value, rel=1e-6)
            assert interval is None or other[name].interval == pytest.approx(interval, rel=1e-5)
    reseeded = reconstruction_scores(tokenizer, images, seed=1)
    assert reseeded["psnr"].value == scores[0]["psnr"].value
    assert reseeded["psnr"].interval != scores[0]["psnr"].interval


class Perfect(Halved):
    def encode(self, images: Tensor, sample: bool = False, generator: torch.Generator | None = None) -> Tensor:
        return images

    def decode(self, latents: Tensor) -> Tensor:
        return latents


class Enlarging(Perfect):
    def decode(self, latents: Tensor) -> Tensor:
        return functional.interpolate(latents, scale_factor=2.0)


def test_perfect_reconstruction_has_no_psnr_interval() -> None:
    scores = reconstruction_scores(Perfect(), Photographs(3))
    assert scores["psnr"] == (math.inf, None)
    assert scores["ssim"].value == pytest.approx(1, rel=1e-12)
    assert scores["st_lpips"].value == 0


def test_wrong_use_is_explained() -> None:
    with pytest.raises(UserError, match=r"shape \[3, 3, 64, 64\], images \[3, 3, 32, 32\]"):
        reconstruction_scores(Enlarging(), Photographs(3))
    with pytest.raises(UserError, match="batch size must be at least 1"):
        reconstruction_scores(Perfect(), Photographs(3), batch_size=0)
    with pytest.raises(UserError, match="at least 11x11"):
        ssim(*(torch.zeros(1, 3, 10, 16, dtype=torch.uint8),) * 2)
