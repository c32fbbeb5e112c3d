"""Classifier-free guidance of models on continuous latents, in an interval of time (arXiv 2207.12598, 2404.07724).

Shapes: b batch, c channels.
"""

from typing import ClassVar, Literal, Protocol

import torch
from pydantic import Field, PositiveInt
from torch import Tensor

from mind.baselines.transformer_config import TransformerConfig
from mind.guidance_interval import GuidanceInterval


class LatentModel(Protocol):
    """What a sampler needs of a model: `LatentTransformer` has it."""

    @property
    def config(self) -> TransformerConfig:
        """Its shape."""

    @property
    def device(self) -> torch.device:
        """Where it is."""

    def __call__(self, x: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        """See `LatentTransformer.forward`."""


class GuidanceSettings(GuidanceInterval):
    """How much guidance, and when. Unknown fields and values raise `UserError`."""

    what: ClassVar[str] = "sampler settings"

    cfg_scale: float = Field(1.0, ge=0, allow_inf_nan=False)
    """Guidance scale w: unconditional + w (conditional - unconditional). With 1 the unconditional pass is not run."""
    cfg_t_min: float = Field(0.0, ge=0, le=1)
    """Guidance begins at this time, inclusive; before it, w is 1."""
    cfg_t_max: float = Field(1.0, ge=0, le=1)
    """Guidance ends at this time, inclusive; after it, w is 1."""
    time_convention: Literal["data", "noise"] = "data"
    """What time 1 is in ``cfg_t_min`` and ``cfg_t_max``: ``data``, or ``noise`` as in part of the literature."""
    cfg_channels: PositiveInt | None = None
    """Guide the first this many channels only, the rest is of the conditional pass; None guides all. The sample scripts published
    with DiT, SiT and LightningDiT guide 3."""

    def weight(self, t: float) -> float:
        """Return w at time ``t`` (1 is data)."""
        position = t if self.time_convention == "data" else 1 - t
        return self.cfg_scale if self.cfg_t_min <= position <= self.cfg_t_max else 1.0


class Guided:
    """A model under guidance, for the classes of one batch.

    Attributes:
        evaluations: how often the network has read each sample; a guided step counts 2.
    """

    def __init__(self, model: LatentModel, labels: Tensor, settings: GuidanceSettings) -> None:
        """Guide ``model`` towards the classes ``labels`` [b]."""
        self._model, self._labels, self._settings = model, labels, settings
        self._channels = min(settings.cfg_channels or model.config.in_channels, model.config.in_channels)
        self.evaluations = 0

    def __call__(self, x: Tensor, t: float, network_time: float) -> Tensor:
        """Return what the network predicts, guided; all its channels, [b,c,h,w] or [b,l,c].

        Args:
            x: states.
            t: time that the interval counts (1 is data).
            network_time: the same time as the network counts it.
        """
        weight = self._settings.weight(t)
        times = torch.full((len(x),), network_time, device=x.device)
        if weight == 1:
            self.evaluations += 1
            return self._model(x, times, self._labels)
        self.evaluations += 2
        nobody = torch.full_like(self._labels, self._model.config.null_class)
        both = self._model(torch.cat([x, x]), torch.cat([times, times]), torch.cat([self._labels, nobody]))
        given, null = both.chunk(2)
        axis, k = channel_axis(x), self._channels
        left = given.shape[axis] - k
        null = null.narrow(axis, 0, k)
        guided = null + weight * (given.narrow(axis, 0, k) - null)
        return torch.cat([guided, given.narrow(axis, k, left)], dim=axis) if left else guided


def channel_axis(x: Tensor) -> int:
    """Return which dimension of latents [b,c,h,w] or [b,l,c] holds the channels."""
    return 1 if x.ndim == 4 else 2
