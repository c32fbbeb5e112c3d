"""Samplers of a flow on Gaussian data, whose velocity and paths are known, and what they promise their users.

Data N(mu, s^2), noise N(0, 1): x_t has variance V = (1-t)^2 + t^2 s^2, the velocity is mu + (t s^2 - (1-t))/V (x - t mu), and the
path from x_0 is t mu + sqrt(V) x_0, which ends at mu + s x_0.
"""

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from latentlab.errors import UserError
from mind import noise
from mind.baselines.flow_sampler import FlowSamplerSettings, flow_times, sample_flow
from mind.baselines.transformer import LatentTransformer
from mind.baselines.transformer_config import TransformerConfig

MU, S = torch.tensor([[0.5, -2.0]]).double(), torch.tensor([[0.3, 1.7]]).double()


class GaussianFlow:
    """The exact velocity of two independent normal channels; class 1 is "no class" and has mean 0."""

    config = TransformerConfig(input=None, tokens=1, in_channels=2, patch=1, num_classes=1, width=8, heads=1)
    device = torch.device("cpu")

    def __init__(self) -> None:
        self.times: list[float] = []
        self.batches: list[int] = []

    def __call__(self, x: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        self.times.append(float(t[0]))
        self.batches.append(len(x))
        t = t.to(x.dtype)[:, None, None]
        mean = MU.to(x.dtype) * (1 - labels.to(x.dtype))[:, None, None]
        variance = (1 - t) ** 2 + t**2 * S.to(x.dtype) ** 2
        return mean + (t * S.to(x.dtype) ** 2 - (1 - t)) / variance * (x - t * mean)


def starts(n: int = 5) -> Tensor:
    return torch.randn(n, 1, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def error(**fields: Any) -> float:
    x = starts()
    out = sample_flow(GaussianFlow(), [0] * len(x), FlowSamplerSettings(**fields), noise=x)
    return float((out.latents - (MU + S * x)).abs().max())


@pytest.mark.parametrize(("solver", "order"), [("euler", 1), ("heun", 2)])
def test_error_falls_with_the_order_of_the_solver(solver: str, order: int) -> None:
    coarse, fine = error(solver=solver, steps=200), error(solver=solver, steps=400)
    assert math.log2(coarse / fine) == pytest.approx(order, abs=0.1)
    assert fine < {"euler": 1e-2, "heun": 1e-4}[solver]


def test_trajectory_follows_the_exact_path() -> None:
    x = starts()
    settings = FlowSamplerSettings(solver="heun", steps=200, time_shift=0.5)
    out = sample_flow(GaussianFlow(), [0] * 5, settings, noise=x, return_trajectory=True)
    assert out.trajectory is not None and len(out.trajectory) == 200
    assert torch.equal(out.start, x) and torch.equal(out.trajectory[-1], out.latents)
    for t, state in zip(out.times[1:], out.trajectory, strict=True):
        exact = t * MU + ((1 - t) ** 2 + t**2 * S**2).sqrt() * x
        torch.testing.assert_close(state, exact, rtol=0, atol=3e-4)


def recursion(settings: FlowSamplerSettings) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each channel after an SDE walk, by Python numbers: every step is a linear map."""
    means, deviations, times = [], [], flow_times(settings)
    for mu, s in zip(MU[0].tolist(), S[0].tolist(), strict=True):
        mean, variance = 0.0, 1.0
        for i, (t, u) in enumerate(pairwise(times)):
            slope = (t * s * s - (1 - t)) / ((1 - t) ** 2 + t * t * s * s)
            share, h = settings.sde_noise, u - t
            factor = 1 + h * (slope + share * (t * slope - 1))
            constant = h * (1 + share * t) * (mu - slope * t * mu)
            mean, variance = factor * mean + constant, factor**2 * variance
            if i < settings.steps - 1 or not settings.sde_last_step:
                variance += 2 * share * (1 - t) * h
        means.append(mean)
        deviations.append(math.sqrt(variance))
    return means, deviations


@pytest.mark.parametrize("fields", [{}, {"sde_last_step": 0.0}, {"sde_noise": 0.3, "time_shift": 0.7}])
def test_sde_has_the_moments_of_its_steps_and_they_reach_the_data(fields: dict[str, Any]) -> None:
    settings = FlowSamplerSettings(solver="sde", steps=60, **fields)
    out = sample_flow(GaussianFlow(), torch.zeros(20_000, dtype=torch.int64), settings, seed=3)
    means, deviations = recursion(settings)
    got = out.latents[:, 0].double()
    for channel in range(2):
        standard_error = deviations[channel] / math.sqrt(20_000)
        assert float(got[:, channel].mean()) == pytest.approx(means[channel], abs=4 * standard_error)
        assert float(got[:, channel].std()) == pytest.approx(deviations[channel], abs=4 * standard_error / math.sqrt(2))
    finer = recursion(FlowSamplerSettings(solver="sde", steps=20_000, **{**fields, "sde_last_step": 0.0}))
    torch.testing.assert_close(torch.tensor(finer[0]), MU[0].float(), rtol=0, atol=1e-3)
    torch.testing.assert_close(torch.tensor(finer[1]), S[0].float(), rtol=0, atol=1e-3)


def test_sde_without_noise_is_euler() -> None:
    x = starts()
    ode = sample_flow(GaussianFlow(), [0] * 5, FlowSamplerSettings(steps=7), noise=x)
    quiet = FlowSamplerSettings(steps=7, solver="sde", sde_noise=0, sde_last_step=0)
    torch.testing.assert_close(sample_flow(GaussianFlow(), [0] * 5, quiet, noise=x).latents, ode.latents)


def test_times() -> None:
    assert flow_times(FlowSamplerSettings(steps=4)) == [0, 0.25, 0.5, 0.75, 1]
    assert flow_times(FlowSamplerSettings(solver="sde", steps=4)) == pytest.approx([0, 0.32, 0.64, 0.96, 1])
    assert flow_times(FlowSamplerSettings(solver="sde", steps=1)) == [0, 1]
    shifted = flow_times(FlowSamplerSettings(steps=2, time_shift=0.3))
    assert shifted == pytest.approx([0, 0.15 / 0.65, 1])


@pytest.mark.parametrize(
    ("solver", "guided", "evaluations"),
    # steps begin at 0, .1, ... .9 and Heun looks at .1, ... 1 too; [.3,.5] holds three beginnings and three ends
    [("euler", 3, 10), ("sde", 3, 10), ("heun", 6, 20)],
)
def test_the_unconditional_half_is_skipped_outside_the_interval(solver: str, guided: int, evaluations: int) -> None:
    model = GaussianFlow()
    settings = FlowSamplerSettings(
        solver=solver, steps=10, cfg_scale=2, cfg_t_min=0.2999, cfg_t_max=0.5001, sde_last_step=0
    )
    out = sample_flow(model, [0] * 5, settings)
    assert out.evaluations == evaluations + guided
    assert len(model.batches) == evaluations
    doubled = [round(t, 3) for t, size in zip(model.times, model.batches, strict=True) if size == 10]
    assert sorted(set(doubled)) == [0.3, 0.4, 0.5] and len(doubled) == guided


def test_guidance_shifts_the_mean_of_the_velocity() -> None:
    """Both classes have the same spread, so guidance w puts the velocity of w mu in the place of that of mu."""
    x = starts()
    out = sample_flow(GaussianFlow(), [0] * 5, FlowSamplerSettings(solver="heun", steps=300, cfg_scale=2.5), noise=x)
    torch.testing.assert_close(out.latents, 2.5 * MU + S * x, rtol=0, atol=1e-3)
    first = FlowSamplerSettings(solver="heun", steps=300, cfg_scale=2.5, cfg_channels=1)
    out = sample_flow(GaussianFlow(), [0] * 5, first, noise=x)
    torch.testing.assert_close(out.latents, MU * torch.tensor([2.5, 1.0]) + S * x, rtol=0, atol=1e-3)


def test_scale_1_equals_no_guidance_bit_by_bit() -> None:
    x = starts()
    plain = sample_flow(GaussianFlow(), [0] * 5, FlowSamplerSettings(steps=9), noise=x)
    one = FlowSamplerSettings(steps=9, cfg_scale=1.0, cfg_t_min=0.2, cfg_channels=1)
    assert torch.equal(sample_flow(GaussianFlow(), [0] * 5, one, noise=x).latents, plain.latents)
    empty = FlowSamplerSettings(steps=9, cfg_scale=4.0, cfg_t_min=0.501, cfg_t_max=0.502)
    assert torch.equal(sample_flow(GaussianFlow(), [0] * 5, empty, noise=x).latents, plain.latents)


def test_estimates_of_the_data_reach_on_step() -> None:
    """The first estimate is E[x_1 | x_0] = mu, the last of many nearly the sample."""
    seen: list[tuple[int, Tensor, Tensor]] = []
    x = starts()
    settings = FlowSamplerSettings(steps=500)
    out = sample_flow(GaussianFlow(), [0] * 5, settings, noise=x, on_step=lambda *args: seen.append(args))
    assert [step for step, _, _ in seen] == list(range(500))
    torch.testing.assert_close(seen[0][2], MU.expand(5, 1, 2))
    assert torch.equal(seen[-1][1], out.latents)
    torch.testing.assert_close(seen[-1][2], out.latents, rtol=0, atol=1e-6)


def network(**fields: Any) -> LatentTransformer:
    torch.manual_seed(0)
    shape = {"depth": 1, "width": 16, "heads": 2, "num_classes": 3, "input": (4, 4), "in_channels": 2, **fields}
    model = LatentTransformer(TransformerConfig.model_validate(shape))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model.eval()


@pytest.mark.parametrize("solver", ["euler", "heun", "sde"])
@pytest.mark.parametrize("fields", [{}, {"kind": "lightningdit", "input": None, "tokens": 6}])
def test_a_sample_is_the_same_in_any_batch(solver: str, fields: dict[str, Any]) -> None:
    model, labels = network(**fields), torch.tensor([2, 0, 1, 3, 2])
    settings = FlowSamplerSettings(solver=solver, steps=4, cfg_scale=1.5, cfg_t_min=0.3)
    whole = sample_flow(model, labels, settings, seed=5, first_index=10).latents
    alone = sample_flow(model, labels[3:4], settings, seed=5, first_index=13).latents
    torch.testing.assert_close(alone[0], whole[3], rtol=1e-5, atol=1e-5)
    order = torch.tensor([14, 11, 12])
    mixed = sample_flow(model, labels[order - 10], settings, seed=5, indices=order).latents
    torch.testing.assert_close(mixed, whole[order - 10], rtol=1e-5, atol=1e-5)
    other = sample_flow(model, labels, settings, seed=6, first_index=10).latents
    assert not torch.allclose(other, whole, atol=1e-2)


def test_noise_comes_from_the_counter_and_every_step_has_its_own() -> None:
    model = network()
    settings = FlowSamplerSettings(solver="sde", steps=2, sde_last_step=0)
    out = sample_flow(model, [0, 1], settings, seed=5, return_trajectory=True)
    numbers = torch.tensor([0, 1])
    assert torch.equal(out.start, noise.normal(5, "sampler/initial", numbers, 0, (2, 4, 4)))
    assert out.trajectory is not None
    x = out.start
    for step, t in enumerate((0.0, 0.5)):
        v = model(x, torch.full((2,), t), torch.tensor([0, 1])).detach()
        x = (
            x
            + 0.5 * (v + (t * v - x))
            + math.sqrt(2 * (1 - t) * 0.5) * noise.normal(5, "sampler/fresh/1", numbers, step, (2, 4, 4))
        )
        torch.testing.assert_close(out.trajectory[step], x)


def test_unused_channels_of_the_published_sit_are_left_out() -> None:
    model = network(learn_sigma=True)
    out = sample_flow(model, [0, 1], FlowSamplerSettings(steps=1, cfg_scale=2.0))
    given, null = (model(out.start, torch.zeros(2), torch.tensor(y))[:, :2].detach() for y in ([0, 1], [3, 3]))
    torch.testing.assert_close(out.latents, out.start + null + 2 * (given - null))


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ({"labels": [4]}, "0 .. 2"),
        ({"labels": [-1]}, "0 .. 2"),
        ({"labels": [0.5]}, "list of class ids"),
        ({"labels": [0], "noise": torch.zeros(1, 2, 4, 5)}, r"shape \[1, 2, 4, 4\]"),
        ({"labels": [0], "indices": torch.tensor([1, 2])}, "one sample number"),
    ],
)
def test_what_does_not_fit_is_refused(arguments: dict[str, Any], problem: str) -> None:
    with pytest.raises(UserError, match=problem):
        sample_flow(network(), **arguments)


def test_no_labels_are_refused() -> None:
    with pytest.raises(UserError, match="labels are empty"):
        sample_flow(network(), torch.zeros(0, dtype=torch.int64), FlowSamplerSettings(steps=2))
