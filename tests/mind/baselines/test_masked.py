"""Schedules, masks and configurations of masked generators against closed forms, counting and the paper's tables."""

import math
from collections import Counter
from typing import Any, get_args

import pytest
import torch

from latentlab.errors import UserError
from mind import noise
from mind.baselines.masked import draw_mask, masked_count, masked_share, mdm_weight, ranks
from mind.baselines.masked_config import FAMILIES, MaskedConfig, MaskSchedule, read_config_fields, sized
from mind.baselines.masked_objective import draw_noise
from mind.baselines.masked_settings import FAMILY_SAMPLERS, MaskedSamplerSettings

SCHEDULES = get_args(MaskSchedule)
INVERSES = {
    "linear": lambda g: g,
    "cosine": lambda g: 1 - 2 / math.pi * math.acos(g),
    "exp": lambda g: -math.log(1 - g) / 5,
    "log_exp": lambda g: (math.exp(5 * g) - 1) / (math.exp(5) - 1),
}


def uniform(rows: int, columns: int) -> torch.Tensor:
    return noise.uniform(0, "test", torch.arange(rows), 0, (columns,))


def test_exp_schedule_has_the_published_values() -> None:
    shares = masked_share("exp", torch.tensor([0.2, 0.4, 1.0], dtype=torch.float64))
    assert shares.tolist() == pytest.approx([0.632121, 0.864665, 0.993262], abs=5e-7)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_schedule_is_inverted_by_its_closed_form(schedule: MaskSchedule) -> None:
    for share in (0.05, 0.3, 0.7, 0.95):
        t = torch.tensor([INVERSES[schedule](share)], dtype=torch.float64)
        assert float(masked_share(schedule, t)) == pytest.approx(share, abs=1e-12)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_schedule_starts_at_data_and_ends_masked(schedule: MaskSchedule) -> None:
    data, end = masked_share(schedule, torch.tensor([0.0, 1.0])).tolist()
    assert data == 0  # exactly: ceil(l gamma) would mask a token otherwise
    assert end == pytest.approx(0.993262 if schedule == "exp" else 1.0, abs=1e-6)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_mdm_weight_is_the_logarithmic_derivative(schedule: MaskSchedule) -> None:
    t = torch.linspace(0.01, 1.0, 50, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(masked_share(schedule, t).log().sum(), t)
    torch.testing.assert_close(mdm_weight(schedule, t.detach()), slope, rtol=1e-9, atol=1e-12)


def test_count_is_rounded_up_but_not_by_rounding_errors() -> None:
    shares = torch.tensor([0.0, 0.01, 0.5, 0.7, 0.71, 1.0], dtype=torch.float64)
    assert masked_count(10, shares).tolist() == [0, 1, 5, 7, 8, 10]


def test_exact_masks_have_the_count_and_every_set_is_as_likely() -> None:
    rows = 6000
    masks = draw_mask("exact", torch.full((rows,), 0.4, dtype=torch.float64), uniform(rows, 4))  # ceil(1.6) = 2
    assert (masks.sum(1) == 2).all()
    seen = Counter(tuple(row) for row in masks.tolist())
    assert len(seen) == 6
    chi_squared = sum((n - rows / 6) ** 2 / (rows / 6) for n in seen.values())
    assert chi_squared < 20.5  # 0.1% point with 5 degrees of freedom


def test_independent_masks_are_binomial() -> None:
    rows, tokens, share = 4000, 16, 0.3
    counts = draw_mask("independent", torch.full((rows,), share, dtype=torch.float64), uniform(rows, tokens)).sum(1)
    variance = tokens * share * (1 - share)
    assert float(counts.float().mean()) == pytest.approx(tokens * share, abs=4 * math.sqrt(variance / rows))
    assert float(counts.float().var()) == pytest.approx(variance, rel=0.1)


def test_each_image_has_its_own_share() -> None:
    masks = draw_mask("exact", torch.tensor([0.0, 0.25, 1.0], dtype=torch.float64), uniform(3, 8))
    assert masks.sum(1).tolist() == [0, 2, 8]


def test_ranks_with_ties_by_position() -> None:
    assert ranks(torch.tensor([[0.3, 0.1, 0.3, 0.2]])).tolist() == [[2, 0, 3, 1]]


def test_shapes_of_latents() -> None:
    grid = MaskedConfig(input=(8, 4), patch=2, in_channels=3)
    assert (grid.length, grid.patches, grid.token_width, grid.latent_shape) == (8, (4, 2), 12, (3, 8, 4))
    sequence = MaskedConfig(tokens=12, patch=2, in_channels=3)
    assert (sequence.length, sequence.token_width, sequence.latent_shape) == (6, 6, (12, 3))
    assert MaskedConfig(input=(8, 4), vocab_size=5).latent_shape == (8, 4)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"tokens": 8, "input": (2, 4)}, "either input"),
        ({"input": None}, "either input"),
        ({"patch": 3}, r"patch \(3\) must divide the latent's size \(16x16\)"),
        ({"heads": 7}, r"heads \(7\) must divide width \(768\)"),
        ({"patch": 2, "vocab_size": 9}, "patch must be 1"),
        ({"depth": 1}, "depth of at least 2"),
        ({"weighting": "mdm", "masking": "exact"}, "independent"),
        ({"widht": 3}, "widht"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_config_fields(fields)


def masks_of(config: MaskedConfig, images: int = 400) -> tuple[torch.Tensor, torch.Tensor]:
    """Return training times and masks of a model."""
    drawn = draw_noise(config, 0, "train", torch.arange(images), 0)
    return drawn.t, draw_mask(config.masking, masked_share(config.schedule, drawn.t), drawn.places)


def test_emigm_masks_each_token_by_itself_with_weight_one() -> None:
    config = sized("emigm-b", in_channels=1, head_copies=1)
    assert (config.weighting, config.mae, config.null_token) == ("one", True, "mask_token")
    t, masks = masks_of(config)
    assert 0.2 <= float(t.min()) < 0.22
    shares = 1 - torch.exp(-5 * t)
    deviation = (masks.float().mean(1) - shares) / (shares * (1 - shares) / 256).sqrt()
    assert float(deviation.abs().max()) < 5 and 0.8 < float(deviation.std()) < 1.2  # binomial, not exact


def test_maskgit_masks_the_count_of_its_cosine() -> None:
    """n = ceil(cos(pi/2 r) l) tokens for uniform r (arXiv 2202.04200, section 3.2); here r = 1-t."""
    config = sized("emigm-b", "maskgit", vocab_size=1024)
    assert (config.weighting, config.mae, config.class_tokens) == ("one", False, 1)
    t, masks = masks_of(config)
    assert float(t.min()) < 0.02
    counts = [math.ceil(256 * math.cos(math.pi / 2 * (1 - float(time)))) for time in t]
    assert masks.sum(1).tolist() == counts


def test_mar_masks_seven_tenths_or_more() -> None:
    """A masking ratio in [0.7, 1.0] (arXiv 2406.11838, section 4.2)."""
    config = sized("emigm-b", "mar", in_channels=1, head_copies=1)
    assert (config.weighting, config.mae, config.vocab_size, config.class_tokens) == ("one", True, None, 64)
    t, masks = masks_of(config)
    counts = masks.sum(1)
    assert 0.7 * 256 <= int(counts.min()) < 0.72 * 256 and int(counts.max()) > 0.98 * 256
    assert torch.equal(counts, torch.ceil(256 * t.double()).long())


def test_mdm_weighs_linear_times_by_their_inverse() -> None:
    config = sized("emigm-b", "mdm", vocab_size=1024)
    assert (config.schedule, config.masking, config.weighting, config.t_min) == ("linear", "independent", "mdm", 0.0)
    t, masks = masks_of(config)
    torch.testing.assert_close(mdm_weight("linear", t), 1 / t.double())
    assert abs(float((masks.float().mean(1) - t).mean())) < 0.01


def test_families_are_sampled_as_published() -> None:
    chosen = {family: MaskedSamplerSettings(**fields) for family, fields in FAMILY_SAMPLERS.items()}
    emigm, maskgit, mar, mdm = (chosen[family] for family in ("emigm", "maskgit", "mar", "mdm"))
    assert (emigm.reveal, emigm.head_sampler) == ("independent", "dpm_solver")
    assert (emigm.cfg_t_min, emigm.cfg_t_max, emigm.cfg_schedule) == (0.1, 0.3, "constant")
    assert (maskgit.reveal, maskgit.steps, maskgit.confidence_noise) == ("confidence", 8, 4.5)
    assert (mar.reveal, mar.schedule, mar.steps, mar.cfg_schedule) == ("random", "cosine", 64, "linear")
    assert (mar.head_sampler, mar.head_steps, mar.temperature) == ("ddpm", 100, 1.0)
    assert (mdm.reveal, mdm.schedule) == ("independent", None)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("emigm-m",), "emigm-m"),
        (("emigm-b", "magit"), "maskgit"),
        (("emigm-b", "maskgit"), "vocab_size"),
        (("emigm-b", "mdm"), "vocab_size"),
    ],
)
def test_unknown_or_impossible_models_are_refused(arguments: tuple[str, ...], message: str) -> None:
    with pytest.raises(UserError, match=message):
        sized(*arguments)


def test_mar_of_codes_is_refused() -> None:
    with pytest.raises(UserError, match="maskgit"):
        sized("emigm-b", "mar", vocab_size=10)


@pytest.mark.parametrize("name", ["name", "family"])
def test_a_field_called_like_an_argument_is_an_unknown_field(name: str) -> None:
    with pytest.raises(UserError, match=f"masked generator: {name}: Extra inputs are not permitted"):
        sized("emigm-b", **{name: "mar"})


def test_every_family_has_a_sampler() -> None:
    assert set(FAMILIES) == set(FAMILY_SAMPLERS)
    for fields in FAMILY_SAMPLERS.values():
        MaskedSamplerSettings(**fields)


@pytest.mark.parametrize(
    "fields", [{"stesp": 3}, {"steps": 0}, {"cfg_t_min": 0.5, "cfg_t_max": 0.4}, {"head_order": 4}]
)
def test_sampler_settings_that_cannot_be_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="masked sampler settings"):
        MaskedSamplerSettings(**fields)
