"""From noise to data with a velocity model: the ODE by Euler or Heun, or an SDE with the same marginals.

Time: t=0 is noise, t=1 is data. With the score s = (t v - x) / (1-t) of the straight path, every
dx = (v + w s) dt + sqrt(2 w) dW has the marginals of the ODE dx = v dt (SiT, arXiv 2401.08740); here w = sde_noise (1-t), the
default of SiT's sample scripts. Shapes: n samples, then c channels and an h w grid, or l tokens and c channels.
"""

import math
from collections.abc import Sequence
from typing import ClassVar, Literal, NamedTuple

import torch
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor

from mind.baselines.guidance import GuidanceSettings, Guided, LatentModel, channel_axis
from mind.baselines.latent_samples import Batch, LatentSamples, OnStep, checked_batch


class FlowSamplerSettings(GuidanceSettings):
    """How `sample_flow` walks from noise to data. Times of the guidance interval are flow times."""

    what: ClassVar[str] = "flow sampler settings"

    solver: Literal["euler", "heun", "sde"] = "euler"
    """``euler`` and ``heun`` (second order, two evaluations a step) solve the ODE; ``sde`` is Euler-Maruyama."""
    steps: PositiveInt = 50
    """Number of steps. The published SiT and LightningDiT code counts points in time and takes one step less."""
    time_shift: PositiveFloat = 1.0
    """s in t -> s t / (1 + (s-1) t), which moves even times towards noise when below 1; LightningDiT's is 0.3."""
    sde_noise: NonNegativeFloat = 1.0
    """Factor of the noise w = sde_noise (1-t); 0 is the ODE."""
    sde_last_step: float = Field(0.04, ge=0, lt=1)
    """Size of the last step of an SDE, which adds no noise, before ``time_shift`` moves its beginning; the others share the rest
    evenly. 0 makes all alike."""


def flow_times(settings: FlowSamplerSettings) -> list[float]:
    """Return the steps+1 times from 0 (noise) to 1 (data)."""
    n, last = settings.steps, settings.sde_last_step
    if settings.solver == "sde" and last and n > 1:
        times = [i / (n - 1) * (1 - last) for i in range(n)] + [1.0]
    else:
        times = [i / n for i in range(n + 1)]
    s = settings.time_shift
    return [s * t / (1 + (s - 1) * t) for t in times]


@torch.no_grad()
def sample_flow(
    model: LatentModel,
    labels: Tensor | Sequence[int],
    settings: FlowSamplerSettings | None = None,
    noise: Tensor | None = None,
    seed: int = 0,
    first_index: int = 0,
    indices: Tensor | None = None,
    return_trajectory: bool = False,
    on_step: OnStep | None = None,
) -> LatentSamples:
    """Sample latents, all labels as one batch, on the model's device; sample i depends on (seed, i, its label) only.

    Args:
        model: predicts the velocity; further channels it may have are not used.
        labels: class ids [n]; `TransformerConfig.null_class` for no class.
        settings: default: 50 Euler steps without guidance.
        noise: the first state [n,c,h,w] or [n,l,c] ~ N(0,I), instead of drawn; its precision is that of the states.
        seed: of all random numbers.
        first_index: number of the first sample; the others follow it.
        indices: numbers of the samples, int64 [n], instead of consecutive ones.
        return_trajectory: keep the states.
        on_step: called after every step.

    Returns:
        Samples whose ``times`` are flow times, 0 .. 1.

    Raises:
        UserError: labels that are not classes of the model, or ``noise`` or ``indices`` of another shape.
    """
    settings = settings or FlowSamplerSettings()
    batch = checked_batch(model, labels, noise, seed, first_index, indices)
    walk = _Walk(model, batch, settings)
    times, x, states = flow_times(settings), batch.start, []
    for step in range(settings.steps):
        x, estimate = walk.advance(x, _Step(step, times[step], times[step + 1], step == settings.steps - 1))
        if return_trajectory:
            states.append(x)
        if on_step is not None:
            on_step(step, x, estimate)
    return LatentSamples(
        latents=x,
        start=batch.start,
        trajectory=torch.stack(states) if return_trajectory else None,
        evaluations=walk.guided.evaluations,
        times=torch.tensor(times, dtype=torch.float64),
    )


class _Step(NamedTuple):
    """One step from time t to time u."""

    number: int
    t: float
    u: float
    last: bool


class _Walk:
    """The steps of one batch."""

    def __init__(self, model: LatentModel, batch: Batch, settings: FlowSamplerSettings) -> None:
        self.batch, self.settings = batch, settings
        self.guided = Guided(model, batch.labels, settings)
        self._channels = model.config.in_channels

    def advance(self, x: Tensor, step: _Step) -> tuple[Tensor, Tensor]:
        """Return the state after a step, and the data estimated at its beginning."""
        velocity = self._velocity(x, step.t)
        estimate = x + (1 - step.t) * velocity
        if self.settings.solver == "sde":
            return self._noisy(x, velocity, step), estimate
        size = step.u - step.t
        if self.settings.solver == "heun":
            velocity = (velocity + self._velocity(x + size * velocity, step.u)) / 2
        return x + size * velocity, estimate

    def _noisy(self, x: Tensor, velocity: Tensor, step: _Step) -> Tensor:
        """Take a step of Euler-Maruyama; w s = sde_noise (t v - x) has no singularity."""
        size, share = step.u - step.t, self.settings.sde_noise
        x = x + size * (velocity + share * (step.t * velocity - x))
        if step.last and self.settings.sde_last_step:
            return x
        return x + math.sqrt(2 * share * (1 - step.t) * size) * self.batch.fresh(step.number)

    def _velocity(self, x: Tensor, t: float) -> Tensor:
        return self.guided(x, t, t).narrow(channel_axis(x), 0, self._channels)
