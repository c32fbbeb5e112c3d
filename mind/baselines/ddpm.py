"""The diffusion process of DiT: 1000 steps of noise (arXiv 2006.11239), all of them or some (arXiv 2102.09672).

Time is a step number as the network reads it: 0 is the latent with one step of noise, 999 is nearly all noise. After step s,
x_s = sqrt(abar_s) x + sqrt(1-abar_s) eps. Shapes: m steps that are kept.
"""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from latentlab.errors import UserError

STEPS = 1000
BETAS = (1e-4, 2e-2)
"""Variance of the first and of the last step's noise; those between grow linearly."""


@dataclass(frozen=True)
class Schedule:
    """The steps that are kept, ascending, and what follows for going from one to the one before.

    Attributes:
        numbers: as the network counts, int64 [m].
        abar: share of the data's variance that is left after each, float64 [m].
    """

    numbers: Tensor
    abar: Tensor

    @cached_property
    def signal(self) -> Tensor:
        """Factor sqrt(abar) of the data in a state, float64 [m]."""
        return self.abar.sqrt()

    @cached_property
    def noise(self) -> Tensor:
        """Factor sqrt(1-abar) of the noise in a state, float64 [m]."""
        return (1 - self.abar).sqrt()

    @cached_property
    def before(self) -> Tensor:
        """``abar`` of the step before each, float64 [m]; 1 for the first: data."""
        return torch.cat([torch.ones(1, dtype=torch.float64), self.abar[:-1]])

    @cached_property
    def beta(self) -> Tensor:
        """Variance of the noise that each step adds, float64 [m]."""
        return 1 - self.abar / self.before

    @cached_property
    def posterior_variance(self) -> Tensor:
        """Variance of q(x before | x, data), float64 [m]; 0 for the first."""
        return self.beta * (1 - self.before) / (1 - self.abar)

    @cached_property
    def log_smallest(self) -> Tensor:
        """Logarithm of ``posterior_variance``, float64 [m]; the first, which has none, takes that of the second."""
        variance = self.posterior_variance.clone()
        variance[0] = variance[1] if len(variance) > 1 else self.beta[0]
        return variance.log()

    @cached_property
    def log_largest(self) -> Tensor:
        """Logarithm of ``beta``, float64 [m]."""
        return self.beta.log()

    @cached_property
    def data_share(self) -> Tensor:
        """Factor of the data in the mean of q(x before | x, data), float64 [m]."""
        return self.beta * self.before.sqrt() / (1 - self.abar)

    @cached_property
    def state_share(self) -> Tensor:
        """Factor of the state in the mean of q(x before | x, data), float64 [m]."""
        return (1 - self.before) * (1 - self.beta).sqrt() / (1 - self.abar)


def full_schedule() -> Schedule:
    """Return all 1000 steps."""
    betas = torch.linspace(*BETAS, STEPS, dtype=torch.float64)
    return Schedule(torch.arange(STEPS), torch.cumprod(1 - betas, dim=0))


def respaced(steps: int) -> Schedule:
    """Return ``steps`` of the 1000, evenly spaced from the first to the last; a single one is the last.

    Raises:
        UserError: fewer than 1 or more than 1000.
    """
    if not 1 <= steps <= STEPS:
        raise UserError(f"steps must be in 1 .. {STEPS} for a diffusion of {STEPS} steps, got {steps}")
    stride = (STEPS - 1) / max(steps - 1, 1)
    numbers = torch.tensor([round(i * stride) for i in range(steps)] if steps > 1 else [STEPS - 1])
    return Schedule(numbers, full_schedule().abar[numbers])
