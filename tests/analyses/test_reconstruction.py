"""Reconstruction quality against direct computations, on a made-up decoder and extractor."""

import math

import numpy as np
import pytest
import scipy.linalg
import torch
from torch import Tensor
from torch.nn import functional

from latentlab import measure
from latentlab.errors import UserError
from latentlab.quality.fidelity import psnr, ssim, to_uint8
from latentlab.quality.stlpips import STLPIPS

N, SIDE = 40, 32


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> None:
    torch.set_num_threads(1)


def describe(x: Tensor) -> Tensor:
    return functional.avg_pool2d(x.double(), 16).flatten(1)[:, :6]


def images(n: int = N) -> np.ndarray:
    """Smooth colour fields, uint8 [n,3,SIDE,SIDE]."""
    coarse = torch.rand(n, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    smooth = functional.interpolate(coarse, (SIDE, SIDE), mode="bicubic").clamp(0, 1)
    return (smooth * 255).round().byte().numpy()


def halved(x: np.ndarray) -> np.ndarray:
    return functional.avg_pool2d(torch.from_numpy(x).float() / 127.5 - 1, 2).numpy()


def enlarge(z: Tensor) -> Tensor:
    return 1.02 * functional.interpolate(z, scale_factor=2.0)


DEFAULTS = {"decode": enlarge, "extractor": describe, "perceptual": "st_lpips"}


def run(z, x, **parameters):
    return measure("reconstruction", z, images=x, **{**DEFAULTS, **parameters})


def test_perfect_reconstruction() -> None:
    x = images()
    z = x / np.float32(127.5) - 1
    result = run(z, x, decode=lambda latents: latents)
    assert result.value == pytest.approx(0, abs=1e-10)
    assert result.companions["psnr"].value == math.inf and result.companions["psnr"].interval is None
    assert result.companions["ssim"].value == pytest.approx(1, rel=1e-12)
    assert result.companions["st_lpips"].value == 0


def test_equals_a_direct_computation() -> None:
    x = images()
    z = halved(x)
    result = run(z, x, perceptual="st_lpips")
    results = to_uint8(enlarge(torch.from_numpy(z)))
    originals = torch.from_numpy(x)
    unit = [images.float() / 127.5 - 1 for images in (originals, results)]
    with torch.no_grad():
        expected = {
            "psnr": psnr(results, originals),
            "ssim": ssim(results, originals),
            "st_lpips": STLPIPS("alex")(unit[1], unit[0]),
        }
    for name, values in expected.items():
        assert result.companions[name].value == pytest.approx(values.double().mean().item(), rel=1e-6)
        np.testing.assert_allclose(result.details["per_image"][name], values.double(), rtol=1e-4)
        low, high = result.companions[name].interval
        assert low < result.companions[name].value < high
    a, b = (describe(part).numpy() for part in unit)
    root = scipy.linalg.sqrtm(np.cov(a.T) @ np.cov(b.T)).real
    distance = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(np.cov(a.T) + np.cov(b.T) - 2 * root)
    assert result.value == pytest.approx(distance, rel=1e-5)
    assert result.variant == "rfd_describe, 8-bit images"
    assert result.interval[0] < result.value < result.interval[1]


def test_unquantised_features_differ() -> None:
    x = images()
    z = halved(x)
    exact = run(z, x, quantize=False)
    assert exact.value != run(z, x).value
    assert exact.value == pytest.approx(run(z, x).value, rel=0.5)
    assert exact.companions["psnr"] == run(z, x).companions["psnr"]
    assert "neither clamped nor quantised" in exact.variant


def test_limit_order_and_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    x = images()
    z = halved(x)
    labels = np.arange(N) % 4
    some = run(z, x, labels=labels, limit=20)
    chosen = some.details["images"]
    assert some.n == 20 and np.bincount(labels[chosen]).tolist() == [5] * 4
    whole = run(z, x, labels=labels)
    np.testing.assert_allclose(some.details["per_image"]["psnr"], whole.details["per_image"]["psnr"][chosen])
    back = np.arange(N)[::-1]
    assert run(z[back].copy(), x[back].copy()).value == pytest.approx(whole.value, rel=1e-9)
    from latentlab.quality import features

    monkeypatch.setattr(features, "_CPU_IMAGES", 3)
    assert run(z, x).value == pytest.approx(whole.value, rel=1e-9)


def test_small_images_have_no_perceptual_distance() -> None:
    x = images()[:, :, :16, :16]
    result = run(halved(x), x)
    assert set(result.companions) == {"psnr", "ssim"}
    assert "st_lpips needs images of at least 21 pixels" in result.warnings[0]


def test_few_images_have_no_interval() -> None:
    x = images(6)
    result = run(halved(x), x)
    assert result.interval is None and "6 images for 6 describe features" in result.warnings[0]


def test_wrong_use_is_explained() -> None:
    x = images(8)
    z = halved(x)
    with pytest.raises(UserError, match="one entry per latent"):
        run(z, x[:7])
    with pytest.raises(UserError, match="unknown perceptual distance 'lpip'"):
        run(z, x, perceptual="lpip")
    with pytest.raises(UserError, match="images of the originals' shape"):
        run(z, x, decode=lambda latents: latents)
    with pytest.raises(UserError, match="needs decode"):
        measure("reconstruction", z, images=x)


def test_small_images_and_given_distances() -> None:
    """Below 11 pixels there is no SSIM, which leaves the rest; a distance may be a function, or None."""
    z = np.random.default_rng(0).uniform(-1, 1, (20, 3, 4, 4))
    x = enlarge(torch.from_numpy(z)).numpy()

    def distance(first: Tensor, second: Tensor) -> Tensor:
        return (first - second).abs().mean((1, 2, 3))

    few = {"extractor": lambda shown: shown.flatten(1)[:, :6]}
    found = run(z, x, perceptual=distance, **few)
    assert set(found.companions) == {"psnr", "given distance"} and any("ssim needs" in w for w in found.warnings)
    assert set(run(z, x, perceptual=None, **few).companions) == {"psnr"}
