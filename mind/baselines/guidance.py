"""Classifier-free guidance of models on continuous latents, in an interval of time (arXiv 2207.12598, 2404.07724).

Shapes: b batch, c channels.
"""

from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, Self

import torch
from pydantic import BaseModel, ConfigDict, Field, PositiveInt, ValidationError, model_validator
from torch import Tensor

from latentlab.errors import UserError
from latentlab.files import first_problem
from mind.baselines.transformer_config import TransformerConfig


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


class GuidanceSettings(BaseModel):
    """How much guidance, and when. Unknown fields and values raise `UserError`."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    what: ClassVar[str] = "sampler settings"
    """What the settings are of, for messages."""

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

    if not TYPE_CHECKING:  # type checkers see the fields

        def __init__(self, **values: Any) -> None:
            """Check the fields.

            Raises:
                UserError: unknown field or value; says which.
            """
            try:
                super().__init__(**values)
            except ValidationError as error:
                raise UserError(f"{self.what}: {first_problem(error)}") from error

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.cfg_t_min > self.cfg_t_max:
            raise ValueError(f"cfg_t_min ({self.cfg_t_min}) must not exceed cfg_t_max ({self.cfg_t_max})")
        return self

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
