"""The sampler of masked generators: its distribution on an exact model, the published numbers, and what it promises its users."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from latentlab.errors import UserError
from mind import noise
from mind.baselines.categorical_head import CategoricalHead
from mind.baselines.diffusion_head import DiffusionHead, Prediction
from mind.baselines.masked import masked_share
from mind.baselines.masked_config import MaskedConfig
from mind.baselines.masked_network import MaskedTransformer
from mind.baselines.masked_objective import MaskedObjective, draw_noise
from mind.baselines.masked_sampler import counts_after, guidance_scale, sample_masked
from mind.baselines.masked_settings import MaskedSamplerSettings

TINY = {"tokens": 8, "num_classes": 3, "width": 16, "depth": 2, "heads": 2, "class_tokens": 1}
CODES = {**TINY, "vocab_size": 5}
LATENTS = {**TINY, "tokens": None, "input": (4, 2), "in_channels": 3, "head_depth": 1, "head_width": 8}
LABELS = [2, 0, 1, 3]


def tiny(fields: dict[str, Any], **more: Any) -> MaskedTransformer:
    torch.manual_seed(0)
    model = MaskedTransformer(MaskedConfig(**{**fields, **more})).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


def settings(**fields: Any) -> MaskedSamplerSettings:
    return MaskedSamplerSettings(**{"steps": 4, "cfg_scale": 1.0, **fields})


JOINT = torch.tensor([[0.30, 0.05, 0.05], [0.02, 0.20, 0.08], [0.10, 0.05, 0.15]], dtype=torch.float64)
"""p(x_0, x_1) of two tokens."""


class Exact(MaskedTransformer):
    """Answers with the conditionals of `JOINT` as hidden states; the head passes them on. Without class all codes are alike."""

    def __init__(self) -> None:
        super().__init__(MaskedConfig(**{**CODES, "tokens": 2, "vocab_size": 3, "width": 4, "mae": False}))
        self.head = Passing(self.config)

    def forward(self, tokens: Tensor, masked: Tensor, labels: Tensor) -> Tensor:
        rows = JOINT / JOINT.sum(1, keepdim=True)  # p(x_1 | x_0)
        columns = (JOINT / JOINT.sum(0)).T  # p(x_0 | x_1)
        first = torch.where(masked[:, 1:], JOINT.sum(1), columns[tokens[:, 1]])
        second = torch.where(masked[:, :1], JOINT.sum(0), rows[tokens[:, 0]])
        known = torch.stack([first, second], dim=1).log()
        return torch.where((labels == 3)[:, None, None], torch.zeros_like(known), known)


class Passing(CategoricalHead):
    def forward(self, z: Tensor) -> Tensor:
        return z.float()


def frequencies(n: int, chosen: MaskedSamplerSettings) -> Tensor:
    pairs = sample_masked(Exact(), torch.zeros(n, dtype=torch.long), chosen).latents
    counts = torch.bincount(3 * pairs[:, 0] + pairs[:, 1], minlength=9)
    return counts.view(3, 3).double() / n


@pytest.mark.parametrize("schedule", ["linear", "cosine", "exp", "log_exp"])
@pytest.mark.parametrize("steps", [1, 3])
def test_tokens_revealed_together_are_independent_others_are_not(schedule: Any, steps: int) -> None:
    """A token is revealed in step i with probability (gamma_t-gamma_s)/gamma_1, so both in one with the sum of its squares."""
    n, times = 20_000, torch.arange(steps, -1, -1, dtype=torch.float64) / steps
    shares = masked_share(schedule, times)
    together = float(((shares[:-1] - shares[1:]) / shares[0]).square().sum())
    expected = together * JOINT.sum(1)[:, None] * JOINT.sum(0) + (1 - together) * JOINT
    found = frequencies(n, settings(steps=steps, schedule=schedule))
    chi_squared = float(((found - expected).square() / expected).sum()) * n
    assert chi_squared < 26.1  # 0.1% point with 8 degrees of freedom


@pytest.mark.parametrize("reveal", ["random", "confidence"])
def test_one_token_at_a_time_samples_the_joint(reveal: Any) -> None:
    """Confidence looks at the draws before it decides which to keep, so it prefers likely codes: that is its point."""
    n = 20_000
    found = frequencies(n, settings(steps=2, reveal=reveal))
    chi_squared = float(((found - JOINT).square() / JOINT).sum()) * n
    assert (chi_squared < 26.1) == (reveal == "random")


def test_guidance_interval_has_three_of_sixteen_steps() -> None:
    chosen = MaskedSamplerSettings()
    ends = [(16 - i - 1) / 16 for i in range(16)]
    guided = [s for s in ends if guidance_scale(chosen, s, 0.5) != 1]
    assert guided == [0.25, 0.1875, 0.125]
    assert sample_masked(tiny(CODES, tokens=16), LABELS, chosen).evaluations == 19


def test_interval_ends_belong_to_it() -> None:
    chosen = settings(cfg_scale=2.0, cfg_t_min=0.1, cfg_t_max=0.3)
    assert [guidance_scale(chosen, s / 10, 0.5) for s in range(5)] == [1, 2, 2, 2, 1]


def test_linear_guidance_grows_with_what_is_revealed() -> None:
    chosen = settings(cfg_scale=3.0, cfg_t_min=0.0, cfg_t_max=1.0, cfg_schedule="linear")
    assert guidance_scale(chosen, 0.5, 0.25) == pytest.approx(2.5)


def test_guided_logits_are_a_power_of_the_probabilities() -> None:
    """Against a uniform model without class, scale w draws from p^w, normalised."""
    n = 20_000
    chosen = settings(steps=1, cfg_scale=2.0, cfg_t_min=0.0, cfg_t_max=1.0)
    found = frequencies(n, chosen)
    marginals = [JOINT.sum(1) ** 2, JOINT.sum(0) ** 2]
    expected = (marginals[0] / marginals[0].sum())[:, None] * (marginals[1] / marginals[1].sum())
    assert float(((found - expected).square() / expected).sum()) * n < 26.1


def test_temperature_sharpens_and_zero_takes_the_likeliest() -> None:
    n = 20_000
    found = frequencies(n, settings(steps=1, temperature=0.5))
    marginals = [JOINT.sum(1) ** 2, JOINT.sum(0) ** 2]
    expected = (marginals[0] / marginals[0].sum())[:, None] * (marginals[1] / marginals[1].sum())
    assert float(((found - expected).square() / expected).sum()) * n < 26.1
    assert float(frequencies(10, settings(steps=1, temperature=0.0))[0, 0]) == 1.0


@pytest.mark.parametrize("schedule", ["linear", "cosine", "exp", "log_exp"])
@pytest.mark.parametrize("steps", [1, 3, 8])
def test_counts_fall_to_zero_and_follow_the_schedule(schedule: Any, steps: int) -> None:
    shares = masked_share(schedule, torch.arange(steps, -1, -1, dtype=torch.float64) / steps)
    counts = counts_after(8, shares)
    assert counts[-1] == 0
    assert all(after < before for before, after in zip([8, *counts], counts, strict=False))
    assert all(count >= steps - 1 - i for i, count in enumerate(counts))


def test_counts_are_the_cosine_of_maskgit() -> None:
    shares = masked_share("cosine", torch.tensor([1.0, 0.75, 0.5, 0.25, 0.0]))
    expected = [math.ceil(256 * math.cos(math.pi / 2 * r)) for r in (0.25, 0.5, 0.75)]
    assert counts_after(256, shares) == [*expected, 0]


@pytest.mark.parametrize("reveal", ["independent", "random", "confidence"])
def test_revealed_tokens_never_change(reveal: Any) -> None:
    chosen = settings(reveal=reveal, cfg_scale=2.0, cfg_t_max=0.6)
    samples = sample_masked(tiny(CODES), LABELS, chosen, return_trajectory=True)
    assert samples.trajectory is not None and samples.masked is not None
    assert not samples.masked[-1].any()
    assert torch.equal(samples.trajectory[-1], samples.latents)
    for step in range(3):
        visible = ~samples.masked[step]
        assert not (samples.masked[step + 1] & visible).any()
        assert torch.equal(samples.trajectory[step + 1][visible], samples.trajectory[step][visible])
        assert not samples.trajectory[step][samples.masked[step]].any()
    if reveal != "independent":
        shares = masked_share("exp", samples.times)
        assert samples.masked.sum(2).tolist() == [[count] * 4 for count in counts_after(8, shares)]


def test_confidence_without_noise_reveals_the_likeliest_draws() -> None:
    """A slow first step: draw every code from its cumulative distribution, keep the ones with the largest probability."""
    model, chosen = tiny(CODES), settings(reveal="confidence", confidence_noise=0.0)
    samples = sample_masked(model, LABELS, chosen, return_trajectory=True)
    assert samples.trajectory is not None and samples.masked is not None
    everything = torch.ones(4, 8, dtype=torch.bool)
    shares = (
        model.head(model(torch.zeros(4, 8, dtype=torch.long), everything, torch.tensor(LABELS))).softmax(-1).detach()
    )
    numbers = noise.uniform(0, "masked/tokens", torch.arange(4), 0, (8,))
    for i in range(4):
        drawn = []
        for j in range(8):
            total, code = 0.0, -1
            while total < float(numbers[i, j]) and code < 4:
                code += 1
                total += float(shares[i, j, code])
            drawn.append((float(shares[i, j, code]), j, code))
        kept = sorted(drawn, reverse=True)[: 8 - counts_after(8, masked_share("exp", samples.times))[0]]
        expected = [0] * 8
        for _, j, code in kept:
            expected[j] = code
        assert samples.trajectory[0, i].tolist() == expected
        assert sorted(j for _, j, _ in kept) == (~samples.masked[0, i]).nonzero()[:, 0].tolist()


@pytest.mark.parametrize("fields", [CODES, LATENTS])
@pytest.mark.parametrize("reveal", ["independent", "random"])
def test_a_sample_is_the_same_in_any_batch(fields: dict[str, Any], reveal: Any) -> None:
    model, chosen = tiny(fields), settings(reveal=reveal, cfg_scale=2.0, cfg_t_max=0.6, head_steps=4)
    together = sample_masked(model, LABELS, chosen, seed=5).latents
    for i, label in enumerate(LABELS):
        alone = sample_masked(model, [label], chosen, seed=5, first_index=i).latents
        torch.testing.assert_close(alone[0], together[i], rtol=1e-3, atol=1e-3)
    backwards = sample_masked(model, LABELS[::-1], chosen, seed=5, indices=torch.arange(3, -1, -1)).latents
    torch.testing.assert_close(backwards.flip(0), together, rtol=1e-3, atol=1e-3)
    assert not torch.allclose(sample_masked(model, LABELS, chosen, seed=6).latents.float(), together.float())


@pytest.mark.parametrize("head_sampler", ["dpm_solver", "ddpm"])
def test_continuous_latents_have_the_shape_of_the_model(head_sampler: Any) -> None:
    model = tiny(LATENTS, input=(4, 4), patch=2)
    samples = sample_masked(model, LABELS, settings(head_sampler=head_sampler, head_steps=4, steps=3))
    assert samples.latents.shape == (4, 3, 4, 4)
    assert samples.latents.isfinite().all()
    assert samples.evaluations == 3
    assert samples.times.tolist() == pytest.approx([1, 2 / 3, 1 / 3, 0])


class Told(DiffusionHead):
    """Tells whether it ran under autocast."""

    low: list[bool]

    def forward(self, x: Tensor, step: Tensor, z: Tensor) -> Prediction:
        self.low.append(torch.is_autocast_enabled("cpu") or z.dtype != torch.float32)
        return super().forward(x, step, z)


def test_latents_are_drawn_in_float32_whatever_the_network_computes_in() -> None:
    model = tiny(LATENTS).set_precision("autocast")
    model.head = Told(model.config)
    model.head.low = []
    sample_masked(model, LABELS, settings(head_steps=2, steps=2, cfg_scale=2.0, cfg_t_max=1.0))
    assert model.head.low and not any(model.head.low)


def test_steps_are_told_as_they_end() -> None:
    seen = []
    samples = sample_masked(
        tiny(CODES), LABELS, settings(reveal="random"), on_step=lambda *now: seen.append((now[0], int(now[2].sum())))
    )
    counts = counts_after(8, masked_share("exp", samples.times))
    assert seen == [(i, 4 * count) for i, count in enumerate(counts)]


def test_trained_model_draws_what_it_was_shown() -> None:
    """Class c is the code c at all places but the last, which is code 4: a few steps of training are enough."""
    torch.manual_seed(0)
    model = MaskedTransformer(MaskedConfig(**{**CODES, "width": 32}))
    objective, optimiser = MaskedObjective(model), torch.optim.Adam(model.parameters(), lr=1e-2)
    labels = torch.arange(48) % 3
    data = labels[:, None].expand(48, 8).clone()
    data[:, -1] = 4
    for step in range(60):
        optimiser.zero_grad()
        objective(data, labels, draw_noise(model.config, 0, "train", torch.arange(48), step))["loss"].backward()
        optimiser.step()
    drawn = sample_masked(model.eval(), [0, 1, 2] * 4, settings(steps=3, temperature=0.0)).latents
    assert torch.equal(drawn, data[:12])


@pytest.mark.parametrize(
    ("fields", "chosen", "labels", "message"),
    [
        (LATENTS, {"reveal": "confidence"}, LABELS, "choose 'random'"),
        (CODES, {"reveal": "random", "steps": 9}, LABELS, "9 steps are more than 8"),
        (CODES, {}, [4], r"0 .. 2 \(or 3 for no class\)"),
        (CODES, {}, [0.5], "class ids"),
    ],
)
def test_what_cannot_be_sampled_is_refused(
    fields: dict[str, Any], chosen: dict[str, Any], labels: list[Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        sample_masked(tiny(fields), labels, settings(**chosen))


def test_sample_numbers_must_fit() -> None:
    with pytest.raises(UserError, match="4 labels"):
        sample_masked(tiny(CODES), LABELS, settings(), indices=torch.arange(3))
