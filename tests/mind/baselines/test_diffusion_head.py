"""The diffusion head: its loss against Python numbers, and its samplers on Gaussian data with the exact noise."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from mind import noise
from mind.baselines.ddpm import Schedule
from mind.baselines.diffusion_head import Condition, DiffusionHead, Prediction, cosine_schedule
from mind.baselines.masked_config import MaskedConfig
from mind.baselines.masked_settings import MaskedSamplerSettings

CONFIG = MaskedConfig(tokens=4, in_channels=3, width=8, heads=2, head_depth=2, head_width=16)
MEAN, DEVIATION = 0.7, 0.5


@pytest.fixture(scope="module")
def head() -> DiffusionHead:
    torch.manual_seed(0)
    head = DiffusionHead(CONFIG)
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return head


def draws(count: int, seed: int = 0) -> Any:
    return lambda draw: noise.normal(seed, f"test/{draw}", torch.arange(count), 0, (3,))


class ExactHead(DiffusionHead):
    """Says the exact noise, and the smallest variance, for data ~ N(z, DEVIATION^2); it ignores all but the first of z."""

    def forward(self, x: Tensor, step: Tensor, z: Tensor) -> Prediction:
        table = cosine_schedule().abar.log()
        low = step.long().clamp(max=998)
        abar = torch.lerp(table[low], table[low + 1], step.double() - low).exp()[:, None]
        mean = abar.sqrt() * z[:, :1]
        eps = (1 - abar).sqrt() * (x - mean) / (abar * DEVIATION**2 + 1 - abar)
        return Prediction(eps.to(x.dtype), torch.full_like(x, -1.0))


def test_cosine_levels_follow_the_squared_cosine() -> None:
    abar = cosine_schedule().abar
    for step in (0, 10, 499, 900):
        f = [math.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2 for t in ((step + 1) / 1000, 0.0)]
        assert float(abar[step]) == pytest.approx(f[0] / f[1], rel=1e-10)
    beta = 1 - abar[1:] / abar[:-1]
    assert float(beta.max()) == pytest.approx(0.999)  # the limit of the last step


def test_some_steps_are_even_with_both_ends() -> None:
    schedule = cosine_schedule(4)
    assert schedule.numbers.tolist() == [0, 333, 666, 999]
    torch.testing.assert_close(schedule.abar, cosine_schedule().abar[schedule.numbers])
    assert cosine_schedule(1).numbers.tolist() == [999]


def test_fresh_head_says_nothing() -> None:
    head = DiffusionHead(CONFIG)
    said = head(torch.randn(5, 3), torch.arange(5), torch.randn(5, 8))
    assert not said.eps.any() and not said.v.any()
    eps = torch.randn(5, 3)
    squared, _ = head.losses(torch.randn(5, 8), torch.randn(5, 3), torch.arange(5), eps)
    torch.testing.assert_close(squared, eps.square().mean(1))


def slow_bound(x0: list[float], eps: list[float], said: Prediction, step: int, schedule: Schedule) -> float:
    """Return KL(q(x_before | x, x0), p(x_before | x)) in bits per number, number after number."""
    abar, before = float(schedule.abar[step]), float(schedule.abar[step - 1])
    beta = 1 - abar / before
    variance = beta * (1 - before) / (1 - abar)
    total = 0.0
    for j in range(len(x0)):
        x = math.sqrt(abar) * x0[j] + math.sqrt(1 - abar) * eps[j]
        guess = (x - math.sqrt(1 - abar) * float(said.eps[0, j])) / math.sqrt(abar)
        means = [
            math.sqrt(before) * beta / (1 - abar) * data + math.sqrt(1 - beta) * (1 - before) / (1 - abar) * x
            for data in (x0[j], guess)
        ]
        share = (float(said.v[0, j]) + 1) / 2
        log_learned = share * math.log(beta) + (1 - share) * math.log(variance)
        learned = math.exp(log_learned)
        total += 0.5 * (
            log_learned - math.log(variance) + variance / learned - 1 + (means[0] - means[1]) ** 2 / learned
        )
    return total / len(x0) / math.log(2)


@pytest.mark.parametrize("step", [1, 300, 990])
def test_loss_equals_the_slow_version(head: DiffusionHead, step: int) -> None:
    target, eps = torch.tensor([[0.3, -1.2, 0.8]]), torch.tensor([[0.5, 0.1, -2.0]])
    z, steps, schedule = torch.linspace(-1, 1, 8)[None], torch.tensor([step]), cosine_schedule()
    abar = schedule.abar[step].float()
    with torch.no_grad():
        said = head(abar.sqrt() * target + (1 - abar).sqrt() * eps, steps, z)
        squared, bits = head.losses(z, target, steps, eps)
    assert float(squared) == pytest.approx(
        sum((float(said.eps[0, j] - eps[0, j])) ** 2 for j in range(3)) / 3, rel=1e-5
    )
    expected = slow_bound(target[0].tolist(), eps[0].tolist(), said, step, schedule)
    assert float(bits) == pytest.approx(expected, rel=2e-3)


def test_bound_teaches_the_variance_only(head: DiffusionHead) -> None:
    z, target, eps = torch.randn(6, 8), torch.randn(6, 3), torch.randn(6, 3)
    _, bits = head.losses(z, target, torch.tensor([1, 5, 50, 500, 800, 900]), eps)
    (gradient,) = torch.autograd.grad(bits.sum(), head.output.bias)
    assert not gradient[:3].any()
    assert gradient[3:].all()


@pytest.mark.parametrize(
    "settings",
    [
        MaskedSamplerSettings(head_steps=14),
        MaskedSamplerSettings(head_sampler="ddpm", head_steps=100),
    ],
)
def test_exact_noise_leads_to_the_data(settings: MaskedSamplerSettings) -> None:
    n = 4000
    z = torch.full((n, 8), MEAN)
    drawn = ExactHead(CONFIG).sample(Condition(z), settings, draws(n))
    bound = 4 * DEVIATION / math.sqrt(3 * n)
    assert float(drawn.mean()) == pytest.approx(MEAN, abs=bound + 0.01)
    assert float(drawn.std()) == pytest.approx(DEVIATION, rel=0.05)


def test_guidance_moves_the_mean_linearly() -> None:
    """With equal variances the guided noise is that of data whose mean is null + w (z - null)."""
    n, settings = 50, MaskedSamplerSettings(head_steps=12)
    z, null = torch.full((n, 8), 0.5), torch.full((n, 8), 0.1)
    guided = ExactHead(CONFIG).sample(Condition(z, null, 3.0), settings, draws(n))
    moved = ExactHead(CONFIG).sample(Condition(null + 3 * (z - null)), settings, draws(n))
    torch.testing.assert_close(guided, moved, rtol=1e-4, atol=1e-4)


def test_temperature_scales_the_noise_of_ddpm_steps(head: DiffusionHead) -> None:
    z = torch.randn(4, 8, generator=torch.Generator().manual_seed(1))

    def sample(temperature: float, later: int) -> Tensor:
        settings = MaskedSamplerSettings(head_sampler="ddpm", head_steps=5, temperature=temperature)
        return head.sample(Condition(z), settings, lambda draw: draws(4, later if draw else 0)(draw))

    assert torch.equal(sample(0.0, 1), sample(0.0, 2))  # the first state is the same
    assert not torch.equal(sample(1.0, 1), sample(1.0, 2))


class CarelessHead(ExactHead):
    """Like a head after a few hundred steps: it errs by 0.08 (root mean square), and never says noise beyond 3."""

    def forward(self, x: Tensor, step: Tensor, z: Tensor) -> Prediction:
        said = super().forward(x, step, z)
        return said._replace(eps=said.eps.clamp(-3, 3) + 0.08 * math.sqrt(2) * torch.cos(40 * x))


@pytest.mark.parametrize("fields", [{}, {"head_sampler": "ddpm", "head_steps": 50}])
def test_errors_at_high_noise_are_limited_unless_that_is_off(fields: dict[str, Any]) -> None:
    n, z = 500, Condition(torch.full((500, 8), MEAN))
    limited, free = (
        float(CarelessHead(CONFIG).sample(z, MaskedSamplerSettings(**fields, **clip), draws(n)).std())
        for clip in ({}, {"head_clip": None})
    )
    assert 0.9 * DEVIATION < limited < 1.3 * DEVIATION
    assert free > 4 * DEVIATION


def test_ddpm_estimates_are_clipped() -> None:
    """With all noise said to be nothing and one step, the data are the first state over sqrt(abar), 20,000 times it: clipped."""
    z, settings = torch.zeros(4, 8), MaskedSamplerSettings(head_sampler="ddpm", head_steps=1, head_clip=3.0)
    drawn = DiffusionHead(CONFIG).sample(Condition(z), settings, draws(4)).detach()
    torch.testing.assert_close(drawn, 3 * draws(4)(0).sign(), rtol=0, atol=1e-4)
