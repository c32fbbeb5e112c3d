"""Affine equivariance against encoders with a known answer, a slow reference, and what must not change the value."""

import copy
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, conv2d, interpolate

import latentlab
from analyses.affine import Transform, transforms_of
from analyses.intervals import percentile_interval
from latentlab import pixels as pixels_module
from latentlab.errors import UserError

KERNEL = torch.from_numpy(np.random.default_rng(9).standard_normal((5, 3, 4, 4)))


def measure(images: object, encode: Callable[[Tensor], Tensor], **options: object) -> latentlab.Measurement:
    return latentlab.measure("equivariance", images=images, encode=encode, **options)


def random_images(n: int = 12, side: int | tuple[int, int] = 32, seed: int = 0) -> np.ndarray:
    h, w = (side, side) if isinstance(side, int) else side
    return np.random.default_rng(seed).uniform(-1, 1, (n, 3, h, w))


def pooled(images: Tensor) -> Tensor:
    """Average pooling by 4, then a 1x1 convolution."""
    return conv2d(avg_pool2d(images, 4), KERNEL[:, :, :1, :1].to(images))


def patches(images: Tensor) -> Tensor:
    """One random linear map per 4x4 patch, which knows up from down."""
    return conv2d(images, KERNEL.to(images), stride=4)


def bent(images: Tensor) -> Tensor:
    """A nonlinear encoder with an offset."""
    return torch.tanh(patches(images)) + 0.3 * patches(images) + 1


def reference(
    images: np.ndarray, encode: Callable[[Tensor], Tensor], tau: Callable[[Tensor], Tensor], error: str, normalize: bool
) -> float:
    """The definition, one image after the other."""
    x = torch.from_numpy(images)
    z = encode(x)
    mean, std = torch.zeros(5), torch.ones(5)
    if normalize:
        mean, std = z.mean((0, 2, 3)), z.transpose(0, 1).flatten(1).std(1, correction=1)
    found = []
    for i in range(len(x)):
        own, encoded = (
            (latent[0] - mean[:, None, None]) / std[:, None, None]
            for latent in (z[i : i + 1], encode(tau(x[i : i + 1])))
        )
        turned = tau(own[None])[0]
        difference = turned - encoded
        found.append(
            {
                "delta": difference.square().sum() / encoded.square().sum(),
                "mse": difference.square().mean(),
                "l1": difference.abs().mean(),
                "cosine": 1 - (turned * encoded).sum() / turned.norm() / encoded.norm(),
            }[error]
        )
    return float(np.mean(found))


def test_rotation_is_clockwise() -> None:
    grid = torch.arange(12).view(1, 1, 3, 4)
    turned = [[8, 4, 0], [9, 5, 1], [10, 6, 2], [11, 7, 3]]
    assert Transform("rotate", 1)(grid)[0, 0].tolist() == turned
    assert [tau.name for tau in transforms_of("rotate", (), "bilinear")] == ["90°", "180°", "270°"]


def test_flips_and_resizes() -> None:
    grid = torch.arange(16.0).view(1, 1, 4, 4)
    across, down = transforms_of("flip", (), "bilinear")
    assert across(grid)[0, 0, 0].tolist() == [3, 2, 1, 0] and down(grid)[0, 0, :, 0].tolist() == [12, 8, 4, 0]
    half = Transform("scale", 0.5)
    assert half(grid)[0, 0].tolist() == [[2.5, 4.5], [10.5, 12.5]]
    torch.testing.assert_close(
        Transform("scale", 0.25, "bicubic")(grid), interpolate(grid, scale_factor=0.25, mode="bicubic")
    )
    assert half.fits((4, 6)) and not half.fits((4, 5)) and Transform("scale", 0.1).fits((10, 30))
    assert not Transform("scale", 0.01).fits((10, 10))


def test_average_pooling_is_equivariant() -> None:
    """Turning and mirroring permute the pooled cells, and a bilinear resize by 0.5 averages 2x2 pixels; at other factors, and
    with bicubic weights, the resize without antialiasing itself skips pixels, most at 0.25.
    """
    coarse = torch.from_numpy(random_images(side=8))
    images = interpolate(coarse, scale_factor=4, mode="bilinear")
    found = measure(images, pooled)
    by_name = dict(zip(found.details["transforms"], found.details["error"], strict=True))
    assert found.value < 1e-25 and found.companions["flip"].value < 1e-25 and by_name["x0.5"] < 1e-25
    assert by_name["x0.25"] > 5 * by_name["x0.75"] > 0
    quarter, half, most = measure(images, pooled, transforms="scale", interpolation="bicubic").details["error"]
    assert quarter > by_name["x0.25"] and 0 < half < quarter / 10 and 0 < most < quarter / 10


def test_random_patch_convolution_on_white_noise() -> None:
    """tau E(x) - E(tau x) is the convolution with K - tau^-1 K, of variance sigma^2 |K - tau^-1 K|^2 per output."""
    images = 0.3 * np.random.default_rng(0).standard_normal((800, 3, 32, 32))
    found = measure(images.astype(np.float32), patches, transforms="rotate", error="mse", limit=None)
    for quarter, value in zip((1, 2, 3), found.details["error"], strict=True):
        back = torch.rot90(KERNEL, -quarter, dims=[-1, -2])
        expected = 0.09 * (KERNEL - back).square().sum((1, 2, 3)).mean()
        assert value == pytest.approx(float(expected), rel=0.01)


def test_independent_latents_have_twice_their_norm() -> None:
    rng = torch.Generator().manual_seed(0)

    def encode(images: Tensor) -> Tensor:
        return torch.randn(len(images), 16, images.shape[2] // 2, images.shape[3] // 2, generator=rng)

    for kind in ("rotate", "flip"):
        found = measure(random_images(30), encode, transforms=kind)
        assert found.value == pytest.approx(2, rel=0.01)


@pytest.mark.parametrize("error", ["delta", "mse", "l1", "cosine"])
@pytest.mark.parametrize("normalize", [False, True])
def test_equals_the_definition(error: str, normalize: bool) -> None:
    images = random_images(6)
    for interpolation in ("bilinear", "bicubic"):
        found = measure(images, bent, error=error, normalize=normalize, interpolation=interpolation)
        taus = [
            *[lambda x, k=k: torch.rot90(x, k, dims=[-1, -2]) for k in (1, 2, 3)],
            *[lambda x, s=s, m=interpolation: interpolate(x, scale_factor=s, mode=m) for s in (0.25, 0.5, 0.75)],
            *[lambda x, d=d: x.flip(d) for d in (3, 2)],
        ]
        expected = [reference(images, bent, tau, error, normalize) for tau in taus]
        np.testing.assert_allclose(found.details["error"], expected, rtol=1e-10)
        assert found.value == pytest.approx(np.mean(expected[:3]), rel=1e-10)
        assert found.companions["scale"].value == pytest.approx(np.mean(expected[3:6]), rel=1e-10)
        assert found.companions["flip"].value == pytest.approx(np.mean(expected[6:]), rel=1e-10)


@pytest.mark.parametrize("kind", ["rotate", "scale", "flip"])
def test_one_kind_alone_is_the_headline(kind: str) -> None:
    images = random_images()
    alone, together = measure(images, bent, transforms=kind), measure(images, bent)
    assert list(together.companions) == ["rotate", "scale", "flip"] and list(alone.companions) == [kind]
    assert alone.value == together.companions[kind].value
    assert alone.interval == together.companions[kind].interval == alone.companions[kind].interval
    assert alone.interval == percentile_interval(alone.replicates, len(images))


def test_units_and_variants_say_what_was_measured() -> None:
    images = random_images(3)
    units = {
        (error, normalize): measure(images, bent, error=error, normalize=normalize, transforms="flip").unit
        for error in ("delta", "mse", "l1", "cosine")
        for normalize in (False, True)
    }
    assert units[("delta", True)] == units[("delta", False)] == "relative squared error"
    assert (units[("mse", False)], units[("mse", True)]) == ("squared latent units", "squared channel std")
    assert (units[("l1", True)], units[("cosine", False)]) == ("channel std", "1 - cosine")
    found = measure(images, bent, transforms="scale", scales=(0.5,), interpolation="bicubic")
    assert found.variant.startswith("bicubic resizes by 0.5, delta") and found.variant.endswith("raw")


def test_scale_of_the_latents_does_not_matter_but_an_offset_does() -> None:
    images = random_images()
    value = measure(images, bent).value
    assert measure(images, lambda x: -7 * bent(x)).value == pytest.approx(value, rel=1e-12)
    assert measure(images, lambda x: bent(x) + 10).value < value / 10
    assert measure(images, lambda x: bent(x) + 10, normalize=True).value == pytest.approx(
        measure(images, bent, normalize=True).value, rel=1e-9
    )


def test_float32_equals_float64() -> None:
    images = random_images()
    quick = measure(images.astype(np.float32), bent)
    assert quick.value == pytest.approx(measure(images, bent).value, rel=1e-5)
    assert quick.companions["scale"].value == pytest.approx(measure(images, bent).companions["scale"].value, rel=1e-5)


def test_batches_and_order_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    images = random_images(20)
    whole = measure(images, bent, normalize=True)
    assert measure(images[::-1].copy(), bent, normalize=True).value == pytest.approx(whole.value, rel=1e-12)
    monkeypatch.setattr(pixels_module, "BATCH_BYTES", 4 * 3 * 32 * 32 * 7)
    parted = measure(images, bent, normalize=True)
    assert parted.value == pytest.approx(whole.value, rel=1e-12)
    np.testing.assert_allclose(parted.interval, whole.interval, rtol=1e-12)


def test_interval_is_the_bootstrap_over_images() -> None:
    images = random_images(200, side=8)
    found = measure(images, bent, transforms="rotate", limit=None)
    each = [measure(images[i : i + 1], bent, transforms="rotate").value for i in range(200)]
    low, high = found.interval
    assert high - low == pytest.approx(2 * 1.96 * np.std(each) / 200**0.5, rel=0.15)
    assert (found.details["error_low"] < found.details["error"]).all()


def test_limit_chooses_images_by_seed() -> None:
    images = random_images(30, side=8)
    found = [measure(images, bent, limit=10, seed=seed) for seed in (0, 0, 1)]
    assert [m.n for m in found] == [10, 10, 10]
    assert found[0].value == found[1].value != found[2].value
    assert measure(images, bent, limit=30).value == measure(images, bent, limit=None).value


def test_one_image_has_no_interval() -> None:
    found = measure(random_images(1), bent)
    assert found.interval is None and found.replicates is None and "one image" in found.warnings[0]
    assert np.isnan(found.details["error_low"]).all()


def test_oblong_images_are_turned_too() -> None:
    assert measure(random_images(side=(16, 32)), pooled).value < 1e-25


def test_default_resizes_keep_whole_cells() -> None:
    found = measure(random_images(side=24), bent)  # a grid of 6x6: only 0.5 gives whole cells
    assert found.details["kinds"].count("scale") == 1 and found.parameters["scales"] == [0.5]
    assert found.warnings[0] == (
        "left out: resizing by 0.25 gives no whole number of pixels and cells for images of 24x24 with latents of 6x6"
    )
    with pytest.raises(UserError, match=r"resizing by 0.25 gives no whole number .* 24x24 with latents of 6x6"):
        measure(random_images(side=24), bent, scales=(0.25,))
    alone = measure(random_images(side=28), bent)
    assert "scale" not in alone.companions and len(alone.warnings) == 3
    with pytest.raises(UserError, match=r"resizing by 0.25 .*: name others, for example scales="):
        measure(random_images(side=28), bent, transforms="scale")


def test_a_network_in_training_does() -> None:
    """Its parameters require gradients, of the latents too."""
    images, network = random_images().astype(np.float32), torch.nn.Conv2d(3, 4, 4, stride=4)
    frozen = copy.deepcopy(network).requires_grad_(False)
    for normalize in (False, True):
        found, expected = (measure(images, f, normalize=normalize) for f in (network, frozen))
        assert found.value == expected.value


def test_numpy_encoders_do() -> None:
    x = random_images()
    assert measure(x, lambda images: bent(images).numpy()).value == measure(x, bent).value


def fixed_size(images: Tensor) -> Tensor:
    if images.shape[-1] != 32:
        raise ValueError(f"Input height ({images.shape[-2]}) doesn't match model (32).")
    return bent(images)


def test_encoders_of_one_size_are_measured_without_resizes() -> None:
    found = measure(random_images(), fixed_size)
    assert found.value == measure(random_images(), bent).value and list(found.companions) == ["rotate", "flip"]
    assert "does not take images of 8x8, as x0.25 needs: Input height (8)" in found.warnings[0]
    with pytest.raises(UserError, match="does not take images of 16x16"):
        measure(random_images(), fixed_size, scales=(0.5,))
    with pytest.raises(UserError, match="the encoder does not take images of 8x8"):
        measure(random_images(), fixed_size, transforms="scale")


def test_encoders_that_always_give_one_grid_cannot_be_compared() -> None:
    def encode(images: Tensor) -> Tensor:
        return bent(interpolate(images, size=(32, 32)))

    with pytest.raises(
        UserError, match=r"gives latents of 8x8 for images of 16x16, and 4x4 are needed to compare .x0.5"
    ):
        measure(random_images(), encode, scales=(0.5,))


@pytest.mark.parametrize("error", ["delta", "cosine"])
def test_zero_latents_are_refused(error: str) -> None:
    images = random_images(5)
    images[3] = 0
    with pytest.raises(UserError, match="the latent of image 3 under 90° is 0"):
        measure(images, patches, error=error)
    assert measure(images, patches, error="mse").value > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"transforms": "rotation"}, "unknown transforms 'rotation'. Did you mean rotate"),
        ({"error": "rmse"}, "unknown error 'rmse'. Did you mean mse"),
        ({"interpolation": "nearest"}, "unknown interpolation"),
        ({"limit": 0}, "limit must be at least 1, got 0"),
        ({"scales": ()}, r"scales must be positive numbers, got \[\]"),
        ({"scales": (0.5, -1.0)}, "scales must be positive"),
        ({"scales": (float("nan"),)}, "scales must be positive"),
    ],
)
def test_wrong_options_are_refused(options: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        measure(random_images(2), bent, **options)


def test_tokens_are_refused_with_the_reason() -> None:
    with pytest.raises(UserError, match=r"needs latents on a grid .* gives \[64, 5\]: 1-D tokens have no place"):
        measure(random_images(2), lambda x: bent(x).flatten(2).transpose(1, 2))


def test_non_finite_latents_are_refused() -> None:
    def overflowing(images: Tensor) -> Tensor:
        return bent(images) / (images.shape[-1] - 16)

    for encode in (lambda x: bent(x) * float("nan"), lambda x: bent(x) / 0):
        with pytest.raises(UserError, match="encodes images to NaN or infinity"):
            measure(random_images(2), encode)
    with pytest.raises(UserError, match="NaN or infinity"):
        measure(random_images(2), overflowing, scales=(0.5,))


def test_images_and_an_encoder_are_needed() -> None:
    with pytest.raises(UserError, match="needs images and encode"):
        latentlab.measure("equivariance")


def test_embedded_tokenizer_takes_all_default_transforms() -> None:
    found = latentlab.measure(
        "equivariance", images=latentlab.open_data("fashion:test", limit=24), tokenizer=latentlab.load_tokenizer("ae")
    )
    assert len(found.details["error"]) == 8 and found.warnings == ()
    assert 0 < found.interval[0] < found.value < found.interval[1] < 2
