import pytest
import torch

from latentlab.optimisation import learning_rate, update_average


def test_learning_rate_warms_up_and_decays() -> None:
    rates = [learning_rate(step, steps=100, peak=1e-3, final=1e-5, warmup=10) for step in range(101)]
    assert rates[0] == pytest.approx(1e-4)
    assert rates[10] == max(rates) == 1e-3
    assert rates[55] == pytest.approx((1e-3 + 1e-5) / 2)
    assert rates[100] == pytest.approx(1e-5)


def test_without_decay_the_rate_stays() -> None:
    assert {learning_rate(step, steps=50, peak=0.1, final=0.1, warmup=0) for step in range(50)} == {0.1}


def test_the_average_of_constant_weights_becomes_them() -> None:
    average, weights = [torch.zeros(3)], [torch.ones(3)]
    seen = []
    for step in range(1, 200):
        update_average(average, weights, 0.9, step)
        seen.append(float(average[0][0]))
    assert seen[0] == pytest.approx(1 - 2 / 11)  # the decay of the first step is (1+1)/(10+1)
    assert seen == sorted(seen) and seen[-1] == pytest.approx(1, abs=1e-6)


def test_late_averages_have_the_decay_asked_for() -> None:
    average, weights = [torch.zeros(1)], [torch.ones(1)]
    update_average(average, weights, 0.9, 10_000)
    assert float(average[0]) == pytest.approx(0.1)
