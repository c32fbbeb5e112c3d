"""The configuration of a MIND training run: a YAML file, checked, with overrides from the command line."""

from collections.abc import Sequence
from pathlib import Path
from typing import Self

from pydantic import Field, NonNegativeFloat, PositiveInt, model_validator

from latentlab.configuration import Strict, read_config, shipped_configs
from mind.config import SIZES, MindConfig, sized
from mind.geometry import Norm
from mind.run_config import ModelTable, RunConfig, check_model_keys

CONFIGS = Path(__file__).parent / "configs"
"""Folder of the shipped configurations; `--config mind-b` means ``mind-b.yaml`` in it."""


class LossConfig(Strict):
    """Cross-entropy plus the squared error of the soft top-k embedding (arXiv 2606.00094, eq. 4)."""

    mse_weight: NonNegativeFloat = 1.0
    """lambda; not published."""
    soft_top_k: PositiveInt = 100
    """Tokens that the soft mapping keeps; not published."""
    soft_topk_norm: Norm = "full_unit"
    """How the soft embedding is brought back onto the spheres (`mind.geometry.project`)."""
    stop_gradient: bool = False
    """Treat the target embedding as a constant in the squared error."""
    chunk: PositiveInt = 4096
    """Tokens whose logits exist at a time."""


class TimeConfig(Strict):
    """Times are uniform in [low, high]; 1 is data."""

    low: float = Field(0.001, ge=0, le=1)
    """Earliest time, near noise."""
    high: float = Field(0.999, ge=0, le=1)
    """Latest time, near data."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.low >= self.high:
            raise ValueError(f"low ({self.low}) must be below high ({self.high})")
        return self


class TrainConfig(RunConfig):
    """One training run of MIND."""

    model: ModelTable
    """``size``: a published size, and fields of `MindConfig` that differ from it."""
    loss: LossConfig = LossConfig()
    times: TimeConfig = TimeConfig()

    @model_validator(mode="after")
    def _model_keys_exist(self) -> Self:
        check_model_keys(self.model, MindConfig)
        return self

    @property
    def mind(self) -> MindConfig:
        """The model's shape.

        Raises:
            UserError: unknown size or field, or fields that do not fit each other.
        """
        fields = dict(self.model)
        return sized(fields.pop("size", next(iter(SIZES))), **fields)


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> TrainConfig:
    """Read a training configuration.

    Args:
        path: a YAML file, or the name of a shipped configuration (``mind-b``).
        overrides: ``a.b=value`` with the value in YAML; applied in order.

    Raises:
        UserError: no such file, not YAML, an unknown or missing key, a value out of range.
    """
    return read_config(TrainConfig, path, overrides, shipped_configs(CONFIGS), "MIND configuration")
