"""The interval of guidance that every sampler has in its settings."""

from typing import Self

from pydantic import Field, model_validator

from latentlab.configuration import Settings


class GuidanceInterval(Settings):
    """When guidance is on, on whatever axis the sampler says."""

    cfg_t_min: float = Field(0.0, ge=0, le=1)
    cfg_t_max: float = Field(1.0, ge=0, le=1)

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.cfg_t_min > self.cfg_t_max:
            raise ValueError(f"cfg_t_min ({self.cfg_t_min}) must not exceed cfg_t_max ({self.cfg_t_max})")
        return self
