"""Samplers of DDPM on Gaussian data, whose noise and reversal are known, and what they promise their users.

Data N(mu, s^2): after step number k, x has mean sqrt(abar) mu and variance V = abar s^2 + 1 - abar, and the expected noise is
sqrt(1-abar) (x - sqrt(abar) mu) / V. Given x, the state before is normal with a known variance.
"""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from mind.baselines.ddpm_sampler import DdpmSamplerSettings, sample_ddpm
from mind.baselines.transformer import LatentTransformer
from mind.baselines.transformer_config import TransformerConfig

MU, S = [0.5, -2.0], [0.3, 0.9]
BETAS = [1e-4 + (2e-2 - 1e-4) * i / 999 for i in range(1000)]
ABAR = [math.prod(1 - b for b in BETAS[: k + 1]) for k in range(1000)]


def kept(steps: int) -> list[int]:
    return [round(i * 999 / (steps - 1)) for i in range(steps)]


def reversal(steps: int, number: int, s: float) -> tuple[float, float, float, float, float]:
    """Of going from a kept step to the one before: shares of data and state, variance for known data, beta, exact variance."""
    place = kept(steps).index(number)
    before = ABAR[kept(steps)[place - 1]] if place else 1.0
    abar, beta = ABAR[number], 1 - ABAR[number] / before
    data, state = beta * math.sqrt(before) / (1 - abar), math.sqrt(1 - beta) * (1 - before) / (1 - abar)
    known = beta * (1 - before) / (1 - abar)
    exact = known + data**2 * s * s * (1 - abar) / (abar * s * s + 1 - abar)
    return data, state, known, beta, exact


class GaussianNoise:
    """The exact noise and reversal of two independent normal channels; class 1 is "no class" and has mean 0.

    ``variance``: ``exact`` answers with the v that stands for the exact variance, a number with that v, None with none.
    """

    device = torch.device("cpu")

    def __init__(self, steps: int, variance: Any = None) -> None:
        self.steps, self.variance = steps, variance
        learned = variance is not None
        self.config = TransformerConfig(
            kind="dit",
            input=None,
            tokens=1,
            in_channels=2,
            patch=1,
            num_classes=1,
            width=8,
            heads=1,
            learn_sigma=learned,
        )
        self.numbers: list[int] = []
        self.batches: list[int] = []

    def __call__(self, x: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        number = int(t[0])
        self.numbers.append(number)
        self.batches.append(len(x))
        abar = ABAR[number]
        mean = torch.tensor(MU) * (1 - labels.double())[:, None, None]
        spread = abar * torch.tensor(S).double() ** 2 + 1 - abar
        eps = math.sqrt(1 - abar) * (x - math.sqrt(abar) * mean) / spread
        if self.variance is None:
            return eps.to(x.dtype)
        v = [self.v(number, s) if self.variance == "exact" else self.variance for s in S]
        return torch.cat([eps, torch.tensor(v).double().expand_as(eps)], dim=2).to(x.dtype)

    def v(self, number: int, s: float) -> float:
        _, _, known, beta, exact = reversal(self.steps, number, s)
        return 2 * math.log(exact / known) / math.log(beta / known) - 1 if known else 0.0


def starts(n: int = 5) -> Tensor:
    return torch.randn(n, 1, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def path(k: int, x: Tensor, mean: Tensor) -> Tensor:
    """State after step k on the deterministic path from ``x`` after step 999."""
    spread = [a * torch.tensor(S).double() ** 2 + 1 - a for a in (ABAR[k], ABAR[999])]
    return math.sqrt(ABAR[k]) * mean + (spread[0] / spread[1]).sqrt() * (x - math.sqrt(ABAR[999]) * mean)


def test_ddim_follows_the_deterministic_path() -> None:
    x, mean = starts(), torch.tensor(MU).double()
    settings = DdpmSamplerSettings(solver="ddim", steps=1000)
    out = sample_ddpm(GaussianNoise(1000), [0] * 5, settings, noise=x, return_trajectory=True)
    assert out.trajectory is not None and len(out.trajectory) == 1000
    assert out.times.tolist() == list(range(1000, -1, -1))
    for number in (900, 500, 100, 10, 0):
        torch.testing.assert_close(out.trajectory[998 - number], path(number, x, mean), rtol=0, atol=5e-3)
    final = mean + torch.tensor(S) / (ABAR[999] * torch.tensor(S).double() ** 2 + 1 - ABAR[999]).sqrt() * x
    torch.testing.assert_close(out.latents, final, rtol=0, atol=2e-2)


def test_ddim_error_falls_with_the_number_of_steps() -> None:
    x, mean = starts(), torch.tensor(MU).double()
    errors = []
    for steps in (50, 100, 200):
        settings = DdpmSamplerSettings(solver="ddim", steps=steps)
        out = sample_ddpm(GaussianNoise(steps), [0] * 5, settings, noise=x, return_trajectory=True)
        assert out.trajectory is not None
        errors.append(float((out.trajectory[-2] - path(0, x, mean)).abs().max()))
    assert 1.6 < errors[0] / errors[1] < 2.4 and 1.6 < errors[1] / errors[2] < 2.4


def recursion(steps: int, variance: str, mu: float, s: float) -> tuple[float, float]:
    """Mean and standard deviation of ancestral samples, by Python numbers: every step is a linear map and noise."""
    mean, spread = 0.0, 1.0
    for number in reversed(kept(steps)):
        data, state, _, beta, exact = reversal(steps, number, s)
        abar = ABAR[number]
        slope = math.sqrt(abar) * s * s / (abar * s * s + 1 - abar)  # E[data | x] = mu + slope (x - sqrt(abar) mu)
        factor = data * slope + state
        mean = factor * mean + data * mu * (1 - slope * math.sqrt(abar))
        spread = factor**2 * spread + ({"exact": exact, "beta": beta}[variance] if number else 0.0)
    return mean, math.sqrt(spread)


@pytest.mark.parametrize(("variance", "steps"), [("exact", 12), ("exact", 100), ("beta", 100)])
def test_ancestral_samples_have_the_moments_of_their_steps(variance: str, steps: int) -> None:
    model = GaussianNoise(steps, "exact" if variance == "exact" else None)
    labels = torch.zeros(20_000, dtype=torch.int64)
    got = sample_ddpm(model, labels, DdpmSamplerSettings(steps=steps), seed=1).latents[:, 0].double()
    for channel, (mu, s) in enumerate(zip(MU, S, strict=True)):
        mean, deviation = recursion(steps, variance, mu, s)
        error = deviation / math.sqrt(20_000)
        assert float(got[:, channel].mean()) == pytest.approx(mean, abs=4 * error)
        assert float(got[:, channel].std()) == pytest.approx(deviation, abs=4 * error / math.sqrt(2))
        if variance == "exact":  # the exact reversal reaches the data in any number of steps
            assert mean == pytest.approx(mu, abs=0.02) and deviation == pytest.approx(s, abs=0.002)


@pytest.mark.parametrize("steps", [1, 2, 30])
def test_ddim_with_eta_1_is_ancestral_sampling_with_the_smallest_variance(steps: int) -> None:
    ancestral = network() if steps == 1 else GaussianNoise(steps, -1.0)
    labels = [0, 0, 0]
    one = sample_ddpm(ancestral, labels, DdpmSamplerSettings(steps=steps), seed=4)
    other = sample_ddpm(ancestral, labels, DdpmSamplerSettings(steps=steps, solver="ddim", eta=1.0), seed=4)
    torch.testing.assert_close(one.latents, other.latents, rtol=1e-4, atol=1e-4)
    quiet = sample_ddpm(ancestral, labels, DdpmSamplerSettings(steps=steps, solver="ddim"), seed=4)
    assert torch.allclose(quiet.latents, other.latents) == (steps == 1)


@pytest.mark.parametrize("solver", ["ancestral", "ddim"])
def test_the_unconditional_half_is_skipped_outside_the_interval(solver: str) -> None:
    """10 of 1000 steps: 999, 888, ... 0, at times .0, .111, ... .999."""
    model = GaussianNoise(10, 0.0)
    settings = DdpmSamplerSettings(solver=solver, steps=10, cfg_scale=2, cfg_t_min=0.2, cfg_t_max=0.5)
    out = sample_ddpm(model, [0] * 5, settings)
    assert model.numbers == [999, 888, 777, 666, 555, 444, 333, 222, 111, 0]
    doubled = [n for n, size in zip(model.numbers, model.batches, strict=True) if size == 10]
    assert doubled == [777, 666, 555]  # times .222, .333, .444
    assert out.evaluations == 13


def test_guidance_shifts_the_mean() -> None:
    """Both classes have the same spread, so guidance w puts the noise of w mu in the place of that of mu."""
    x = starts()
    guided = DdpmSamplerSettings(solver="ddim", steps=50, cfg_scale=2.5)
    out = sample_ddpm(GaussianNoise(50), [0] * 5, guided, noise=x)
    plain = sample_ddpm(GaussianNoise(50), [0] * 5, DdpmSamplerSettings(solver="ddim", steps=50), noise=x)
    nobody = sample_ddpm(GaussianNoise(50), [1] * 5, DdpmSamplerSettings(solver="ddim", steps=50), noise=x)
    torch.testing.assert_close(out.latents, nobody.latents + 2.5 * (plain.latents - nobody.latents))
    first = DdpmSamplerSettings(solver="ddim", steps=50, cfg_scale=2.5, cfg_channels=1)
    one = sample_ddpm(GaussianNoise(50), [0] * 5, first, noise=x).latents
    torch.testing.assert_close(one, torch.cat([out.latents[..., :1], plain.latents[..., 1:]], -1))


def test_scale_1_equals_no_guidance_bit_by_bit() -> None:
    plain = sample_ddpm(GaussianNoise(9, 0.3), [0] * 5, DdpmSamplerSettings(steps=9), seed=2)
    one = DdpmSamplerSettings(steps=9, cfg_scale=1.0, cfg_t_min=0.2, cfg_channels=1)
    out = sample_ddpm(GaussianNoise(9, 0.3), [0] * 5, one, seed=2)
    assert torch.equal(out.latents, plain.latents) and out.evaluations == plain.evaluations == 9


def test_estimates_of_the_data_reach_on_step() -> None:
    seen: list[tuple[int, Tensor, Tensor]] = []
    x = starts()
    settings = DdpmSamplerSettings(solver="ddim", steps=20)
    out = sample_ddpm(GaussianNoise(20), [0] * 5, settings, noise=x, on_step=lambda *args: seen.append(args))
    assert [step for step, _, _ in seen] == list(range(20))
    abar, s, mu = ABAR[999], torch.tensor(S).double(), torch.tensor(MU).double()
    expected = mu + math.sqrt(abar) * s**2 / (abar * s**2 + 1 - abar) * (x - math.sqrt(abar) * mu)
    torch.testing.assert_close(seen[0][2], expected, rtol=0, atol=1e-6)
    assert torch.equal(seen[-1][1], out.latents) and torch.equal(seen[-1][2], out.latents)


def network(**fields: Any) -> LatentTransformer:
    torch.manual_seed(0)
    shape = {
        "kind": "dit", "depth": 1, "width": 16, "heads": 2, "num_classes": 3, "input": (4, 4), "in_channels": 2, **fields,
    }  # fmt: skip
    model = LatentTransformer(TransformerConfig.model_validate(shape))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return model.eval()


@pytest.mark.parametrize("settings", [{"solver": "ddim"}, {"solver": "ddim", "eta": 0.5}, {"solver": "ancestral"}])
@pytest.mark.parametrize("fields", [{}, {"input": None, "tokens": 6, "learn_sigma": False}])
def test_a_sample_is_the_same_in_any_batch(settings: dict[str, Any], fields: dict[str, Any]) -> None:
    model, labels = network(**fields), torch.tensor([2, 0, 1, 3, 2])
    chosen = DdpmSamplerSettings(steps=4, cfg_scale=1.5, cfg_t_min=0.3, **settings)
    whole = sample_ddpm(model, labels, chosen, seed=5, first_index=10).latents
    alone = sample_ddpm(model, labels[3:4], chosen, seed=5, first_index=13).latents
    torch.testing.assert_close(alone[0], whole[3], rtol=1e-4, atol=1e-3)
    order = torch.tensor([14, 11, 12])
    mixed = sample_ddpm(model, labels[order - 10], chosen, seed=5, indices=order).latents
    torch.testing.assert_close(mixed, whole[order - 10], rtol=1e-4, atol=1e-3)
    assert not torch.allclose(sample_ddpm(model, labels, chosen, seed=6, first_index=10).latents, whole, atol=0.1)
