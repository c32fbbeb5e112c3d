"""The diffusion process against its definition: products of steps, and Bayes' rule."""

import math
from itertools import pairwise

import pytest
import torch

from latentlab.errors import UserError
from mind.baselines.ddpm import full_schedule, respaced


def betas() -> list[float]:
    return [1e-4 + (2e-2 - 1e-4) * i / 999 for i in range(1000)]


def test_all_steps_are_products_of_single_ones() -> None:
    schedule, left = full_schedule(), 1.0
    for number, beta in enumerate(betas()):
        assert float(schedule.beta[number]) == pytest.approx(beta, rel=1e-9)
        left *= 1 - beta
        assert float(schedule.abar[number]) == pytest.approx(left, rel=1e-9)
    assert left == pytest.approx(4.0358e-5, rel=1e-4)  # the value that is quoted for this schedule
    assert float(schedule.signal[-1] ** 2 + schedule.noise[-1] ** 2) == pytest.approx(1)


def test_250_steps_are_those_of_improved_ddpm() -> None:
    numbers = respaced(250).numbers.tolist()
    assert (numbers[:4], numbers[-3:]) == ([0, 4, 8, 12], [991, 995, 999])
    assert len(set(numbers)) == 250 and {b - a for a, b in pairwise(numbers)} == {4, 5}
    assert respaced(1000).numbers.tolist() == list(range(1000))
    assert (respaced(2).numbers.tolist(), respaced(1).numbers.tolist()) == ([0, 999], [999])


@pytest.mark.parametrize("steps", [0, 1001])
def test_a_number_of_steps_that_cannot_be(steps: int) -> None:
    with pytest.raises(UserError, match=f"steps must be in 1 .. 1000 .*got {steps}"):
        respaced(steps)


@pytest.mark.parametrize("steps", [1000, 37, 2])
def test_posterior_is_bayes_rule(steps: int) -> None:
    """Given the data d, the state y before has the prior N(sqrt(before) d, 1 - before); x = sqrt(1 - beta) y + noise."""
    schedule, single = respaced(steps), betas()
    kept = schedule.numbers.tolist()
    for i in {1, len(kept) // 2, len(kept) - 1} - {0}:
        before = math.prod(1 - b for b in single[: kept[i - 1] + 1])
        beta = 1 - math.prod(1 - b for b in single[kept[i - 1] + 1 : kept[i] + 1])
        precision = 1 / (1 - before) + (1 - beta) / beta
        assert float(schedule.beta[i]) == pytest.approx(beta, rel=1e-6)
        assert float(schedule.posterior_variance[i]) == pytest.approx(1 / precision, rel=1e-6)
        assert float(schedule.log_smallest[i]) == pytest.approx(-math.log(precision), rel=1e-6)
        assert float(schedule.data_share[i]) == pytest.approx(math.sqrt(before) / (1 - before) / precision, rel=1e-6)
        assert float(schedule.state_share[i]) == pytest.approx(math.sqrt(1 - beta) / beta / precision, rel=1e-6)


@pytest.mark.parametrize("steps", [1000, 10, 1])
def test_the_step_to_the_data_is_certain(steps: int) -> None:
    schedule = respaced(steps)
    assert float(schedule.posterior_variance[0]) == 0
    assert (float(schedule.data_share[0]), float(schedule.state_share[0])) == (pytest.approx(1), 0)
    assert torch.isfinite(schedule.log_smallest).all()
