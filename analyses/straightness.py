"""Straightness of sampling paths: how directly an ODE sampler goes from noise to latents, and how evenly.

Definition: Zhong et al., "Diffusing in the Right Space" (arXiv 2606.03578), eq. 10, 11 and figure 10. A path has the states
x_0 (noise) .. x_M (latent) and the steps D_i = x_{i+1} - x_i, each flattened; per path, then averaged over paths:

    straightness   = 1/(M-1) sum_i cos(D_i, D_{i+1})
    efficiency     = |x_M - x_0| / sum_i |D_i|
    length ratio_i = |D_i| / (dt_i |x_M - x_0|),    dt_i in units of the whole time, so 1/M on an even grid

A straight path of constant speed has the value 1 in all of them. Averaged over time the length ratio is 1 / efficiency. Figure 10
sets it beside the irreducible variance I(t) of the velocity: of the exact flow, mean squared speed + I(t) is the same at all
times (`analyses.irreducible`), so its steps are shortest where I(t) is largest.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from analyses.intervals import bootstrap_means, percentile_band, percentile_interval
from latentlab.errors import UserError
from latentlab.latents import BATCH_BYTES, ArrayLike, tensor_of
from latentlab.measurement import Estimate, Interval, Measurement, MetricCard
from latentlab.registry import measurement


class Paths(NamedTuple):
    """What is known of n paths of M steps, float64 numpy arrays."""

    straightness: np.ndarray
    """[n], NaN for a path on which no two steps in a row move."""
    efficiency: np.ndarray
    """[n]."""
    steps: np.ndarray
    """[n,M], length of each step in units of the distance between the ends."""
    skipped: int
    """Pairs of steps of which one does not move; they have no angle and are left out."""


class TrajectoryMeter:
    """Measures n paths from their states as a sampler produces them; holds three states, however many there are."""

    def __init__(self, first: int = 0) -> None:
        """Start before the first state; ``first`` is the number of the first path, for error messages."""
        self._first = first
        self._states = 0
        self._lengths: list[Tensor] = []
        self._start = self._last = self._step = self._cosines = self._pairs = torch.empty(0)

    def add(self, state: Tensor) -> None:
        """Take the next state [n,...], the noise first; it is copied, so a sampler may go on in place.

        Raises:
            UserError: the state has another shape than the one before, or contains NaN or infinity.
        """
        if state.ndim < 2:
            raise UserError(f"a state of a trajectory must be [n,...], got shape {list(state.shape)}")
        state = state.detach().flatten(1).to("cpu", torch.float64, copy=True)
        self._check(state)
        if self._states == 0:
            self._start, self._cosines, self._pairs = state, state.new_zeros(len(state)), state.new_zeros(len(state))
        else:
            self._add_step(state - self._last)
        self._last = state
        self._states += 1

    def _add_step(self, step: Tensor) -> None:
        length = torch.linalg.vector_norm(step, dim=1)
        if self._lengths:
            before = self._lengths[-1]
            moving = (before > 0) & (length > 0)
            cosine = (step * self._step).sum(1) / (before * length)
            self._cosines += torch.where(moving, cosine, 0)
            self._pairs += moving
        self._step = step
        self._lengths.append(length)

    def paths(self) -> Paths:
        """Return what the states so far say.

        Raises:
            UserError: fewer than 3 states, or a path that ends where it began.
        """
        if self._states < 3:
            raise UserError(f"straightness needs at least 2 steps, so 3 states of a trajectory, got {self._states}")
        distance = torch.linalg.vector_norm(self._last - self._start, dim=1)
        if not distance.all():
            path = self._first + int(torch.nonzero(distance == 0)[0])
            raise UserError(f"path {path} of the trajectory ends where it began: it has no direction to compare with")
        steps = torch.stack(self._lengths, dim=1) / distance[:, None]
        skipped = (len(self._lengths) - 1) * len(distance) - int(self._pairs.sum())
        straightness = self._cosines / self._pairs  # 0 / 0 is NaN
        return Paths(straightness.numpy(), (1 / steps.sum(1)).numpy(), steps.numpy(), skipped)

    def _check(self, state: Tensor) -> None:
        if self._states and state.shape != self._last.shape:
            raise UserError(
                f"all states of a trajectory must have one shape: state {self._states} is {list(state.shape)} when "
                f"flattened, the one before {list(self._last.shape)}"
            )
        finite = torch.isfinite(state).all(1)
        if not finite.all():
            path = self._first + int(torch.nonzero(~finite)[0])
            raise UserError(f"state {self._states} of the trajectory contains NaN or infinity (first: path {path})")


def join_paths(parts: Sequence[Paths]) -> Paths:
    """Return the paths of several batches as one."""
    straight, efficiency, steps = (np.concatenate([part[i] for part in parts]) for i in range(3))
    return Paths(straight, efficiency, steps, sum(part.skipped for part in parts))


@measurement(
    MetricCard(
        name="straightness",
        title="Straightness of sampling paths",
        summary="how directly an ODE sampler goes from noise to latents: curved paths need more steps",
        formula="mean_n 1/(M-1) sum_i cos(D_i, D_{i+1}),  D_i = x_{i+1} - x_i,  x_0 noise .. x_M latent",
        unit="cosine",
        range="-1 to 1 (straight)",
        better="higher",
        source="Zhong et al., Diffusing in the Right Space, arXiv 2606.03578, eq. 10, 11; no code; mean of ratios per path, "
        "pairs with a step of length 0 skipped, step lengths per unit of time on uneven grids",
        needs=("trajectory",),
        on_request=True,
        confounds="number and spacing of the steps (more steps, smaller angles), solver, guidance, precision, how well the "
        "generator is trained; a sampler that goes to the likeliest token and not to the mean is straight without an ODE",
        variants={"times=[...]": "length ratios per unit of time on a grid that is not even"},
        invariances="scale, shift, rotation and mirror images of the latent space, and the order of the paths",
        known_values={
            "straight path at constant speed": "straightness, efficiency and all length ratios 1",
            "straight path with positions t^2": "straightness and efficiency 1, length ratios (2i+1)/M",
            "circular arc of angle a": "cos(a/M), efficiency sin(a/2) / (M sin(a/(2M)))",
            "right-angled zig-zag": "0, efficiency 1/sqrt(2), length ratios sqrt(2)",
            "exact flow": "mean squared speed = E|x1 - x0|^2 - I(t) of independent x0, x1: length ratios fall as I(t) rises",
        },
        test="tests/analyses/test_straightness.py::test_circular_arc",
    )
)
def straightness(
    *, trajectory: ArrayLike, times: Sequence[float] | np.ndarray | None = None, seed: int = 0
) -> Measurement:
    """Measure given paths; `TrajectoryMeter` and `summarise` do the same while a sampler runs.

    Args:
        trajectory: states [M+1,n,...], numpy, torch or a list of M+1 states, noise first; 50 Euler steps in the publication.
        times: flow times [M+1] of the states, rising within 0 (noise) to 1 (data); None for an even grid from 0 to 1.
        seed: of the bootstrap over paths.

    Returns:
        Mean cosine between steps that follow each other; ``efficiency`` and ``mean length ratio`` (over time) beside it.
        Interval: bootstrap over paths. ``details``: ``t`` (middle of each step), ``length_ratio``, ``length_ratio_low``,
        ``length_ratio_high`` (95 % band of the mean over paths), all [M].

    Raises:
        UserError: fewer than 2 steps, times that do not fit or do not rise, a path that ends where it began, no two steps
            in a row that move, or non-finite states.
    """
    states = _states(trajectory)
    _ = _checked_times(times, len(states) - 1)  # before the work
    parts = []
    for part in _chunks(states):
        meter = TrajectoryMeter(first=part.start)
        for state in states:
            meter.add(tensor_of("trajectory", state[part]))
        parts.append(meter.paths())
    return summarise(join_paths(parts), times=times, seed=seed)


def summarise(paths: Paths, *, times: Sequence[float] | np.ndarray | None = None, seed: int = 0) -> Measurement:
    """Return the measurement of ``paths``; ``times`` and ``seed`` as in `straightness`."""
    n, m = paths.steps.shape
    grid = _checked_times(times, m)
    share = np.diff(grid) / (grid[-1] - grid[0])  # of the whole time
    defined = np.isfinite(paths.straightness)
    if not defined.any():
        raise UserError("on no path do two steps in a row move: there is no angle to measure")
    ratios = paths.steps / share
    values = np.column_stack(
        [np.where(defined, paths.straightness, 0), defined, paths.efficiency, ratios @ share, ratios]
    )
    straight, efficiency, ratio = _estimates(values.mean(0)[None])
    low = high = np.full(m, np.nan)
    replicates, warnings = None, _cautions(paths, defined)
    intervals: list[Interval | None] = [None] * 3
    if n > 1:
        resampled = bootstrap_means(values, seed)
        columns = _estimates(resampled)
        replicates, intervals = columns[0], [percentile_interval(column, n) for column in columns]
        low, high = percentile_band(resampled[:, 4:], n)
    return Measurement(
        name="straightness",
        variant=f"{m} steps, {'even' if times is None else 'given'} times, mean over paths",
        value=float(straight[0]),
        interval=intervals[0],
        replicates=replicates,
        direction="higher",
        unit="cosine",
        n=n,
        parameters={"times": None if times is None else grid.tolist(), "seed": seed},
        companions={
            "efficiency": Estimate(float(efficiency[0]), intervals[1]),
            "mean length ratio": Estimate(float(ratio[0]), intervals[2]),
        },
        warnings=warnings,
        details={
            "t": (grid[1:] + grid[:-1]) / 2,
            "length_ratio": values.mean(0)[4:],
            "length_ratio_low": low,
            "length_ratio_high": high,
        },
    )


def _estimates(means: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return straightness, efficiency and mean length ratio [r] from column means [r,4+M]."""
    with np.errstate(invalid="ignore", divide="ignore"):  # resamplings of paths without an angle
        return means[:, 0] / means[:, 1], means[:, 2], means[:, 3]


def _states(trajectory: ArrayLike) -> Sequence[Tensor] | Tensor | np.ndarray:
    """Return the states so that iterating and slicing them reads only what is asked for."""
    states = (
        trajectory if isinstance(trajectory, Tensor | np.ndarray) else [tensor_of("trajectory", s) for s in trajectory]
    )
    shape = [len(states), *(states[0].shape if len(states) else ())]
    if len(shape) < 3 or 0 in shape[1:]:
        raise UserError(f"trajectory must be [M+1,n,...] with the noise first, got shape {shape}")
    if other := next((i for i, state in enumerate(states) if state.shape != states[0].shape), 0):
        raise UserError(
            f"all states of a trajectory must have one shape: state {other} is {list(states[other].shape)}, the first "
            f"{list(states[0].shape)}"
        )
    if len(states) < 3:
        raise UserError(f"straightness needs at least 2 steps, so 3 states of a trajectory, got {len(states)}")
    return states


def _chunks(states: Sequence[Tensor] | Tensor | np.ndarray) -> Iterator[slice]:
    """Yield ranges of paths of which one state takes about 8 MB."""
    n, *shape = states[0].shape
    size = max(1, BATCH_BYTES // (8 * int(np.prod(shape))))
    for start in range(0, n, size):
        yield slice(start, min(start + size, n))


def _checked_times(times: Sequence[float] | np.ndarray | None, steps: int) -> np.ndarray:
    """Return the times of the states [M+1], float64."""
    if times is None:
        return np.linspace(0, 1, steps + 1)
    grid = np.asarray(times, dtype=np.float64)
    if grid.shape != (steps + 1,):
        raise UserError(f"times must have one entry per state: got shape {list(grid.shape)} for {steps + 1} states")
    if not (np.diff(grid) > 0).all():
        raise UserError("times must rise from the noise (0) to the data (1): turn the trajectory round if they fall")
    if grid[0] < 0 or grid[-1] > 1 + 1e-6:  # float32 grids may end a rounding above 1
        raise UserError(f"times must lie in [0, 1], 0 for noise and 1 for data, got {grid[0]:g} to {grid[-1]:g}")
    return grid


def _cautions(paths: Paths, defined: np.ndarray) -> tuple[str, ...]:
    """Return what limits this very result."""
    said = []
    if paths.skipped:
        said.append(f"{paths.skipped} pairs of steps were skipped, as one of the two does not move")
    if not defined.all():
        said.append(
            f"{(~defined).sum()} of {len(defined)} paths have no angle at all and do not count for straightness"
        )
    if len(defined) < 2:
        said.append("one path only: an interval over paths is not possible")
    return tuple(said)
