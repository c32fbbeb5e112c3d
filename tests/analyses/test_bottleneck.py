"""The two bottlenecks: published numbers of parameters, norms, gradients, what they can and cannot learn."""

import math

import pytest
import torch
import torch.nn.functional as F

from analyses.bottleneck import (
    CODES,
    Bottleneck,
    ContinuousBottleneck,
    DiscreteBottleneck,
    SphereNorm,
    fit,
    hidden_width,
)
from analyses.positions import CodePositions, PatchPositions, usual_patch
from latentlab.errors import UserError


def seeded(build: type[Bottleneck], *arguments: object) -> Bottleneck:
    torch.manual_seed(0)
    return build(*arguments)


def trained(bottleneck: Bottleneck, rows: torch.Tensor, iterations: int) -> float:
    """The loss after training."""
    assert list(fit(bottleneck, rows, iterations))[-1] == iterations
    with torch.no_grad():
        return float(bottleneck.loss(rows))


# --- counts ---------------------------------------------------------------------------------------------------------


def test_published_numbers_of_parameters() -> None:
    """MIND: about 196K both, hidden width 4468; with biases the first would have 205,550."""
    assert hidden_width(16, 6, CODES) == 4468
    assert ContinuousBottleneck(16, 6, 4468).parameter_count == 196_592
    assert DiscreteBottleneck(16384, 6).parameter_count == 196_608


@pytest.mark.parametrize("width", [8, 16, 32, 128])
@pytest.mark.parametrize("dims", [2, 4, 6, 8, 16])
def test_both_have_as_many_parameters_as_whole_units_allow(width: int, dims: int) -> None:
    hidden = hidden_width(width, dims, 512)
    missing = 2 * 512 * dims - ContinuousBottleneck(width, dims, hidden, "whole").parameter_count
    assert 0 <= missing < 2 * (width + dims)


def test_too_few_codes_to_match() -> None:
    with pytest.raises(UserError, match="8 codes have too few parameters to match with latents of 512 numbers"):
        hidden_width(512, 6, 8)


# --- sphere ---------------------------------------------------------------------------------------------------------


def test_norms() -> None:
    """Pairs have norm 1 each, so 6 numbers have norm sqrt(3); one sphere has the same norm; without, lengths stay."""
    x = torch.randn(50, 6, generator=torch.Generator().manual_seed(0))
    pairs = SphereNorm(6, "pairs")(x)
    torch.testing.assert_close(pairs.unflatten(1, (3, 2)).norm(dim=2), torch.ones(50, 3))
    torch.testing.assert_close(pairs[:, 2:4], F.normalize(x[:, 2:4], dim=1))  # neighbours are pairs
    torch.testing.assert_close(SphereNorm(6, "whole")(x).norm(dim=1), torch.full((50,), math.sqrt(3)))
    assert SphereNorm(6, "none")(x) is x


@pytest.mark.parametrize(
    ("dims", "sphere", "message"),
    [
        (5, "pairs", "'pairs' needs an even number of dimensions, got 5: use 6 or 'whole'"),
        (0, "whole", "at least 1 dimension, got 0"),
        (6, "circles", "unknown sphere 'circles'"),
    ],
)
def test_impossible_spheres(dims: int, sphere: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        SphereNorm(dims, sphere)  # type: ignore[arg-type]


# --- training -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sphere", ["pairs", "whole", "none"])
def test_gradients_reach_every_weight(sphere: str) -> None:
    generator = torch.Generator().manual_seed(0)
    for bottleneck, rows in (
        (seeded(ContinuousBottleneck, 5, 4, 7, sphere), torch.randn(30, 5, generator=generator)),
        (seeded(DiscreteBottleneck, 9, 4, sphere), torch.arange(9)),
    ):
        bottleneck.loss(rows).backward()
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in bottleneck.parameters())


def test_each_distinct_id_once_is_the_mean_over_all_positions() -> None:
    bottleneck = seeded(DiscreteBottleneck, 12, 4, "pairs")
    ids = torch.randint(0, 6, (200,), generator=torch.Generator().manual_seed(0))
    logits = bottleneck.decoder(bottleneck.latents(ids))
    torch.testing.assert_close(bottleneck.loss(ids), F.cross_entropy(logits, ids))
    assert torch.equal(bottleneck.predict(ids), logits.argmax(1))


def test_ids_are_memorised() -> None:
    ids = torch.arange(40).repeat(3)
    bottleneck = seeded(DiscreteBottleneck, 64, 6, "pairs")
    loss = trained(bottleneck, ids, 400)
    assert loss < 1 and (bottleneck.predict(ids) == ids).double().mean() > 0.97
    assert bottleneck.latents(ids).norm(dim=1).detach() == pytest.approx(math.sqrt(3))


def test_without_normalisation_continuous_latents_pass_better() -> None:
    """Three circles have 3 degrees of freedom, 6 free numbers have 6: on 6-D Gaussian vectors the sphere must cost."""
    rows = torch.randn(256, 6, generator=torch.Generator().manual_seed(0))
    losses = {s: trained(seeded(ContinuousBottleneck, 6, 6, 32, s), rows, 300) for s in ("pairs", "whole", "none")}
    assert losses["none"] < 0.01 < 0.05 < losses["whole"] < losses["pairs"] < 1


def test_evaluation_times() -> None:
    rows = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    assert list(fit(seeded(ContinuousBottleneck, 3, 2, 3), rows, 120)) == [0, 50, 100, 120]
    assert list(fit(seeded(ContinuousBottleneck, 3, 2, 3), rows, 2, every=1)) == [0, 1, 2]


def test_divergence_is_reported() -> None:
    with pytest.raises(UserError, match="diverged after 0 iterations"):
        list(fit(seeded(ContinuousBottleneck, 3, 2, 3), torch.full((4, 3), math.nan), 5))


# --- positions ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("shape", "patch"), [((4, 6, 8), 2), ((4, 6, 8), 1), ((3, 5, 5), 5), ((7, 4), 1)])
def test_patches_go_there_and_back(shape: tuple[int, ...], patch: int) -> None:
    z = torch.randn(3, *shape, generator=torch.Generator().manual_seed(0))
    channels = shape[0] if len(shape) == 3 else shape[1]
    shift, scale = torch.linspace(-1, 1, channels), torch.linspace(0.5, 2, channels)
    positions = PatchPositions(shape, patch, shift, scale, CODES)
    rows = positions.rows(z)
    assert rows.shape == (z.numel() // (channels * patch**2), channels * patch**2)
    torch.testing.assert_close(positions.latents(rows), z)


def test_a_patch_is_a_square_of_neighbours() -> None:
    """4 x 32 x 32 in patches of 2: 256 positions of 16 numbers, as in the published study."""
    z = torch.arange(4 * 32 * 32).float().view(1, 4, 32, 32)
    positions = PatchPositions((4, 32, 32), 2, torch.zeros(1), torch.full((1,), 0.5), CODES)
    rows = positions.rows(z)
    assert rows.shape == (256, 16) and positions.bottleneck(6, "pairs").parameter_count == 196_592
    assert rows[17].tolist() == (z[0, :, 2:4, 2:4] * 0.5).flatten().tolist()


@pytest.mark.parametrize("shape", [(5, 2, 3), (6, 5)])
def test_ids_go_there_and_back(shape: tuple[int, ...]) -> None:
    """Also when codes lie so close together that quick distances cannot tell them apart."""
    generator = torch.Generator().manual_seed(0)
    codebook = 100 + torch.randn(30, 5, generator=generator) * 1e-3
    ids = torch.randint(0, 30, (4 * math.prod(shape) // 5,), generator=generator)
    positions = CodePositions(shape, codebook)
    latents = positions.latents(ids)
    assert latents.shape == (4, *shape) and torch.equal(positions.rows(latents), ids)
    if len(shape) == 3:
        assert torch.equal(latents[0, :, 1, 2], codebook[ids[5]])


def test_uninformed_rows_are_the_mean_and_the_most_frequent_id() -> None:
    assert CodePositions((1, 1, 1), torch.zeros(9, 1)).uninformed(torch.tensor([3, 8, 8, 1])).tolist() == [8] * 4
    positions = PatchPositions((2, 1, 1), 1, torch.zeros(1), torch.ones(1), CODES)
    assert positions.uninformed(torch.tensor([[0.0, 2.0], [4.0, 4.0]])).tolist() == [[2.0, 3.0]] * 2


@pytest.mark.parametrize(
    ("shape", "cells", "patch"),
    [
        ((4, 32, 32), 256, 2),  # SD-VAE with IBQ, as published
        ((4, 32, 32), None, 2),
        ((32, 32, 32), None, 1),  # TAEF2: its channels already are a large unit
        ((8, 8, 8), 64, 1),  # the embedded pair
        ((16, 16, 16), 1024, 1),  # finer ids: nothing to join
        ((128, 32), 256, 1),
    ],
)
def test_usual_patches(shape: tuple[int, ...], cells: int | None, patch: int) -> None:
    assert usual_patch(shape, cells) == patch


@pytest.mark.parametrize(("shape", "patch"), [((4, 8, 6), 4), ((128, 32), 2), ((4, 8, 8), 0)])
def test_patches_that_do_not_fit(shape: tuple[int, ...], patch: int) -> None:
    with pytest.raises(UserError, match=f"cannot be cut into patches of {patch}x{patch}"):
        PatchPositions(shape, patch, torch.zeros(1), torch.ones(1), CODES)
