"""Flow matching on the straight path (arXiv 2209.03003, 2210.02747): what SiT and LightningDiT learn.

Time: t=0 is noise, t=1 is data, x_t = (1-t) x_0 + t x_1, and the network predicts the velocity x_1 - x_0. SiT (arXiv 2401.08740)
draws times uniformly and takes the squared error; LightningDiT (arXiv 2501.01423) draws logit-normal times and adds 1 minus the
cosine between predicted and true velocity. Shapes: b batch, then c channels and an h w grid, or l tokens and c channels.
"""

import math
from typing import Any, Literal

import torch
from pydantic import Field, NonNegativeFloat, PositiveFloat
from torch import Tensor, nn
from torch.nn import functional

from latentlab.configuration import Strict
from mind.baselines.guidance import channel_axis
from mind.baselines.transformer import LatentTransformer
from mind.baselines.transformer_config import Kind
from mind.float64 import as_float64


class FlowLoss(Strict):
    """Which times a flow is trained at, and the terms of its loss."""

    times: Literal["uniform", "logit_normal"] = "uniform"
    """Uniform in (0,1), or the logistic function of a normal variable."""
    logit_mean: float = Field(0.0, allow_inf_nan=False)
    """Mean of that normal variable."""
    logit_std: PositiveFloat = 1.0
    """Its standard deviation."""
    cosine_weight: NonNegativeFloat = 0.0
    """Weight of 1 - cos(predicted, true velocity), the cosine over the channels of one place."""


_OF_KIND: dict[Kind, dict[str, Any]] = {
    "sit": {},
    "lightningdit": {"times": "logit_normal", "cosine_weight": 1.0},
}


def flow_loss(kind: Literal["sit", "lightningdit"], /, **fields: Any) -> FlowLoss:
    """Return the loss that a kind of transformer was published with, with some fields changed."""
    return FlowLoss(**{**_OF_KIND[kind], **fields})


def interpolate(data: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    """Return x_t of data x_1 and noise x_0 (both [b,...]) at times [b] (1 is data)."""
    t = t.to(data.dtype).view(-1, *(1,) * (data.ndim - 1))
    return (1 - t) * noise + t * data


def drawn_times(uniform: Tensor, loss: FlowLoss) -> Tensor:
    """Return training times [b] (1 is data), in the precision of the numbers ``uniform`` [b] in (0,1) they are made of."""
    if loss.times == "uniform":
        return uniform
    normal = math.sqrt(2) * torch.erfinv(2 * as_float64(uniform) - 1)
    return torch.sigmoid(loss.logit_mean + loss.logit_std * normal).to(uniform)


class FlowObjective(nn.Module):
    """The loss of a velocity model, as one module, so that data-parallel wrappers see a single forward pass."""

    def __init__(self, model: LatentTransformer, loss: FlowLoss) -> None:
        """Wrap ``model``, whose channels beyond those of the latents, if any, stay unused."""
        super().__init__()
        self.model, self.loss = model, loss

    def forward(self, data: Tensor, labels: Tensor, t: Tensor, eps: Tensor) -> dict[str, Tensor]:
        """Return ``loss`` (with gradient), ``mse`` and, unless its weight is 0, ``cosine``: means over batch and places.

        Args:
            data: normalised latents [b,c,h,w] or [b,l,c].
            labels: class ids [b], `TransformerConfig.null_class` where the class is dropped.
            t: times [b], 1 is data.
            eps: noise like ``data`` ~ N(0,I).
        """
        axis, weight = channel_axis(data), self.loss.cosine_weight
        target = data - eps
        velocity = self.model(interpolate(data, eps, t), t, labels).narrow(axis, 0, data.shape[axis])
        squared = (velocity - target).square().mean()
        if not weight:
            return {"loss": squared, "mse": squared.detach()}
        cosine = (1 - functional.cosine_similarity(velocity, target, dim=axis)).mean()
        return {"loss": squared + weight * cosine, "mse": squared.detach(), "cosine": cosine.detach()}
