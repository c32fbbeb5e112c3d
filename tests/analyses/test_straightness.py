"""Straightness against closed forms, a slow reference, and what must not change the value."""

import numpy as np
import pytest
import torch

import latentlab
from analyses import straightness as module
from analyses.straightness import TrajectoryMeter, join_paths, summarise
from latentlab.errors import UserError


def measure(trajectory: object, **options: object) -> latentlab.Measurement:
    return latentlab.measure("straightness", trajectory=trajectory, **options)


def wandering(steps: int = 12, n: int = 30, shape: tuple[int, ...] = (2, 3, 4), seed: int = 0) -> np.ndarray:
    """Random walks with a drift: no path is straight."""
    rng = np.random.default_rng(seed)
    moves = rng.standard_normal((steps, n, *shape)) + 0.7 * rng.standard_normal((n, *shape))
    return np.concatenate([rng.standard_normal((1, n, *shape)), moves]).cumsum(0)


def reference(x: np.ndarray, times: np.ndarray | None = None) -> tuple[float, float, np.ndarray]:
    """The definitions, one path after the other."""
    m, n = len(x) - 1, x.shape[1]
    dt = np.full(m, 1 / m) if times is None else np.diff(times) / (times[-1] - times[0])
    straight, efficiency, ratios = [], [], []
    for i in range(n):
        steps = np.diff(x[:, i].reshape(m + 1, -1), axis=0)
        lengths = np.linalg.norm(steps, axis=1)
        distance = np.linalg.norm(x[-1, i] - x[0, i])
        straight.append(np.mean([steps[j] @ steps[j + 1] / lengths[j] / lengths[j + 1] for j in range(m - 1)]))
        efficiency.append(distance / lengths.sum())
        ratios.append(lengths / dt / distance)
    return float(np.mean(straight)), float(np.mean(efficiency)), np.mean(ratios, axis=0)


def line(positions: np.ndarray) -> np.ndarray:
    """Two paths along straight lines, [M+1,2,3]."""
    return positions[:, None, None] * np.array([[1.0, -2, 0.5], [0, 3, 1]]) + np.array([0.3, 0.1, -1])


def test_straight_and_even_is_one_everywhere() -> None:
    measured = measure(line(np.linspace(0, 1, 51)))
    assert measured.value == pytest.approx(1, abs=1e-12)
    assert measured.companions["efficiency"].value == pytest.approx(1, abs=1e-12)
    assert measured.companions["mean length ratio"].value == pytest.approx(1, abs=1e-12)
    np.testing.assert_allclose(measured.details["length_ratio"], np.ones(50), atol=1e-12)
    np.testing.assert_allclose(measured.details["t"], np.arange(50) / 50 + 0.01)


def test_straight_but_accelerating() -> None:
    measured = measure(line(np.linspace(0, 1, 51) ** 2))
    assert measured.value == pytest.approx(1, abs=1e-12)
    np.testing.assert_allclose(measured.details["length_ratio"], (2 * np.arange(50) + 1) / 50, atol=1e-12)
    np.testing.assert_allclose(measured.details["length_ratio"][:3], [0.02, 0.06, 0.10], atol=1e-12)


def test_circular_arc() -> None:
    """Chords of an arc of angle a in M parts turn by a/M each; chord lengths are 2 sin(half the angle)."""
    angle = np.linspace(0, 1.7, 51)
    measured = measure(np.stack([np.cos(angle), np.sin(angle)], axis=1)[:, None])
    assert measured.value == pytest.approx(np.cos(1.7 / 50), abs=1e-12)
    assert measured.value == pytest.approx(0.9994220557, abs=1e-10)
    efficiency = measured.companions["efficiency"].value
    assert efficiency == pytest.approx(np.sin(0.85) / (50 * np.sin(1.7 / 100)), abs=1e-12)
    assert efficiency == pytest.approx(0.8839018742, abs=1e-10)
    np.testing.assert_allclose(measured.details["length_ratio"], 1.1313473014, atol=1e-10)


def test_right_angled_zigzag() -> None:
    moves = np.array([[1.0, 0], [0, 1]] * 5)
    measured = measure(np.concatenate([np.zeros((1, 2)), moves.cumsum(0)])[:, None])
    assert measured.value == pytest.approx(0, abs=1e-12)
    assert measured.companions["efficiency"].value == pytest.approx(0.7071067812, abs=1e-10)
    np.testing.assert_allclose(measured.details["length_ratio"], 2**0.5, atol=1e-12)


def test_euler_steps_of_a_gaussian_flow_approach_its_exact_paths() -> None:
    """x_t = t mu + s x_0, s^2 = (1-t)^2 + t^2 lambda, is the flow of N(mu, lambda); its velocity is mu + s'/s (x - t mu)."""
    rng = np.random.default_rng(0)
    mu, lam, start = rng.standard_normal(6), np.array([4, 2, 1, 0.5, 0.1, 0.01]), rng.standard_normal((50, 6))

    def scale(t: float) -> np.ndarray:
        return np.sqrt((1 - t) ** 2 + t**2 * lam)

    def gaps(m: int) -> np.ndarray:
        x, solved = start, [start]
        times = np.linspace(0, 1, m + 1)
        for t in times[:-1]:
            x = x + (mu + (t * lam - (1 - t)) / scale(t) ** 2 * (x - t * mu)) / m
            solved.append(x)
        exact = np.stack([t * mu + scale(t) * start for t in times])
        pair = [measure(np.stack(solved)), measure(exact)]
        return np.abs(np.subtract(*[[p.value, p.companions["efficiency"].value] for p in pair]))

    coarse, fine = gaps(20), gaps(320)
    assert (fine < coarse / 8).all() and (fine < 2e-3).all()


@pytest.mark.parametrize("times", [None, np.linspace(0, 1, 13) ** 2, np.linspace(0.1, 0.9, 13) ** 1.5])
def test_equals_the_definition(times: np.ndarray | None) -> None:
    x = wandering()
    measured = measure(x, times=times)
    straight, efficiency, ratios = reference(x, times)
    assert measured.value == pytest.approx(straight, abs=1e-12)
    assert measured.companions["efficiency"].value == pytest.approx(efficiency, abs=1e-12)
    np.testing.assert_allclose(measured.details["length_ratio"], ratios, rtol=1e-12)


def test_mean_length_ratio_is_the_mean_of_one_over_efficiency() -> None:
    x = wandering(n=1)
    for times in (None, np.linspace(0, 1, 13) ** 2):
        companions = measure(x, times=times).companions
        assert companions["mean length ratio"].value == pytest.approx(1 / companions["efficiency"].value, rel=1e-12)


def test_uneven_times_undo_uneven_steps() -> None:
    """A straight path at constant speed has the ratio 1 however its times are chosen."""
    times = np.linspace(0, 1, 21) ** 2
    measured = measure(line(times), times=times.tolist())
    np.testing.assert_allclose(measured.details["length_ratio"], 1, atol=1e-12)
    np.testing.assert_allclose(measured.details["t"], (times[1:] + times[:-1]) / 2)
    assert measured.parameters["times"] == times.tolist() and "given times" in measured.variant


def test_every_path_counts_the_same() -> None:
    """Mean of ratios, not ratio of means: a path a thousand times longer weighs no more."""
    x = wandering(n=2)
    one, two = measure(x[:, :1]), measure(x[:, 1:])
    both = measure(x * np.array([1, 1000])[:, None, None, None])
    for of in (lambda m: m.value, lambda m: m.companions["efficiency"].value):
        assert of(both) == pytest.approx((of(one) + of(two)) / 2, rel=1e-12)


def test_steps_that_do_not_move_are_skipped() -> None:
    x = wandering(steps=6, n=3)
    paused = np.concatenate([x[:3], x[2:3], x[3:]])  # all paths wait once
    kept = [j for j in range(5) if j != 1]  # the pair around the pause is lost
    steps = np.diff(x.reshape(7, 3, -1), axis=0)
    steps /= np.linalg.norm(steps, axis=2, keepdims=True)
    cosines = (steps[1:] * steps[:-1]).sum(2)
    measured = measure(paused)
    assert measured.value == pytest.approx(cosines[kept].mean(), abs=1e-12)
    assert measured.companions["efficiency"].value == pytest.approx(measure(x).companions["efficiency"].value)
    assert measured.warnings == ("6 pairs of steps were skipped, as one of the two does not move",)


def test_paths_without_any_angle_are_left_out() -> None:
    x = wandering(steps=2, n=4)
    x[1, 0] = x[0, 0]
    measured = measure(x)
    assert measured.value == pytest.approx(measure(x[:, 1:]).value, rel=1e-12)
    assert "1 of 4 paths have no angle" in measured.warnings[1]
    assert measured.interval[0] <= measured.value <= measured.interval[1]
    with pytest.raises(UserError, match="no angle to measure"):
        measure(x[:, :1])


def test_interval_is_the_bootstrap_over_paths() -> None:
    x = wandering(n=400)
    measured = measure(x)
    each = [measure(x[:, i : i + 1]).value for i in range(400)]
    low, high = measured.interval
    assert high - low == pytest.approx(2 * 1.96 * np.std(each) / 20, rel=0.15)
    assert measured.interval == tuple(np.percentile(measured.replicates, (2.5, 97.5)))
    assert (measured.details["length_ratio_low"] < measured.details["length_ratio"]).all()
    assert measure(x, seed=1).value == measured.value and measure(x, seed=1).interval != measured.interval


def test_one_path_has_no_interval() -> None:
    measured = measure(wandering(n=1))
    assert measured.interval is None and measured.replicates is None and "one path" in measured.warnings[0]
    assert np.isnan(measured.details["length_ratio_low"]).all()


def test_batches_order_and_form_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    x = wandering()
    whole = measure(x)
    order = np.random.default_rng(1).permutation(30)
    assert measure(x[:, order]).value == pytest.approx(whole.value, rel=1e-12)
    assert measure(x.reshape(13, 30, -1)).value == pytest.approx(whole.value, rel=1e-12)
    assert measure(torch.from_numpy(x)).value == whole.value
    assert measure([torch.from_numpy(state) for state in x]).value == whole.value
    assert measure(x.astype(np.float32)).value == pytest.approx(whole.value, abs=1e-6)
    x.flags.writeable = False  # as a memory map
    monkeypatch.setattr(module, "BATCH_BYTES", 8 * 24 * 7)
    parted = measure(x)
    assert parted.value == pytest.approx(whole.value, rel=1e-12)
    np.testing.assert_allclose(parted.interval, whole.interval, rtol=1e-12)


def test_turning_and_scaling_space_changes_nothing() -> None:
    x = wandering().reshape(13, 30, 24)
    turn = np.linalg.qr(np.random.default_rng(2).standard_normal((24, 24)))[0]
    assert measure(3 * x @ turn + 5).value == pytest.approx(measure(x).value, rel=1e-12)


def test_a_sampler_may_go_on_in_place() -> None:
    """The meter sees the same tensor at every step, as when a sampler adds to its state."""
    x = torch.from_numpy(wandering())
    meters = [TrajectoryMeter(), TrajectoryMeter(first=10)]
    for meter, part in zip(meters, (slice(0, 10), slice(10, None)), strict=True):
        state = x[0, part].clone()
        meter.add(state)
        for step in x[1:, part] - x[:-1, part]:
            state += step
            meter.add(state)
    measured = summarise(join_paths([meter.paths() for meter in meters]))
    whole = measure(x)
    assert measured.value == pytest.approx(whole.value, rel=1e-12)
    np.testing.assert_allclose(measured.interval, whole.interval, rtol=1e-12)


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        (lambda x: x[:2], {}, "at least 2 steps, so 3 states of a trajectory, got 2"),
        (lambda x: x[:, 0, 0, 0, 0], {}, r"must be \[M\+1,n,...\] .* got shape \[13\]"),
        (lambda x: x[:, :0], {}, "got shape"),
        (lambda x: x[:0], {}, "got shape|got 0"),
        (lambda x: x, {"times": np.linspace(0, 1, 12)}, r"got shape \[12\] for 13 states"),
        (lambda x: x, {"times": np.linspace(1, 0, 13)}, "times must rise"),
        (lambda x: x, {"times": np.linspace(0, 2, 13)}, r"times must lie in \[0, 1\], .* got 0 to 2"),
        (lambda x: np.concatenate([x, x[:1]]), {}, "path 0 of the trajectory ends where it began"),
        (lambda x: [*x[:-1], x[-1][:, :1]], {}, "must have one shape: state 12"),
        (lambda x: [x[0][:20], *x[1:]], {}, r"one shape: state 1 is \[30, 2, 3, 4\], the first \[20, 2, 3, 4\]"),
        (lambda x: [*x[:-1], x[-1].swapaxes(1, 2)], {}, r"one shape: state 12 is \[30, 3, 2, 4\]"),
    ],
)
def test_what_cannot_be_measured_is_refused(change: object, options: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        measure(change(wandering()), **options)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_non_finite_states_are_named(bad: float, monkeypatch: pytest.MonkeyPatch) -> None:
    x = wandering()
    x[4, 23, 1, 0, 0] = bad
    monkeypatch.setattr(module, "BATCH_BYTES", 8 * 24 * 10)
    with pytest.raises(UserError, match=r"state 4 of the trajectory contains NaN or infinity .first: path 23"):
        measure(x)


def test_a_trajectory_is_needed() -> None:
    with pytest.raises(UserError, match="needs trajectory"):
        latentlab.measure("straightness")
