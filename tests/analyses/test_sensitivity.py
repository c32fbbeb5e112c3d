"""Decoder sensitivity against the closed form of a linear decoder, a slow reference, and what must not change the value."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

import latentlab
from analyses import sensitivity as module
from latentlab import TokenizerSpec
from latentlab.errors import UserError
from latentlab.randomness import generator

C, SIDE, PIXELS = 3, 4, 8
MAP = torch.from_numpy(np.random.default_rng(5).standard_normal((C * SIDE**2, 3 * PIXELS**2))) / 20
SPREADS = np.array([0.5, 1.0, 3.0])


def measure(z: object, decode: Callable[[Tensor], Tensor], **options: object) -> latentlab.Measurement:
    return latentlab.measure(
        "sensitivity", z, decode=decode, **{"perceptual": None, "extractor": None, "limit": None, **options}
    )


def latents(n: int = 40, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.standard_normal((n, C, SIDE, SIDE)) * SPREADS[:, None, None] + np.array([1, 0, -2])[:, None, None]


def linear(z: Tensor) -> Tensor:
    return (z.flatten(1) @ MAP.to(z)).view(-1, 3, PIXELS, PIXELS)


def clipped(z: Tensor) -> Tensor:
    return torch.tanh(2 * linear(z))


def halves(images: Tensor) -> Tensor:
    """Features: mean of the left and of the right half, per channel, [b,6]."""
    return images.unflatten(3, (2, -1)).mean((2, 4)).flatten(1)


def reference(z: np.ndarray, decode: Callable[[Tensor], Tensor], level: float) -> tuple[float, float, float]:
    """Pixel, mean absolute and feature change, one image after the other."""
    std = z.transpose(1, 0, 2, 3).reshape(C, -1).std(1, ddof=1)
    squares, absolute, moved, features = [], [], [], []
    for i, latent in enumerate(torch.from_numpy(z)):
        noise = torch.randn(latent.shape, generator=generator(0, "sensitivity", repr(level), i), dtype=torch.float64)
        clean = decode(latent[None])
        change = decode((latent + level * torch.from_numpy(std)[:, None, None] * noise)[None]) - clean
        squares.append(change.square().mean().item())
        absolute.append(change.abs().mean().item())
        features.append(halves(clean)[0].numpy())
        moved.append((halves(change)[0].numpy() ** 2).sum())
    spread = ((features - np.mean(features, axis=0)) ** 2).sum(1).mean()
    return np.sqrt(np.mean(squares)), float(np.mean(absolute)), np.sqrt(np.mean(moved) / spread)


def mean_absolute(first: Tensor, second: Tensor) -> Tensor:
    return (first - second).abs().mean((1, 2, 3))


def test_linear_decoder_has_a_closed_form() -> None:
    """E |dx|^2 = sigma^2 |A diag(s)|_F^2, so the RMS per unit of noise is |A diag(s)|_F / sqrt(pixels) at every level."""
    z = latents(4000)
    found = measure(z, linear, levels=(0.05, 1.0))
    std = z.transpose(1, 0, 2, 3).reshape(C, -1).std(1, ddof=1)
    scaled = MAP * torch.from_numpy(np.repeat(std, SIDE**2))[:, None]
    expected = float(scaled.norm()) / (3 * PIXELS**2) ** 0.5
    assert found.value == pytest.approx(expected, rel=0.01)
    assert found.interval[0] < expected < found.interval[1]
    np.testing.assert_allclose(found.details["pixels"] / found.details["levels"], expected, rtol=0.01)


def test_equals_the_definition() -> None:
    z = latents()
    found = measure(z, clipped, levels=(0.02, 0.5), level=0.1, perceptual=mean_absolute, extractor=halves)
    expected = np.array([reference(z, clipped, level) for level in (0.02, 0.1, 0.5)]).T
    for key, column in zip(("pixels", "perceptual", "features"), expected, strict=True):
        np.testing.assert_allclose(found.details[key], column, rtol=1e-10)
        assert (found.details[f"{key}_low"] < column).all() and (column < found.details[f"{key}_high"]).all()
    assert found.value == pytest.approx(expected[0, 1] / 0.1, rel=1e-10)
    assert found.companions["given distance at 0.1"].value == pytest.approx(expected[1, 1], rel=1e-10)
    assert found.companions["halves features at 0.1"].value == pytest.approx(expected[2, 1], rel=1e-10)
    assert found.details["levels"].tolist() == [0.02, 0.1, 0.5]


def test_noise_depends_on_seed_level_and_image_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    z = latents()
    whole = measure(z, clipped)
    assert measure(z, clipped, levels=(0.7,)).value == whole.value  # whatever other levels there are
    monkeypatch.setattr(module, "_BATCH", 7)
    parted = measure(z, clipped)
    assert parted.value == pytest.approx(whole.value, rel=1e-12)
    np.testing.assert_allclose(parted.interval, whole.interval, rtol=1e-12)
    assert measure(z, clipped, seed=1).value != whole.value
    assert measure(z, clipped, seed=1).value == pytest.approx(whole.value, rel=0.05)


def test_float32_equals_float64() -> None:
    z = latents()
    assert measure(z.astype(np.float32), clipped).value == pytest.approx(measure(z, clipped).value, rel=1e-4)


def test_order_changes_only_the_draws_of_the_noise() -> None:
    z = latents(300)
    assert measure(z[::-1].copy(), clipped).value == pytest.approx(measure(z, clipped).value, rel=0.02)


def test_channel_scales_that_the_decoder_undoes_do_not_matter() -> None:
    z, factors = latents(), np.array([10.0, 0.1, 2.0])[:, None, None]
    found = measure(z * factors + 5, lambda x: clipped((x - 5) / torch.from_numpy(factors)))
    assert found.value == pytest.approx(measure(z, clipped).value, rel=1e-9)


def test_tokens_reach_the_decoder_in_its_layout() -> None:
    z = latents()
    tokens = z.reshape(len(z), C, -1).transpose(0, 2, 1)

    def decode(x: Tensor) -> Tensor:
        assert x.shape[1:] == (SIDE**2, C)
        return clipped(x.transpose(1, 2).unflatten(2, (SIDE, SIDE)))

    found = measure(tokens, decode).value
    assert found == pytest.approx(measure(z, clipped).value, rel=0.05)


def test_numpy_decoders_and_features_do() -> None:
    found = measure(latents(), lambda z: clipped(z).numpy(), extractor=lambda images: halves(images).numpy())
    assert found.to_json() == measure(latents(), clipped, extractor=lambda images: halves(images)).to_json()


def test_limit_measures_some_with_the_noise_they_have_among_all() -> None:
    z = latents()
    found = measure(z, linear, limit=10)
    assert found.n == 10 and found.value == measure(z, linear, limit=10).value
    assert found.value == pytest.approx(measure(z, linear).value, rel=0.1)


def test_interval_is_the_bootstrap_over_images() -> None:
    found = measure(latents(300), clipped)
    assert found.interval == tuple(np.percentile(found.replicates, (2.5, 97.5)))
    low, high = found.interval
    assert low < found.value < high < 1.1 * low


def test_names_of_the_judges_are_kept() -> None:
    class Named:
        name = "mae"

        def __call__(self, first: Tensor, second: Tensor) -> Tensor:
            return mean_absolute(first, second)

    found = measure(latents(), linear, perceptual=Named())
    assert list(found.companions) == ["mae at 0.1"] and found.details["perceptual_name"] == "mae"
    assert found.parameters["perceptual"] == "mae" and found.parameters["extractor"] is None


def test_what_limits_the_result_is_said() -> None:
    z = latents()
    z[:, 1] = 0.25
    assert measure(z, linear).warnings == ("1 of 3 channels are constant and get no noise",)
    one = measure(latents(1), linear)
    assert one.interval is None and one.replicates is None and "one image" in one.warnings[0]
    blind = measure(latents(), linear, extractor=lambda images: torch.ones(len(images), 2))
    assert "same features" in blind.warnings[0] and "features" not in blind.details
    spec = TokenizerSpec("toy", "test", "vq", "grid", channels=C, codebook_size=8)
    coded = latentlab.measure(
        "sensitivity",
        store=latentlab.ArrayLatents(latents(), spec=spec),
        decode=linear,
        perceptual=None,
        extractor=None,
    )
    assert "decoded without looking up a code again" in coded.warnings[0]


def test_a_decoder_that_rounds_to_the_nearest_code_is_said_to_ignore_small_noise() -> None:
    snapped = measure(latents(), lambda z: linear(z.round()), level=1e-6, levels=(1e-6,))
    assert snapped.value == 0 and "nearest code" in snapped.warnings[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"level": 0.0}, "noise levels must be positive numbers"),
        ({"levels": (0.1, float("nan"))}, "noise levels must be positive"),
        ({"limit": 0}, "limit must be at least 1, got 0"),
        ({"perceptual": "lpipz"}, "unknown perceptual distance 'lpipz'"),
    ],
)
def test_wrong_options_are_refused(options: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        measure(latents(), linear, **options)


def test_latents_and_decoders_that_cannot_be_measured_are_refused() -> None:
    with pytest.raises(UserError, match="do not vary at all"):
        measure(np.ones((4, C, SIDE, SIDE)), linear)
    with pytest.raises(UserError, match="decodes to NaN"):
        measure(latents(), lambda z: linear(z) * float("nan"))
    with pytest.raises(UserError, match=r"decode must give images \[b,3,H,W\], got shape \[32, 192\]"):
        measure(latents(), lambda z: linear(z).flatten(1))
    z = latents()
    z[3, 0, 0, 0] = np.nan
    with pytest.raises(UserError, match="image 3"):
        measure(z, linear)
    with pytest.raises(UserError, match="needs decode"):
        latentlab.measure("sensitivity", latents())


def test_embedded_tokenizer_with_the_default_judges() -> None:
    tokenizer, images = latentlab.load_tokenizer("ae"), latentlab.open_data("fashion:test", limit=12)
    z = tokenizer.encode(images.images(np.arange(12)).float() / 127.5 - 1)
    found = latentlab.measure("sensitivity", z, tokenizer=tokenizer, levels=(0.5,))
    assert 0 < found.interval[0] < found.value < found.interval[1]
    for key in ("pixels", "perceptual", "features"):
        assert (np.diff(found.details[key]) > 0).all()
