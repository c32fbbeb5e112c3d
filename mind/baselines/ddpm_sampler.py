"""From noise to data with a noise model: ancestral sampling with the learned variance (DDPM), or DDIM.

Time: step numbers, see `mind.baselines.ddpm`; where a time in [0,1] is asked for (the interval of guidance), step s is at
1 - (s+1)/1000, so that 1 is data. Shapes: n samples, then c channels and an h w grid, or l tokens and c channels.
"""

import math
from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from mind.baselines.ddpm import STEPS, Schedule, respaced
from mind.baselines.guidance import GuidanceSettings, Guided, LatentModel, channel_axis
from mind.baselines.latent_samples import Batch, LatentSamples, OnStep, checked_batch


class DdpmSamplerSettings(GuidanceSettings):
    """How `sample_ddpm` walks from noise to data. Times of the guidance interval are 1 - (s+1)/1000 at step number s."""

    what: ClassVar[str] = "DDPM sampler settings"

    solver: Literal["ancestral", "ddim"] = "ancestral"
    """``ancestral`` (arXiv 2006.11239, with the learned variance of arXiv 2102.09672; without one, that of the noise of a step);
    ``ddim`` (arXiv 2010.02502)."""
    steps: int = Field(250, ge=1, le=STEPS)
    """How many of the 1000 steps are kept, evenly spaced."""
    eta: float = Field(0.0, ge=0, le=1)
    """Noise of DDIM: 0 is deterministic, 1 has the variance of the posterior."""


@torch.no_grad()
def sample_ddpm(
    model: LatentModel,
    labels: Tensor | Sequence[int],
    settings: DdpmSamplerSettings | None = None,
    noise: Tensor | None = None,
    seed: int = 0,
    first_index: int = 0,
    indices: Tensor | None = None,
    return_trajectory: bool = False,
    on_step: OnStep | None = None,
) -> LatentSamples:
    """Sample latents, all labels as one batch, on the model's device; sample i depends on (seed, i, its label) only.

    Args:
        model: predicts the noise and, in a second half of its channels, the variance if it learned that.
        labels: class ids [n]; `TransformerConfig.null_class` for no class.
        settings: default: 250 ancestral steps without guidance.
        noise: the first state [n,c,h,w] or [n,l,c] ~ N(0,I), instead of drawn; its precision is that of the states.
        seed: of all random numbers.
        first_index: number of the first sample; the others follow it.
        indices: numbers of the samples, int64 [n], instead of consecutive ones.
        return_trajectory: keep the states.
        on_step: called after every step.

    Returns:
        Samples whose ``times`` count the steps of noise that a state has had: 1000 for the first, 0 for the latents.

    Raises:
        UserError: labels that are not classes of the model, or ``noise`` or ``indices`` of another shape.
    """
    settings = settings or DdpmSamplerSettings()
    batch = checked_batch(model, labels, noise, seed, first_index, indices)
    schedule = respaced(settings.steps)
    walk = _Walk(model, batch, schedule, settings)
    x, states = batch.start, []
    for step in range(settings.steps):
        x, estimate = walk.advance(x, step)
        if return_trajectory:
            states.append(x)
        if on_step is not None:
            on_step(step, x, estimate)
    return LatentSamples(
        latents=x,
        start=batch.start,
        trajectory=torch.stack(states) if return_trajectory else None,
        evaluations=walk.guided.evaluations,
        times=torch.cat([schedule.numbers.flip(0) + 1, torch.zeros(1, dtype=torch.int64)]).double(),
    )


class _Walk:
    """The steps of one batch."""

    def __init__(self, model: LatentModel, batch: Batch, schedule: Schedule, settings: DdpmSamplerSettings) -> None:
        self.batch, self.schedule, self.settings = batch, schedule, settings
        self.guided = Guided(model, batch.labels, settings)
        self._channels, self._learned = model.config.in_channels, model.config.learn_sigma

    def advance(self, x: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """Return the state after a step, and the data estimated at its beginning."""
        kept = self.settings.steps - 1 - step
        number = int(self.schedule.numbers[kept])
        out = self.guided(x, 1 - (number + 1) / STEPS, number)
        axis = channel_axis(x)
        eps = out.narrow(axis, 0, self._channels)
        data = (x - float(self.schedule.noise[kept]) * eps) / float(self.schedule.signal[kept])
        if self.settings.solver == "ddim":
            return self._ddim(data, eps, kept, step), data
        v = out.narrow(axis, self._channels, self._channels) if self._learned else None
        return self._ancestral(x, data, v, kept, step), data

    def _ancestral(self, x: Tensor, data: Tensor, v: Tensor | None, kept: int, step: int) -> Tensor:
        """Draw from the learned Gaussian of where the step came from; the last step takes its mean."""
        schedule = self.schedule
        mean = float(schedule.data_share[kept]) * data + float(schedule.state_share[kept]) * x
        if kept == 0:
            return mean
        smallest, largest = float(schedule.log_smallest[kept]), float(schedule.log_largest[kept])
        share = torch.ones_like(x) if v is None else (v + 1) / 2
        return mean + torch.exp((share * largest + (1 - share) * smallest) / 2) * self.batch.fresh(step)

    def _ddim(self, data: Tensor, eps: Tensor, kept: int, step: int) -> Tensor:
        """Go to the state before that has the same data and noise, with a share of fresh noise (arXiv 2010.02502, eq. 12)."""
        before = float(self.schedule.before[kept])
        fresh = self.settings.eta * math.sqrt(float(self.schedule.posterior_variance[kept]))
        x = math.sqrt(before) * data + math.sqrt(max(1 - before - fresh**2, 0.0)) * eps
        return x + fresh * self.batch.fresh(step) if fresh else x
