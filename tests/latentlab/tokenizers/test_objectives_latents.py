"""Objectives on latents alone: noise, masking, local correlation, transforms, low-pass; and draws that ranks share."""

import numpy as np
import pytest
import scipy.fft
import torch
from torch import Tensor

from analyses.affine import Transform
from latentlab.errors import UserError
from latentlab.tokenizers.objectives.draws import BatchGenerator, normal, uniform
from latentlab.tokenizers.objectives.equivariance import draw_transform, transformed_pair
from latentlab.tokenizers.objectives.latent_masking import LatentMasking
from latentlab.tokenizers.objectives.latent_noise import LatentNoise
from latentlab.tokenizers.objectives.local_correlation import correlation_loss, local_correlation
from latentlab.tokenizers.objectives.low_pass import draw_band, low_pass
from latentlab.tokenizers.objectives.settings import (
    EquivarianceSettings,
    LowPassSettings,
    MaskingSettings,
    NoiseSettings,
)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def latents(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=seeded(seed), dtype=torch.float64)


# --- draws ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("draw", [normal, uniform])
def test_parts_of_a_batch_draw_what_the_whole_does(draw: object) -> None:
    assert callable(draw)
    whole, second = draw((6, 5, 3), seeded()), draw((6, 2), generator := seeded(1))
    parts = [draw((n, 5, 3), BatchGenerator.of(seeded(), first, 6)) for first, n in ((0, 2), (2, 1), (3, 3))]
    assert torch.equal(torch.cat(parts), whole)
    after = BatchGenerator.of(seeded(1), 2, 6)
    assert torch.equal(draw((2, 2), after), second[2:4])
    assert torch.equal(torch.rand(3, generator=after), torch.rand(3, generator=generator))


# --- noise ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(3, 2, 40, 40), (3, 1600, 2)])
def test_noise_has_the_size_of_the_latents_spread(shape: tuple[int, ...]) -> None:
    z = 5 * latents(*shape) + 100
    change = LatentNoise(NoiseSettings(sigma=0.3))(z, seeded(1)) - z
    assert float(change.std()) == pytest.approx(1.5, rel=0.03) and abs(float(change.mean())) < 0.1


def test_noise_scales_with_the_latent_and_lets_the_gradient_through() -> None:
    z = latents(2, 3, 4, 4).requires_grad_()
    noise = LatentNoise(NoiseSettings(sigma=0.5))
    noisy = noise(z, seeded())
    torch.testing.assert_close(noise(10 * z, seeded()), 10 * noisy, rtol=1e-5, atol=1e-5)
    (gradient,) = torch.autograd.grad(noisy.sum(), z)
    assert torch.equal(gradient, torch.ones_like(z))


# --- masking ----------------------------------------------------------------------------------------------------------


def test_masking_hits_the_right_shares() -> None:
    masking = LatentMasking(MaskingSettings(probability=0.25, noise_ratio=0.125, mask_ratio=0.25))
    noisy, masked = masking.choose(2000, 64, seeded())
    assert not (noisy & masked).any()
    hit = masked.any(1)
    assert float(hit.double().mean()) == pytest.approx(0.25, abs=0.03)
    assert (noisy[hit].sum(1) == 8).all() and (masked[hit].sum(1) == 16).all() and not noisy[~hit].any()
    assert float(noisy.double().mean(0).std()) < 0.01  # every cell as often as every other


@pytest.mark.parametrize("grid", [True, False])
def test_masked_cells_are_zero_or_noise_and_have_no_gradient(grid: bool) -> None:
    settings = MaskingSettings(probability=1, noise_ratio=0.25, mask_ratio=0.5)
    z = latents(3, 5, 4, 4) if grid else latents(3, 16, 5)
    z.requires_grad_()
    masking = LatentMasking(settings)
    damaged = masking(z, seeded())
    noisy, masked = masking.choose(3, 16, seeded())
    cells = damaged.flatten(2) if grid else damaged.transpose(1, 2)
    before = z.flatten(2) if grid else z.transpose(1, 2)
    (gradient,) = torch.autograd.grad(damaged.sum(), z)
    pulled = gradient.flatten(2) if grid else gradient.transpose(1, 2)
    kept = ~noisy & ~masked
    assert damaged.shape == z.shape
    assert not cells.movedim(1, 2)[masked].any() and torch.equal(cells.movedim(1, 2)[kept], before.movedim(1, 2)[kept])
    assert (cells.movedim(1, 2)[noisy] != before.movedim(1, 2)[noisy]).all()
    assert (pulled.movedim(1, 2)[kept] == 1).all() and not pulled.movedim(1, 2)[~kept].any()


def test_noise_of_masking_has_mean_and_spread_of_the_image() -> None:
    z = torch.cat([3 + 2 * latents(1, 1, 200, 200), -5 + 0.1 * latents(1, 1, 200, 200, seed=1)])
    damaged = LatentMasking(MaskingSettings(probability=1, noise_ratio=1, mask_ratio=0))(z, seeded())
    for image, mean, spread in zip(damaged, (3, -5), (2, 0.1), strict=True):
        assert float(image.mean()) == pytest.approx(mean, abs=3 * spread / 200)
        assert float(image.std()) == pytest.approx(spread, rel=0.02)


# --- local correlation ------------------------------------------------------------------------------------------------


def slow_correlation(z: np.ndarray) -> float:
    centred = z - z.mean((1, 2), keepdims=True)
    _, h, w = z.shape
    found = []
    for i in range(h):
        for j in range(w):
            for k, m in ((i + 1, j), (i, j + 1)):
                if k < h and m < w:
                    a, b = centred[:, i, j], centred[:, k, m]
                    found.append(a @ b / np.linalg.norm(a) / np.linalg.norm(b))
    return float(np.mean(found))


def test_local_correlation_equals_the_slow_version() -> None:
    z = latents(2, 3, 4, 5)
    wanted = [slow_correlation(image.numpy()) for image in z]
    assert local_correlation(z).tolist() == pytest.approx(wanted, rel=1e-5)
    torch.testing.assert_close(local_correlation(3 * z + 7), local_correlation(z), rtol=1e-4, atol=1e-5)


def test_a_checkerboard_is_anticorrelated() -> None:
    board = torch.tensor([[1.0, -1.0], [-1.0, 1.0]]).repeat(2, 2)[None, None].expand(1, 3, 4, 4)
    assert float(local_correlation(board)) == pytest.approx(-1)
    assert float(correlation_loss(board, 0.6)) == pytest.approx(1.6)


def test_correlation_rises_to_the_threshold_and_stays() -> None:
    z = torch.nn.Parameter(latents(2, 4, 6, 6).float())
    optimiser = torch.optim.Adam([z], lr=0.05)
    for _ in range(120):
        optimiser.zero_grad()
        correlation_loss(z, 0.6).backward()
        optimiser.step()
    assert (local_correlation(z) > 0.58).all() and (local_correlation(z) < 0.75).all()
    satisfied = torch.arange(16.0).view(1, 1, 4, 4).expand(1, 2, 4, 4).clone().requires_grad_()
    (gradient,) = torch.autograd.grad(correlation_loss(satisfied, 0.1), satisfied)
    assert not gradient.any()


def test_gradient_of_the_correlation() -> None:
    z = latents(1, 2, 3, 3).requires_grad_()
    (found,) = torch.autograd.grad(correlation_loss(z, 0.9), z)
    for place in ((0, 0, 0, 0), (0, 1, 1, 2), (0, 0, 2, 1)):
        moved = z.detach().clone()
        values = []
        for sign in (1, -1):
            moved[place] = z.detach()[place] + sign * 0.01
            values.append(0.9 - slow_correlation(moved[0].numpy()))
        assert float(found[place]) == pytest.approx((values[0] - values[1]) / 0.02, rel=0.02, abs=1e-4)


def test_sequences_have_no_neighbours() -> None:
    with pytest.raises(UserError, match="on a grid"):
        local_correlation(latents(2, 8, 4))


# --- transforms -------------------------------------------------------------------------------------------------------


def test_all_transforms_are_drawn() -> None:
    settings = EquivarianceSettings(transforms=("scale", "rotate", "flip"), smallest_scale=0.25)
    drawn = {draw_transform(settings, 8, seeded(i)) for i in range(200)}
    assert {t.amount for t in drawn if t.kind == "rotate"} == {1, 2, 3}
    assert {t.amount for t in drawn if t.kind == "flip"} == {-1, -2}
    assert {t.amount * 8 for t in drawn if t.kind == "scale"} == {2, 3, 4, 5, 6, 7}
    only = {draw_transform(EquivarianceSettings(transforms=("flip",)), 8, seeded(i)).kind for i in range(20)}
    assert only == {"flip"}


def test_average_pooling_has_nothing_to_learn_from_turns_and_flips() -> None:
    images = latents(2, 3, 16, 16)
    z = torch.nn.functional.avg_pool2d(images, 4)
    for transform in (Transform("rotate", 1), Transform("rotate", 3), Transform("flip", -1), Transform("flip", -2)):
        turned, wanted = transformed_pair(z, images, transform)
        torch.testing.assert_close(torch.nn.functional.avg_pool2d(wanted, 4), turned)


# --- low-pass ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("h", "w", "band"), [(8, 8, 0.5), (6, 9, 0.3), (4, 4, 0.01)])
def test_low_pass_equals_scipys_cosine_transform(h: int, w: int, band: float) -> None:
    z = latents(2, 3, h, w)
    spectrum = scipy.fft.dctn(z.numpy(), axes=(2, 3), norm="ortho")
    spectrum[:, :, max(1, round(band * h)) :] = 0
    spectrum[:, :, :, max(1, round(band * w)) :] = 0
    wanted = scipy.fft.idctn(spectrum, axes=(2, 3), norm="ortho")
    np.testing.assert_allclose(low_pass(z, band).numpy(), wanted, atol=1e-12)


def test_low_pass_is_a_projection_with_its_own_gradient() -> None:
    z = latents(1, 2, 8, 8).requires_grad_()
    once = low_pass(z, 0.5)
    torch.testing.assert_close(low_pass(once, 0.5), once)
    torch.testing.assert_close(low_pass(z, 1.0), z)
    direction = latents(1, 2, 8, 8, seed=1)
    (gradient,) = torch.autograd.grad((once * direction).sum(), z)
    torch.testing.assert_close(gradient, low_pass(direction, 0.5))


def test_bands_are_whole_numbers_of_the_latents_frequencies() -> None:
    drawn = [draw_band(LowPassSettings(smallest_band=0.3), 8, seeded(i)) for i in range(200)]
    assert {round(8 * band, 9) for band in drawn} == {2, 3, 4, 5, 6, 7}
    assert {draw_band(LowPassSettings(smallest_band=0.9), 4, seeded(i)) for i in range(20)} == {0.75}


@pytest.mark.parametrize("factor", [4, 16])
def test_latent_and_image_keep_the_same_share_of_their_frequencies(factor: int) -> None:
    for seed in range(30):
        band = draw_band(LowPassSettings(), 8, seeded(seed))
        kept = [int(torch.linalg.matrix_rank(low_pass(torch.eye(s, dtype=torch.float64)[None, None], band)[0, 0]))
                for s in (8, 8 * factor)]  # fmt: skip
        assert kept[1] == factor * kept[0] < factor * 8
