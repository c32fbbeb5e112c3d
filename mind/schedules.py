"""When the sampler looks: increasing times from noise (t=0) to data (t=1).

The seven schedules of the released evaluation code of MIND (arXiv 2606.00094); the paper's tables S-1 and S-3 call the first
three Linear, Cosine and Shift-Cos. Only sampling uses them: one trained model serves all schedules.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from latentlab.errors import UserError, unknown_name

START, END = 1e-3, 1.0
"""First and last time of the released run."""

Schedule = Callable[[Tensor, float, float], Tensor]
"""Progress i/n in [0,1], first time a and last time b -> times."""


def _linear(u: Tensor, a: float, b: float) -> Tensor:
    return torch.linspace(a, b, len(u), dtype=u.dtype)  # not a + (b-a) u: they differ in bfloat16


def _cosine_share(u: Tensor) -> Tensor:
    """Return 1 - f(u)/f(0) with f of the cosine noise schedule (arXiv 2102.09672, eq. 17)."""
    f = torch.cos((u + 0.008) / 1.008 * (math.pi / 2)) ** 2
    return 1 - f / f[0]


def _cosine(u: Tensor, a: float, b: float) -> Tensor:
    return _cosine_share(u).clamp(a, b)


def _shifted_cosine(u: Tensor, a: float, b: float) -> Tensor:
    return (_cosine_share(u) ** 2).clamp(a, b)


def _mid_dense(u: Tensor, a: float, b: float) -> Tensor:
    return a + (b - a) * (u + 0.45 / (2 * math.pi) * torch.sin(2 * math.pi * u)).clamp(0, 1)


def _late_dense(u: Tensor, a: float, b: float) -> Tensor:
    return a + (b - a) * (1 - (1 - u) ** 1.65)


def _early_dense(u: Tensor, a: float, b: float) -> Tensor:
    return a + (b - a) * u**1.65


def _logsnr_uniform(u: Tensor, a: float, b: float) -> Tensor:
    low, high = _logit(max(a, 1e-5)), _logit(min(b, 1 - 1e-5))
    times = torch.sigmoid((low + (high - low) * u).float()).to(u.dtype).clamp(a, b)
    times[-1] = b
    return times


def _logit(t: float) -> float:
    return math.log(t / max(1 - t, 1e-5))


SCHEDULES: dict[str, Schedule] = {
    "linear": _linear,
    "cosine": _cosine,
    "shifted_cosine": _shifted_cosine,
    "mid_dense": _mid_dense,
    "late_dense": _late_dense,
    "early_dense": _early_dense,
    "logsnr_uniform": _logsnr_uniform,
}
"""Schedules by name; a suffix moves an end: see `SUFFIXES`."""

SUFFIXES: dict[str, tuple[float | None, float | None]] = {
    "_start0": (0.0, None),
    "_start1e4": (1e-4, None),
    "_end0995": (None, 0.995),
}
"""What a suffix of a schedule's name sets: first time, last time."""


def timesteps(
    name: str,
    steps: int,
    start: float = START,
    end: float = END,
    strict_released_bugs: bool = False,
    dtype: torch.dtype = torch.float64,
) -> Tensor:
    """Return the times t_0 <= ... <= t_steps of a schedule, [steps+1]; t=1 is data.

    ``cosine`` and ``shifted_cosine`` are cut to [start, end] and repeat their first time a little.

    Args:
        name: of `SCHEDULES`, followed by any of `SUFFIXES`, at most one for each end, in either order.
        steps: number of steps, at least 1.
        start: first time, unless a suffix sets it.
        end: last time, unless a suffix sets it.
        strict_released_bugs: do as the released code does with names it cannot read: take suffixes off in the order of `SUFFIXES`
            only, and use ``linear`` for what is left if that is not a schedule.
        dtype: of the arithmetic and the result. The released run had bfloat16, which repeats 20 times of linear with 250 steps.

    Raises:
        UserError: unknown schedule, two suffixes for one end, no step, or times out of order.
    """
    base, first, last = (_parsed_as_released if strict_released_bugs else _parsed)(name)
    a = start if first is None else first
    b = end if last is None else last
    if steps < 1:
        raise UserError(f"a schedule needs at least 1 step, got {steps}")
    if not 0 <= a < b <= 1:
        raise UserError(f"the times of a schedule must be 0 <= start < end <= 1, got start {a} and end {b}")
    progress = (torch.arange(steps + 1, dtype=torch.float64) / steps).to(dtype)
    return SCHEDULES[base](progress, a, b)


def _parsed(name: str) -> tuple[str, float | None, float | None]:
    """Return schedule, first and last time that ``name`` asks for."""
    base, first, last = name, None, None
    while (suffix := next((s for s in SUFFIXES if base.endswith(s)), None)) is not None:
        a, b = SUFFIXES[suffix]
        if (a is not None and first is not None) or (b is not None and last is not None):
            raise UserError(f"schedule '{name}' sets one end twice: keep one suffix for each end")
        base, first, last = base.removesuffix(suffix), first if a is None else a, last if b is None else b
    if base not in SCHEDULES:
        raise unknown_name("schedule", name, SCHEDULES)
    return base, first, last


def _parsed_as_released(name: str) -> tuple[str, float | None, float | None]:
    """Return what the released code makes of ``name``: each suffix is looked for once, in one order, and anything goes."""
    base, first, last = name, None, None
    for suffix, (a, b) in SUFFIXES.items():
        if base.endswith(suffix):
            base, first, last = base.removesuffix(suffix), first if a is None else a, last if b is None else b
    return base if base in SCHEDULES else "linear", first, last
