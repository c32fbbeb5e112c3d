"""What DiT learns: the noise, and between which bounds the variance of a step lies (arXiv 2102.09672).

The loss is the squared error of the noise plus a small share of the variational bound, whose gradient reaches the variance only.
Time: step numbers 0 .. 999, see `mind.baselines.ddpm`. Shapes: b batch, then c channels and an h w grid, or l tokens and c
channels.
"""

import math
from typing import NamedTuple

import torch
from pydantic import NonNegativeFloat
from torch import Tensor, nn

from latentlab.configuration import Strict
from mind.baselines.ddpm import STEPS, Schedule, full_schedule
from mind.baselines.guidance import channel_axis
from mind.baselines.transformer import LatentTransformer

_BIN = 2 / 255
"""Width within which the last step must hit the data: one of 256 levels in [-1,1] (arXiv 2006.11239, eq. 13)."""

_LEAST = 1e-12


class DdpmLoss(Strict):
    """How much the variational bound counts."""

    vlb_weight: NonNegativeFloat = 1e-3
    """Factor of the bound, which is a sum over all 1000 steps in bits per number, beside the squared error of the noise. Only
    for a network that learns the variance."""


class Gaussian(NamedTuple):
    """Independent normal variables."""

    mean: Tensor
    log_variance: Tensor


def at(table: Tensor, steps: Tensor, like: Tensor) -> Tensor:
    """Return the entries ``steps`` [b] of ``table`` [m] so that they multiply ``like`` [b,...], in its precision."""
    rounded = table.to(like.dtype).to(like.device)  # in this order: not every device has float64
    return rounded[steps].view(-1, *(1,) * (like.ndim - 1))


def diffuse(schedule: Schedule, data: Tensor, eps: Tensor, steps: Tensor) -> Tensor:
    """Return the states after the steps [b] of data and noise, both [b,...]."""
    return at(schedule.signal, steps, data) * data + at(schedule.noise, steps, data) * eps


def estimate(schedule: Schedule, x: Tensor, eps: Tensor, steps: Tensor) -> Tensor:
    """Return the data [b,...] that the predicted noise stands for: the inverse of `diffuse`."""
    return (x - at(schedule.noise, steps, x) * eps) / at(schedule.signal, steps, x)


def posterior(schedule: Schedule, data: Tensor, x: Tensor, steps: Tensor) -> Gaussian:
    """Return q(x before | x, data): where a step comes from, if the data are known."""
    mean = at(schedule.data_share, steps, x) * data + at(schedule.state_share, steps, x) * x
    return Gaussian(mean, at(schedule.log_smallest, steps, x).expand_as(x))


def interpolated_log_variance(schedule: Schedule, v: Tensor, steps: Tensor) -> Tensor:
    """Return the learned log variance [b,...]: v in [-1,1] goes from the posterior's to that of the noise of the step."""
    share = (v + 1) / 2
    return share * at(schedule.log_largest, steps, v) + (1 - share) * at(schedule.log_smallest, steps, v)


def kl_divergence(p: Gaussian, q: Gaussian) -> Tensor:
    """Return KL(p || q) of every number, in nats."""
    ratio = p.log_variance - q.log_variance
    return (ratio.exp() - 1 - ratio + (p.mean - q.mean).square() * torch.exp(-q.log_variance)) / 2


def bin_surprise(data: Tensor, model: Gaussian) -> Tensor:
    """Return -ln of the probability of hitting a bin around every number, in nats.

    Latents have no first and last level as images do, so every bin has two edges.
    """
    scale = torch.exp(-model.log_variance / 2)
    offset = data - model.mean
    upper, lower = (torch.special.ndtr((offset + half) * scale) for half in (_BIN / 2, -_BIN / 2))
    return -(upper - lower).clamp_min(_LEAST).log()


def bound(schedule: Schedule, data: Tensor, x: Tensor, model: Gaussian, steps: Tensor) -> Tensor:
    """Return each sample's term of the variational bound, bits per number, [b].

    Args:
        schedule: all steps.
        data: latents [b,...].
        x: states after the steps.
        model: where the network says the step comes from.
        steps: [b].
    """
    first = (steps == 0).view(-1, *(1,) * (x.ndim - 1))
    nats = torch.where(first, bin_surprise(data, model), kl_divergence(posterior(schedule, data, x, steps), model))
    return nats.flatten(1).mean(1) / math.log(2)


def drawn_steps(uniform: Tensor) -> Tensor:
    """Return step numbers, int64, made of ``uniform`` numbers in (0,1) of the same shape."""
    return (uniform * STEPS).long().clamp_max(STEPS - 1)


class DdpmObjective(nn.Module):
    """The loss of a noise model, as one module, so that data-parallel wrappers see a single forward pass."""

    def __init__(self, model: LatentTransformer, loss: DdpmLoss = DdpmLoss()) -> None:
        """Wrap ``model``."""
        super().__init__()
        self.model, self.loss = model, loss
        self.schedule = full_schedule()

    def forward(self, data: Tensor, labels: Tensor, t: Tensor, eps: Tensor) -> dict[str, Tensor]:
        """Return ``loss`` (with gradient), ``mse`` and, where the variance is learned, ``vlb``: means over the batch.

        ``vlb`` estimates the variational bound of all steps, in bits per number.

        Args:
            data: normalised latents [b,c,h,w] or [b,l,c].
            labels: class ids [b], `TransformerConfig.null_class` where the class is dropped.
            t: step numbers [b].
            eps: noise like ``data`` ~ N(0,I).
        """
        axis, c = channel_axis(data), data.shape[channel_axis(data)]
        x = diffuse(self.schedule, data, eps, t)
        out = self.model(x, t, labels)
        predicted = out.narrow(axis, 0, c)
        squared = (predicted - eps).square().mean()
        if not self.model.config.learn_sigma:
            return {"loss": squared, "mse": squared.detach()}
        fixed = predicted.detach()  # the bound teaches the variance only
        mean = posterior(self.schedule, estimate(self.schedule, x, fixed, t), x, t).mean
        log_variance = interpolated_log_variance(self.schedule, out.narrow(axis, c, c), t)
        vlb = STEPS * bound(self.schedule, data, x, Gaussian(mean, log_variance), t).mean()
        return {"loss": squared + self.loss.vlb_weight * vlb, "mse": squared.detach(), "vlb": vlb.detach()}
