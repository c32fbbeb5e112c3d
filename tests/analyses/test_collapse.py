"""The collapse measurement and its runs, on tokenizers whose arithmetic can be followed: block means, and their palette."""

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import latentlab
from analyses.collapse_run import (
    SETS,
    VIEWS,
    Setting,
    choose_images,
    make_view_sets,
    positions_of,
    run_bottleneck,
    standardised_positions,
)
from analyses.intervals import percentile_interval
from latentlab.errors import UserError
from latentlab.pixels import ArrayPixels
from latentlab.quality.perceptual import perceptual_distance

Images = Callable[[Tensor], Tensor]
PALETTE = torch.cartesian_prod(*[torch.tensor([-0.8, 0.0, 0.8])] * 3)


def encode(images: Tensor) -> Tensor:
    """Means of blocks of 4x4 pixels: [b,3,6,6] of [b,3,24,24]."""
    return F.avg_pool2d(images, 4)


def decode(latents: Tensor) -> Tensor:
    return F.interpolate(latents, scale_factor=4.0, mode="nearest")


def encode_ids(images: Tensor) -> Tensor:
    """The nearest of 27 colours for every block."""
    means = encode(images).movedim(1, -1)
    return PALETTE[torch.cdist(means.flatten(0, 2), PALETTE).argmin(1)].view(means.shape).movedim(-1, 1)


@pytest.fixture(scope="module")
def images() -> ArrayPixels:
    """Twelve smooth colour images of 24x24 pixels."""
    noise = torch.randn(12, 3, 5, 5, generator=torch.Generator().manual_seed(0))
    return ArrayPixels(torch.tanh(F.interpolate(noise, size=(24, 24), mode="bicubic", align_corners=False)))


def measure(images: ArrayPixels | None, **options: Any) -> latentlab.Measurement:
    given = {"encode": encode, "decode": decode, "vocabulary": 128, "subjects": 2, "iterations": 60}
    return latentlab.measure("collapse", images=images, **{**given, **options})


# --- the measurement ------------------------------------------------------------------------------------------------


def test_without_normalisation_a_wide_bottleneck_loses_nothing(images: ArrayPixels) -> None:
    """3 channels through 4 free numbers come back; through one circle, which has one degree of freedom, they do not."""
    free = measure(images, dims=4, sphere="none", patch=1, iterations=300, subjects=1)
    circle = measure(images, dims=2, patch=1, iterations=300, subjects=1)
    assert free.value < 0.05 * circle.value
    assert free.value < 0.05 * free.companions["to another view"].value


def test_ids_are_given_back(images: ArrayPixels) -> None:
    found = measure(images, encode=encode_ids, codebook=PALETTE, dims=8, iterations=250, subjects=1)
    assert found.value == pytest.approx(0, abs=1e-6) and found.companions["token accuracy"].value == 1
    assert found.variant == "st_lpips, ids through 8-D, circles" and found.direction == "none"
    assert "memorises at most" in found.warnings[1]
    assert found.parameters["vocabulary"] == 27 and found.parameters["parameters"] == 2 * 27 * 8


def test_what_is_reported(images: ArrayPixels) -> None:
    found = measure(images)
    assert found.variant == "st_lpips, standardised vectors through 6-D, circles"
    assert found.n == 2 and found.details["per_image"].mean() == pytest.approx(found.value)
    assert found.replicates is not None and found.replicates.shape == (1000,)
    assert found.interval == percentile_interval(found.replicates, 2)
    assert "2 images only: the interval over them is rough" in found.warnings
    details = found.details
    assert details["iteration"].tolist() == [0, 50, 60]
    assert details["to_reconstruction"][-1] == pytest.approx(found.value)
    assert details["to_reconstruction"][0] > details["to_reconstruction"][-1]
    assert details["latent_norm"] == pytest.approx(3**0.5)
    assert {"heldout_views_to_reconstruction", "heldout_images_to_view", "other_view", "uninformed"} <= set(details)
    assert found.parameters["patch"] == 2  # 12 numbers
    assert found.parameters["parameters"] == 2 * (128 * 6 // 18) * 18
    latentlab.Measurement.from_dict(found.to_dict())


def test_networks_in_training_do(images: ArrayPixels) -> None:
    """Their parameters require gradients, and what they give does."""
    down, up = torch.nn.Conv2d(3, 4, 4, stride=4), torch.nn.ConvTranspose2d(4, 3, 4, stride=4)
    frozen = [copy.deepcopy(network).requires_grad_(False) for network in (down, up)]
    found, expected = (measure(images, encode=e, decode=d, iterations=3) for e, d in ((down, up), frozen))
    assert found.value == expected.value


def test_tokenizers_that_give_no_numbers_are_named(images: ArrayPixels) -> None:
    with pytest.raises(UserError, match="encodes views to NaN"):
        measure(images, encode=lambda x: encode(x) * float("nan"))
    with pytest.raises(UserError, match=r"originals' shape \[8, 3, 24, 24\], got \[8, 3, 12, 12\]"):
        measure(images, decode=lambda z: decode(z)[..., ::2, ::2])


def test_same_seed_same_numbers(images: ArrayPixels) -> None:
    first, again, other = (measure(images, seed=seed, subjects=1) for seed in (3, 3, 4))
    assert first.to_dict() == again.to_dict()
    assert first.value != other.value
    assert first.interval is None and "one image only" in first.warnings[0]


def test_scaling_and_shifting_channels_changes_nothing(images: ArrayPixels) -> None:
    plain = measure(images, subjects=1)
    stretched = measure(images, subjects=1, encode=lambda x: encode(x) * 40 + 7, decode=lambda z: decode((z - 7) / 40))
    assert stretched.value == pytest.approx(plain.value, rel=1e-3)


def test_card() -> None:
    card = latentlab.measurements()["collapse"]
    assert card.on_request and card.better == "none" and set(card.needs) == {"images", "encode", "decode"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dims": 5}, "sphere='pairs' needs an even number of dimensions, got 5"),
        ({"subjects": 12}, "12 images to study and at least 1 to hold out make 13, and the set has 12"),
        ({"subjects": 0}, "at least 1 image, got 0"),
        ({"iterations": 0}, "iterations must be at least 1, got 0"),
        ({"patch": 4}, "a grid of 6x6 cannot be cut into patches of 4x4"),
        ({"patch": 2, "codebook": PALETTE, "encode": encode_ids}, "patch is for continuous latents"),
        ({"sphere": "hole"}, "unknown sphere 'hole'. Did you mean whole"),
        ({"perceptual": "lpisp"}, "unknown perceptual distance 'lpisp'. Did you mean lpips"),
    ],
)
def test_mistakes(images: ArrayPixels, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        measure(images, **options)


def test_images_are_needed() -> None:
    with pytest.raises(UserError, match="'collapse' needs images"):
        measure(None)


def test_one_image_cannot_be_studied(images: ArrayPixels) -> None:
    with pytest.raises(UserError, match="make 2, and the set has 1: give more images"):
        measure(ArrayPixels(images.take(slice(0, 1))), subjects=1)


# --- views and runs -------------------------------------------------------------------------------------------------


def test_images_are_chosen_apart_and_steadily(images: ArrayPixels) -> None:
    few, others = choose_images(images, 2)
    more, _ = choose_images(images, 3)
    assert len(few) == 2 and len(others) == VIEWS and not set(few) & set(others) and set(few) < set(more)


def test_views_do_not_depend_on_the_tokenizer(images: ArrayPixels) -> None:
    first = make_view_sets(images, 0, np.arange(4, 9), encode, decode, seed=0)
    second = make_view_sets(images, 0, np.arange(4, 9), encode_ids, decode, seed=0)
    other = make_view_sets(images, 1, np.arange(4, 9), encode, decode, seed=0)
    assert tuple(first) == SETS
    for name in SETS:
        assert first[name].views.shape == (VIEWS, 3, 24, 24)
        assert torch.equal(first[name].views, second[name].views)
        assert torch.equal(first[name].reconstructions, decode(encode(first[name].views)))
    assert not torch.equal(first["fitted"].views, first["heldout_views"].views)
    assert not torch.equal(first["fitted"].views, other["fitted"].views)
    assert len({view.sum().item() for view in first["heldout_images"].views}) == VIEWS  # five images, eight views


def test_standardised_over_the_fitted_views(images: ArrayPixels) -> None:
    doubled, halved = lambda x: torch.cat([encode(x), encode(x) * 0 + 5], 1), lambda z: decode(z[:, :3])
    sets = make_view_sets(images, 0, np.arange(4, 9), doubled, halved, 0)
    rows = standardised_positions(sets, None, 128).rows(sets["fitted"].latents)
    torch.testing.assert_close(rows.mean(0), torch.zeros(6), atol=1e-5, rtol=0)
    torch.testing.assert_close(rows.std(0), torch.tensor([1.0, 1, 1, 0, 0, 0]), atol=1e-5, rtol=0)


def test_references_and_unseen_ids(images: ArrayPixels) -> None:
    distance = perceptual_distance("st_lpips")
    sets = make_view_sets(images, 0, np.arange(4, 9), encode_ids, decode, seed=0)
    positions = positions_of(sets, PALETTE, None, 27)
    run = run_bottleneck(sets, positions, Setting(2), decode, distance, iterations=1)
    own, ids = sets["fitted"].reconstructions, positions.rows(sets["fitted"].latents)
    pairs = [(i, j) for i in range(VIEWS) for j in range(VIEWS) if i != j]
    distances = distance(own[[i for i, _ in pairs]], own[[j for _, j in pairs]])
    # Opposite views are counted twice among the turns, so the mean is close to that over all pairs but not equal to it.
    assert run.references["other_view"] == pytest.approx(float(distances.mean()), rel=0.1)
    blank = PALETTE[ids.mode().values].view(1, 3, 1, 1).expand_as(own)
    assert run.references["uninformed"] == pytest.approx(float(distance(blank, own).mean()), rel=1e-4)
    views = sets["heldout_views"].views
    assert run.references["tokenizer_heldout_views"] == pytest.approx(
        float(distance(decode(encode_ids(views)), views).mean()), rel=1e-4
    )
    heldout = positions.rows(sets["heldout_views"].latents)
    assert run.unseen["heldout_views"] == pytest.approx(np.mean([int(i) not in ids.tolist() for i in heldout]))
    assert run.distinct == len(set(ids.tolist())) and run.positions == VIEWS * 36
    assert run.pictures.shape == (3, 4, 3, 24, 24)
    torch.testing.assert_close(run.pictures[1], own[:4])
