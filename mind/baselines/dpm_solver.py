"""DPM-Solver++: the deterministic path from noise to data in a few network evaluations (Lu et al. 2022, arXiv 2211.01095).

The single-step solvers of orders 1, 2 and 3 for a network that predicts noise, at even spacing of the log signal-to-noise ratio.
The exponential integrators solve the linear part of the equation exactly, so that only the change of the estimate of the data
within a step is approximated. Notation as in the paper: lambda = ln(alpha/sigma), x = alpha x0 + sigma eps.
"""

import math
from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor

Order = Literal[1, 2, 3]
Predict = Callable[[Tensor, float], Tensor]
"""State [m,d] and step number, which may lie between two -> predicted noise [m,d]."""

_LOWEST = -5.1
"""The cosine schedule ends at lambda = -9.9, of which the end is dropped, as the reference implementation does."""


class Solver(NamedTuple):
    """Which solver to take."""

    evaluations: int
    """Of the network."""
    order: Order = 3
    """Of most steps; the last ones are of lower orders, so that ``evaluations`` comes out."""
    clip: float | None = None
    """Largest absolute value of the estimated data (static thresholding, section 4.3)."""


def solve(predict: Predict, signal: Tensor, noise: Tensor, solver: Solver) -> Tensor:
    """Return data [m,d] at the end of the path that starts from ``noise`` [m,d].

    Args:
        predict: the network.
        signal: share abar of signal variance at every step the network was trained on, [steps], falling.
        noise: ~ N(0,I).
        solver: order and number of evaluations.
    """
    path = _Path(predict, signal.double().cpu(), solver.clip)
    orders = step_orders(solver.evaluations, solver.order)
    corners = torch.linspace(max(_LOWEST, path.first), path.last, len(orders) + 1, dtype=torch.float64).tolist()
    x = noise
    for start, end, now in zip(corners[:-1], corners[1:], orders, strict=True):
        x = _STEPS[now](path, x, start, end)
    return x


def step_orders(evaluations: int, order: Order) -> list[int]:
    """Return the orders of the steps; they sum to ``evaluations`` (the rule of "DPM-Solver-fast", arXiv 2206.00927, app. D)."""
    if order == 1:
        return [1] * evaluations
    if order == 2:
        return [2] * (evaluations // 2) + [1] * (evaluations % 2)
    full, rest = divmod(evaluations, 3)
    return [3] * (full - 1) + [2, 1] if rest == 0 else [3] * full + [rest]


def clipped(data: Tensor, limit: float | None) -> Tensor:
    """Return estimated data with no number beyond ``limit``; None for no limit."""
    return data if limit is None else data.clamp(-limit, limit)


class _Path:
    """Scales and estimates of the data along lambda."""

    def __init__(self, predict: Predict, signal: Tensor, clip: float | None) -> None:
        self._predict, self._clip = predict, clip
        self._ratios = torch.log(signal / (1 - signal)) / 2  # falling
        self.first, self.last = float(self._ratios[-1]), float(self._ratios[0])
        self._log_alphas = torch.log(signal) / 2

    def scales(self, ratio: float) -> tuple[float, float]:
        """Return alpha and sigma at lambda."""
        return math.sqrt(1 / (1 + math.exp(-2 * ratio))), math.sqrt(1 / (1 + math.exp(2 * ratio)))

    def data(self, x: Tensor, ratio: float) -> Tensor:
        """Return the estimate of the data at a state and its lambda."""
        alpha, sigma = self.scales(ratio)
        return clipped((x - sigma * self._predict(x, self._step(ratio))) / alpha, self._clip)

    def _step(self, ratio: float) -> float:
        """Return the step number at lambda; between two steps ln alpha is linear."""
        goal = -math.log1p(math.exp(-2 * ratio)) / 2
        after = int(torch.searchsorted(-self._log_alphas, -goal).clamp(1, len(self._log_alphas) - 1))
        high, low = self._log_alphas[after - 1].item(), self._log_alphas[after].item()
        return min(max(after - 1 + (high - goal) / (high - low), 0.0), len(self._log_alphas) - 1.0)


def _first_order(path: _Path, x: Tensor, start: float, end: float) -> Tensor:
    return _moved(path, x, path.data(x, start), start, end)


def _second_order(path: _Path, x: Tensor, start: float, end: float) -> Tensor:
    h = end - start
    data = path.data(x, start)
    middle = path.data(_moved(path, x, data, start, start + h / 2), start + h / 2)
    return _moved(path, x, middle, start, end)  # D + (D_middle - D) / (2 r) with r = 1/2


def _third_order(path: _Path, x: Tensor, start: float, end: float) -> Tensor:
    h = end - start
    data = path.data(x, start)
    first = path.data(_moved(path, x, data, start, start + h / 3), start + h / 3)
    there = start + 2 * h / 3
    second = path.data(
        _moved(path, x, data, start, there) + path.scales(there)[0] * 2 * _phi(2 * h / 3) * (first - data), there
    )
    return _moved(path, x, data, start, end) + path.scales(end)[0] * 1.5 * _phi(h) * (second - data)


def _moved(path: _Path, x: Tensor, data: Tensor, start: float, end: float) -> Tensor:
    """Return the state at ``end`` if the estimate of the data stayed the same from ``start``."""
    (_, before), (alpha, after) = path.scales(start), path.scales(end)
    return after / before * x - alpha * math.expm1(start - end) * data


def _phi(h: float) -> float:
    """Return 1 - (1 - exp(-h)) / h, the weight of a change of the estimate that is linear in lambda."""
    return math.expm1(-h) / h + 1


_STEPS = {1: _first_order, 2: _second_order, 3: _third_order}
