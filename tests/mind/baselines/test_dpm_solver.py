"""DPM-Solver++ on Gaussian data, whose path from noise to data is known in closed form."""

import math

import pytest
import torch
from torch import Tensor

from mind.baselines.diffusion_head import cosine_schedule
from mind.baselines.dpm_solver import Order, Solver, solve, step_orders

MEAN, DEVIATION = 0.7, 0.5
ABAR = cosine_schedule().abar


def abar_at(step: float) -> float:
    """Return abar between steps, its logarithm being linear there."""
    low = min(int(step), 998)
    share = step - low
    return math.exp((1 - share) * math.log(ABAR[low]) + share * math.log(ABAR[low + 1]))


class ExactNoise:
    """The best prediction of the noise for data ~ N(MEAN, DEVIATION^2)."""

    def __init__(self) -> None:
        self.steps: list[float] = []

    def __call__(self, x: Tensor, step: float) -> Tensor:
        self.steps.append(step)
        abar = abar_at(step)
        variance = abar * DEVIATION**2 + 1 - abar
        return math.sqrt(1 - abar) * (x - math.sqrt(abar) * MEAN) / variance


def exact_end(noise: Tensor) -> Tensor:
    """Return where the path ends: the number of standard deviations from the mean does not change along it."""

    def moments(abar: float) -> tuple[float, float]:
        return math.sqrt(abar) * MEAN, math.sqrt(abar * DEVIATION**2 + 1 - abar)

    start_mean, start_deviation = moments(1 / (1 + math.exp(2 * 5.1)))
    end_mean, end_deviation = moments(float(ABAR[0]))
    return end_mean + end_deviation * (noise - start_mean) / start_deviation


def error(evaluations: int, order: Order) -> float:
    noise = torch.linspace(-3, 3, 13, dtype=torch.float64)[:, None]
    return float((solve(ExactNoise(), ABAR, noise, Solver(evaluations, order)) - exact_end(noise)).abs().max())


@pytest.mark.parametrize(("order", "few", "many"), [(1, 60, 120), (2, 60, 120), (3, 15, 30)])
def test_error_falls_with_the_order(order: Order, few: int, many: int) -> None:
    assert math.log2(error(few, order) / error(many, order)) > order - 0.2


def test_few_evaluations_of_the_third_order_reach_the_data() -> None:
    assert error(14, 3) < 0.02  # 14 and 8 are what the released eMIGM takes
    assert error(8, 3) < 0.15
    assert error(8, 3) < error(8, 2) < error(8, 1)


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("evaluations", range(1, 13))
def test_evaluations_are_as_asked(evaluations: int, order: Order) -> None:
    predict = ExactNoise()
    solve(predict, ABAR, torch.zeros(1, 1), Solver(evaluations, order))
    assert len(predict.steps) == evaluations == sum(step_orders(evaluations, order))
    assert predict.steps == sorted(predict.steps, reverse=True)
    assert predict.steps[-1] >= 0 and predict.steps[0] < 999


def test_orders_of_the_fast_solver() -> None:
    assert step_orders(8, 3) == [3, 3, 2]
    assert step_orders(14, 3) == [3, 3, 3, 3, 2]
    assert step_orders(9, 3) == [3, 3, 2, 1]
    assert step_orders(10, 3) == [3, 3, 3, 1]


def test_a_constant_estimate_of_the_data_is_reached_exactly() -> None:
    """Where the estimate does not change, one step of any order ends at alpha_end data + sigma_end times the first noise."""
    data = 2.0

    def predict(x: Tensor, step: float) -> Tensor:
        abar = abar_at(step)
        return (x - math.sqrt(abar) * data) / math.sqrt(1 - abar)

    noise = torch.randn(5, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    first = 1 / (1 + math.exp(2 * 5.1))
    eps = (noise - math.sqrt(first) * data) / math.sqrt(1 - first)
    expected = math.sqrt(ABAR[0]) * data + math.sqrt(1 - ABAR[0]) * eps
    for evaluations in (1, 2, 6):
        torch.testing.assert_close(solve(predict, ABAR, noise, Solver(evaluations)), expected, rtol=1e-9, atol=1e-9)


def test_estimates_are_clipped() -> None:
    """A network that sees no noise at all takes the state for data: 160 times it at the start, so the limit is reached."""
    noise = torch.tensor([[-1.5], [0.5]], dtype=torch.float64)
    (start, end), limit = (1 / (1 + math.exp(2 * 5.1)), float(ABAR[0])), 2.0
    step = 1 - math.sqrt(start / (1 - start) * (1 - end) / end)  # 1 - exp(-h)
    expected = math.sqrt((1 - end) / (1 - start)) * noise + math.sqrt(end) * step * limit * noise.sign()

    def nothing(x: Tensor, step: float) -> Tensor:
        return torch.zeros_like(x)

    torch.testing.assert_close(solve(nothing, ABAR, noise, Solver(1, 1, clip=limit)), expected)


def test_a_limit_that_is_not_reached_changes_nothing() -> None:
    noise = torch.linspace(-3, 3, 13, dtype=torch.float64)[:, None]
    free = solve(ExactNoise(), ABAR, noise, Solver(8))
    assert torch.equal(solve(ExactNoise(), ABAR, noise, Solver(8, clip=5.0)), free)
