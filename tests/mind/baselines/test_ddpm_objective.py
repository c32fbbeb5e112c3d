"""DiT's loss against a slow version: Bayes' rule, integrals on a grid, and error functions, one number at a time."""

import math

import pytest
import torch
from torch import Tensor, nn

from mind.baselines.ddpm import full_schedule
from mind.baselines.ddpm_objective import DdpmLoss, DdpmObjective, diffuse, drawn_steps, estimate
from mind.baselines.transformer import LatentTransformer
from mind.baselines.transformer_config import TransformerConfig

FULL = full_schedule()


class Answers(nn.Module):
    """A network whose output is a parameter, whatever it reads; data are sequences of 3 with 2 channels."""

    def __init__(self, out: Tensor) -> None:
        super().__init__()
        self.out = nn.Parameter(out)
        learned = out.shape[-1] == 4
        self.config = TransformerConfig(
            kind="dit",
            input=None,
            tokens=3,
            patch=1,
            in_channels=2,
            num_classes=3,
            width=8,
            heads=1,
            learn_sigma=learned,
        )

    def forward(self, x: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        return self.out


def batch(steps: list[int], channels: int = 4) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    source = torch.Generator().manual_seed(len(steps))
    data, eps = (torch.randn(len(steps), 3, 2, generator=source, dtype=torch.float64) for _ in range(2))
    out = torch.randn(len(steps), 3, channels, generator=source, dtype=torch.float64)
    return data, eps, out, torch.tensor(steps)


def objective(out: Tensor, **fields: float) -> DdpmObjective:
    return DdpmObjective(Answers(out), DdpmLoss(**fields))  # type: ignore[arg-type]


def divergence(mean_p: float, variance_p: float, mean_q: float, variance_q: float) -> float:
    """KL divergence of two normal densities, as an integral."""
    x = torch.linspace(-12, 12, 4001, dtype=torch.float64) * math.sqrt(variance_p) + mean_p

    def log_density(mean: float, variance: float) -> Tensor:
        return -((x - mean) ** 2) / (2 * variance) - 0.5 * math.log(2 * math.pi * variance)

    p, q = log_density(mean_p, variance_p), log_density(mean_q, variance_q)
    return float(torch.trapezoid(p.exp() * (p - q), x))


def slow_bits(data: float, eps: float, predicted: float, v: float, step: int) -> float:
    """One number's term of the bound."""
    betas = [1e-4 + (2e-2 - 1e-4) * i / 999 for i in range(1000)]
    beta, left = betas[step], math.prod(1 - b for b in betas[: step + 1])
    before = left / (1 - beta)
    x = math.sqrt(left) * data + math.sqrt(1 - left) * eps
    guess = (x - math.sqrt(1 - left) * predicted) / math.sqrt(left)
    if step == 0:
        smallest = betas[1] * (1 - left) / (1 - left * (1 - betas[1]))  # the second step's
        mean, variance = guess, smallest ** ((1 - v) / 2) * beta ** ((1 + v) / 2)
        edges = [(data + side / 255 - mean) / math.sqrt(2 * variance) for side in (-1, 1)]
        return -math.log2(max(0.5 * (math.erf(edges[1]) - math.erf(edges[0])), 1e-12))
    precision = 1 / (1 - before) + (1 - beta) / beta

    def mean_from(d: float) -> float:
        return (math.sqrt(before) * d / (1 - before) + math.sqrt(1 - beta) * x / beta) / precision

    variance = (1 / precision) ** ((1 - v) / 2) * beta ** ((1 + v) / 2)
    return divergence(mean_from(data), 1 / precision, mean_from(guess), variance) / math.log(2)


@pytest.mark.parametrize("steps", [[0, 0], [1, 2], [30, 500], [999, 0]])
def test_bound_equals_the_slow_one(steps: list[int]) -> None:
    data, eps, out, t = batch(steps)
    out[..., :2] = eps + 0.05 * out[..., :2]  # near enough for the bins of step 0
    terms = objective(out, vlb_weight=0.5)(data, torch.zeros(2), t, eps)
    slow = [
        slow_bits(float(data[b, i, c]), float(eps[b, i, c]), float(out[b, i, c]), float(out[b, i, 2 + c]), steps[b])
        for b in range(2)
        for i in range(3)
        for c in range(2)
    ]
    vlb = 1000 * sum(slow) / len(slow)
    assert float(terms["vlb"]) == pytest.approx(vlb, rel=2e-4)
    squared = float((out[..., :2] - eps).square().mean())
    assert float(terms["mse"]) == pytest.approx(squared)
    assert float(terms["loss"].detach()) == pytest.approx(squared + 0.5 * vlb, rel=2e-4)


def test_right_noise_and_smallest_variance_leave_no_divergence() -> None:
    data, eps, out, t = batch([1, 40, 700, 999])
    out[..., :2], out[..., 2:] = eps, -1.0
    assert float(objective(out)(data, torch.zeros(4), t, eps)["vlb"]) == pytest.approx(0, abs=1e-6)


def test_bound_teaches_the_variance_only() -> None:
    data, eps, out, t = batch([3, 0, 500])
    out[..., :2] = eps + 0.05 * out[..., :2]
    with_bound, without = objective(out.clone()), objective(out[..., :2].clone())
    for each in (with_bound, without):
        each(data, torch.zeros(3), t, eps)["loss"].backward()
    gradient, plain = (each.model.out.grad for each in (with_bound, without))
    assert isinstance(gradient, Tensor) and isinstance(plain, Tensor)
    torch.testing.assert_close(gradient[..., :2], plain)
    assert bool((gradient[..., 2:] != 0).all())


def test_weight_of_the_bound_is_a_thousandth() -> None:
    """1000 steps, each drawn once in 1000: the hybrid loss adds the bits of the drawn step."""
    data, eps, out, t = batch([30, 500])
    terms = objective(out)(data, torch.zeros(2), t, eps)
    assert float(terms["loss"].detach() - terms["mse"]) == pytest.approx(float(terms["vlb"]) / 1000)


def test_without_learned_variance_there_is_no_bound() -> None:
    data, eps, out, t = batch([30, 500], channels=2)
    assert set(objective(out)(data, torch.zeros(2), t, eps)) == {"loss", "mse"}


def test_every_step_is_drawn_equally_often() -> None:
    numbers = drawn_steps((torch.arange(4000) + 0.5) / 4000)
    assert torch.equal(numbers.bincount(), torch.full((1000,), 4))
    ends = drawn_steps(torch.tensor([2.0**-24, 1 - 2.0**-24]))
    assert ends.tolist() == [0, 999]


def test_estimate_inverts_diffuse_in_float32() -> None:
    data, eps, _, t = (x.float() if x.is_floating_point() else x for x in batch([0, 3, 500, 900]))
    x = diffuse(FULL, data, eps, t)
    torch.testing.assert_close(estimate(FULL, x, eps, t), data, rtol=1e-4, atol=1e-5)
    first = x[0] - data[0]  # one step of noise has a standard deviation of 0.01
    torch.testing.assert_close(first, 0.01 * eps[0] + (math.sqrt(0.9999) - 1) * data[0], rtol=0, atol=1e-6)


def test_grids_take_part_with_their_channels() -> None:
    torch.manual_seed(0)
    config = TransformerConfig(kind="dit", depth=1, width=16, heads=2, num_classes=3, input=(4, 4), in_channels=2)
    model = LatentTransformer(config)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)
    data, eps, t, labels = (
        torch.randn(2, 2, 4, 4),
        torch.randn(2, 2, 4, 4),
        torch.tensor([10, 600]),
        torch.tensor([0, 3]),
    )
    terms = DdpmObjective(model)(data, labels, t, eps)
    out = model(diffuse(FULL, data, eps, t), t, labels).detach()
    assert out.shape == (2, 4, 4, 4)
    assert float(terms["mse"]) == pytest.approx(float((out[:, :2] - eps).square().mean()), rel=1e-5)
    numbers = [(b, c, i, j) for b in range(2) for c in range(2) for i in range(4) for j in range(4)]
    slow = [
        slow_bits(
            *(float(tensor[n]) for tensor in (data, eps, out)), float(out[n[0], n[1] + 2, n[2], n[3]]), int(t[n[0]])
        )
        for n in numbers
    ]
    assert float(terms["vlb"]) == pytest.approx(1000 * sum(slow) / 64, rel=1e-3)
    terms["loss"].backward()
    assert model.patch.weight.grad is not None and float(model.patch.weight.grad.abs().max()) > 0
