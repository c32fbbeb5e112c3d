"""Truths: the two schedules' formulas by hand, Gaussian conditioning written out, and Monte Carlo. Time: t=1 is data."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from mind.process import EtaMode, Kind, Process, update

KINDS: tuple[Kind, ...] = ("sqrt_t", "cosine", "flow", "ddpm_linear")
MODES: tuple[EtaMode, ...] = ("keep", "ddim_sigma", "fresh")
TIMES = (0.001, 0.1, 0.25, 0.5, 0.75, 0.9, 0.999)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# --- the forward process ----------------------------------------------------------------------------------------------


def factors(kind: Kind, t: float) -> tuple[float, float]:
    """Signal and noise for K1 = K2 = 1."""
    if kind == "sqrt_t":
        return math.sqrt(t), math.sqrt(1 - t)
    if kind == "cosine":
        return math.sin(math.pi * t / 2), math.cos(math.pi * t / 2)
    if kind == "flow":
        return t, 1 - t
    steps = round((1 - t) * 1000)  # at whole steps no interpolation matters
    share = math.prod(1 - (1e-4 + (2e-2 - 1e-4) * i / 999) for i in range(steps))
    return math.sqrt(share), math.sqrt(1 - share)


@pytest.mark.parametrize("kind", KINDS)
def test_factors_against_their_formulas(kind: Kind) -> None:
    process = Process(kind, 0.8, 1.5)
    for t in TIMES:
        signal, sigma = factors(kind, t)
        assert process.signal(t) == pytest.approx(1.5 * signal, rel=1e-9)
        assert process.noise(t) == pytest.approx(0.8 * sigma, rel=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_data_is_without_noise_and_noise_has_the_noise_factor(kind: Kind) -> None:
    process = Process(kind, 0.6, 1.0)
    assert process.noise(1.0) == pytest.approx(0, abs=1e-12) and process.signal(1.0) == pytest.approx(1)
    assert process.signal(0.0) == pytest.approx(0, abs=7e-3)  # the DDPM schedule keeps 4e-5 of the variance
    assert process.noise(0.0) == pytest.approx(0.6, rel=1e-4)
    times = np.linspace(0, 1, 301)
    assert (np.diff([process.signal(t) for t in times]) > 0).all()
    assert (np.diff([process.noise(t) for t in times]) < 0).all()


@pytest.mark.parametrize("kind", KINDS)
def test_tensors_and_floats_agree(kind: Kind) -> None:
    process = Process(kind)
    t = torch.tensor([0.0, *TIMES, 1.0], dtype=torch.float64)
    for function in (process.signal, process.noise, process.flow_time):
        expected = torch.tensor([function(float(v)) for v in t], dtype=torch.float64)
        torch.testing.assert_close(function(t), expected)
        torch.testing.assert_close(function(t.float()), expected.float(), rtol=1e-5, atol=1e-5)
        assert function(t.float()).dtype == torch.float32


def test_states_mix_embedding_and_noise() -> None:
    z, eps, t = noise(3, 2, 4), noise(3, 2, 4, seed=1), torch.tensor([0.0, 0.36, 1.0], dtype=torch.float64)
    found = Process("sqrt_t", 0.5, 2.0).diffuse(z, eps, t)
    torch.testing.assert_close(found[0], 0.5 * eps[0])
    torch.testing.assert_close(found[1], 2 * 0.6 * z[1] + 0.5 * 0.8 * eps[1])
    torch.testing.assert_close(found[2], 2 * z[2])


def test_the_state_at_the_start_has_the_noise_factor_as_deviation() -> None:
    start = Process("sqrt_t", 0.6).diffuse(noise(1, 4000, 16, seed=3), noise(1, 4000, 16), torch.zeros(1))
    assert float(start.std()) == pytest.approx(0.6, rel=0.01)


def test_signal_to_noise_per_coordinate_of_mind_b() -> None:
    """A coordinate of an embedding has variance 4/16."""
    process = Process("sqrt_t", 0.6)
    for t, ratio in ((0.1, 0.0772), (0.3, 0.298), (0.5, 0.694), (0.7, 1.62), (0.9, 6.25)):
        assert process.signal(t) ** 2 * 0.25 / process.noise(t) ** 2 == pytest.approx(ratio, rel=3e-3)


# --- the map to straight paths ----------------------------------------------------------------------------------------


def test_flow_times_of_mind_b() -> None:
    times = (0.1, 0.25, 0.5, 0.75, 0.9)
    process, unit = Process("sqrt_t", 0.6), Process("sqrt_t", 1.0)
    assert [round(process.flow_time(t), 6) for t in times] == [0.357143, 0.490381, 0.625, 0.742716, 0.833333]
    assert [round(unit.flow_time(t), 6) for t in times] == [0.25, 0.366025, 0.5, 0.633975, 0.75]


@pytest.mark.parametrize("kind", KINDS)
def test_there_and_back_is_the_identity(kind: Kind) -> None:
    process = Process(kind, 0.6, 1.3)
    for t in (*TIMES, 0.12345, 1.0):
        assert process.time_of_flow(process.flow_time(t)) == pytest.approx(t, abs=1e-9)


def test_the_inverse_of_the_released_process_in_closed_form() -> None:
    process, q = Process("sqrt_t", 0.8, 1.2), (0.8 / 1.2) ** 2
    for tau in (0.0, 0.2, 0.5, 0.9):
        assert process.time_of_flow(tau) == pytest.approx(q * tau**2 / ((1 - tau) ** 2 + q * tau**2))
    assert process.time_of_flow(1.0) == 1


@pytest.mark.parametrize("kind", KINDS)
def test_scaled_states_lie_on_the_straight_path(kind: Kind) -> None:
    process, z, eps = Process(kind, 0.6, 1.3), noise(1, 3, 4), noise(1, 3, 4, seed=1)
    for t in TIMES:
        tau, scale = process.flow_time(t), process.signal(t) + process.noise(t)
        state = process.diffuse(z, eps, torch.tensor([t], dtype=torch.float64))
        torch.testing.assert_close(state / scale, (1 - tau) * eps + tau * z)


# --- one step back ----------------------------------------------------------------------------------------------------


def step(process: Process, x: Tensor, z: Tensor, fresh: Tensor, eta: float, mode: EtaMode) -> Tensor:
    return update(process, x, z, 0.3, 0.45, fresh, eta, mode)


def test_the_predicted_noise_is_the_noise() -> None:
    process, z, eps = Process(), noise(2, 3, 4), noise(2, 3, 4, seed=1)
    x = process.diffuse(z, eps, torch.full((2,), 0.3, dtype=torch.float64))
    torch.testing.assert_close(process.predicted_noise(x, z, 0.3), eps, rtol=1e-6, atol=1e-6)
    at_data = process.predicted_noise(z + 1e-8, z, 1.0)  # no noise is left: only the added 1e-8 divides
    torch.testing.assert_close(at_data, torch.ones_like(z), rtol=0, atol=1e-6)


def test_the_released_step_written_out() -> None:
    """K1 = 0.6, t = 0.3, u = 0.45, eta = 0.99, one coordinate: numbers by hand."""
    x, x0, xi = 0.7, 0.4, -1.1
    e = (x - math.sqrt(0.3) * x0) / (0.6 * math.sqrt(0.7) + 1e-8)
    s = 0.6 * math.sqrt(0.55)
    expected = math.sqrt(0.45) * x0 + 0.99 * s * e + 0.14106735979665885 * s * xi
    one = torch.ones(1, 1, 1, dtype=torch.float64)
    found = step(Process(), x * one, x0 * one, xi * one, 0.99, "keep")
    assert float(found) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("eta", [0.0, 0.3, 0.99, 1.0])
def test_the_variance_stays_that_of_the_process(kind: Kind, mode: EtaMode, eta: float) -> None:
    """x_t = a z + s e exactly, so the step's noise is P e + F xi: P^2 + F^2 must be the variance at the next time."""
    process, zero, one = Process(kind, 0.6, 1.0), torch.zeros(1, 1, 1).double(), torch.ones(1, 1, 1).double()
    predicted = float(step(process, process.noise(0.3) * one, zero, zero, eta, mode))
    fresh = float(step(process, zero, zero, one, eta, mode))
    assert predicted**2 + fresh**2 == pytest.approx(process.noise(0.45) ** 2, rel=1e-6)


@pytest.mark.parametrize("mode", MODES)
def test_the_variance_by_monte_carlo(mode: EtaMode) -> None:
    process, z = Process(), noise(1, 1, 4, seed=5).expand(1, 50_000, 4)
    x = process.diffuse(z, noise(1, 50_000, 4), torch.tensor([0.3], dtype=torch.float64))
    after = step(process, x, z, noise(1, 50_000, 4, seed=1), 0.7, mode)
    residual = after - math.sqrt(0.45) * z
    assert float(residual.var()) == pytest.approx(0.36 * 0.55, rel=0.015)
    assert float(residual.mean()) == pytest.approx(0, abs=0.006)


def test_full_eta_keeps_the_predicted_noise_and_none_replaces_it() -> None:
    process, x, z = Process(), noise(1, 3, 4), noise(1, 3, 4, seed=1)
    fresh, other = noise(1, 3, 4, seed=2), noise(1, 3, 4, seed=3)
    assert torch.equal(step(process, x, z, fresh, 1.0, "keep"), step(process, x, z, other, 1.0, "keep"))
    renoised = step(process, x, z, fresh, 0.0, "keep")
    torch.testing.assert_close(renoised, process.signal(0.45) * z + process.noise(0.45) * fresh)
    assert torch.equal(renoised, step(process, noise(1, 3, 4, seed=9), z, fresh, 0.0, "keep"))


def test_the_share_of_fresh_noise_at_the_released_eta() -> None:
    process, zero, one = Process(), torch.zeros(1, 1, 1).double(), torch.ones(1, 1, 1).double()
    fresh = float(step(process, zero, zero, one, 0.99, "keep")) / process.noise(0.45)
    assert fresh == pytest.approx(0.14107, abs=5e-6)


def test_the_three_modes_share_the_deterministic_step() -> None:
    process, x, z, fresh = Process(), noise(1, 3, 4), noise(1, 3, 4, seed=1), noise(1, 3, 4, seed=2)
    kept = step(process, x, z, fresh, 1.0, "keep")
    torch.testing.assert_close(step(process, x, z, fresh, 0.0, "fresh"), kept)
    torch.testing.assert_close(step(process, x, z, fresh, 0.0, "ddim_sigma"), kept)


def posterior(process: Process, x: float, z: float, t: float, u: float) -> tuple[float, float]:
    """Return mean and deviation of x_u given x_t and z, by conditioning their joint Gaussian.

    Given z, x_t = r x_u + n with r = a_t/a_u (the signal shrinks by r, so the noise already there does too) and independent n of
    the variance that is missing. Hence Cov(x_u, x_t) = r s_u^2, and the usual regression of one Gaussian on the other.
    """
    r, var_u, var_t = process.signal(t) / process.signal(u), process.noise(u) ** 2, process.noise(t) ** 2
    slope = r * var_u / var_t
    mean = process.signal(u) * z + slope * (x - process.signal(t) * z)
    return mean, math.sqrt(var_u - slope * r * var_u)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("t", "u"), [(0.01, 0.02), (0.3, 0.45), (0.9, 0.99), (0.5, 1.0)])
def test_ddim_sigma_at_one_is_the_posterior(kind: Kind, t: float, u: float) -> None:
    process, one = Process(kind, 0.6, 1.3), torch.ones(1, 1, 1, dtype=torch.float64)
    mean, deviation = posterior(process, 0.7, -0.4, t, u)
    centre = float(update(process, 0.7 * one, -0.4 * one, t, u, 0 * one, 1.0, "ddim_sigma"))
    above = float(update(process, 0.7 * one, -0.4 * one, t, u, one, 1.0, "ddim_sigma"))
    assert centre == pytest.approx(mean, rel=1e-6, abs=1e-9)
    assert above - centre == pytest.approx(deviation, rel=1e-6, abs=1e-9)


def test_the_released_step_at_one_is_not_the_posterior() -> None:
    process, one = Process(), torch.ones(1, 1, 1, dtype=torch.float64)
    mean, deviation = posterior(process, 0.7, -0.4, 0.3, 0.45)
    assert abs(float(step(process, 0.7 * one, -0.4 * one, one, 1.0, "keep")) - mean) > 0.01 and deviation > 0.1


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", KINDS)
def test_the_last_state_is_the_estimate(kind: Kind, mode: EtaMode) -> None:
    x, x0, fresh = noise(1, 3, 4), noise(1, 3, 4, seed=1), noise(1, 3, 4, seed=2)
    for eta in (0.0, 0.99, 1.0):
        last = update(Process(kind), x, x0, 0.996, 1.0, fresh, eta, mode)
        torch.testing.assert_close(last, x0, rtol=0, atol=1e-12)
