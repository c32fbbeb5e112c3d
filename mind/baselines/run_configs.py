"""The configurations of the baselines' training runs: YAML files, checked, with overrides from the command line."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, Self, get_args

from pydantic import Field, ValidationError, model_validator

from latentlab.configuration import problem_with, read_config, shipped_configs
from mind.baselines.ddpm_objective import DdpmLoss
from mind.baselines.flow import FlowLoss, flow_loss
from mind.baselines.latent_shape import LatentShape
from mind.baselines.latents import Normalisation
from mind.baselines.masked_config import MaskedConfig
from mind.baselines.masked_config import sized as masked_sized
from mind.baselines.transformer_config import TransformerConfig
from mind.baselines.transformer_config import sized as transformer_sized
from mind.run_config import ModelTable, RunConfig, check_model_keys

CONFIGS = Path(__file__).parents[1] / "configs" / "baselines"
"""Folder of the shipped configurations; `--config sit-b` means ``sit-b.yaml`` in it."""


class LatentRun(RunConfig):
    """A run on continuous latents.

    The shape of the latents is filled into the model where the configuration leaves it out.
    """

    shape: ClassVar[type[LatentShape]] = TransformerConfig
    """What ``model`` says."""

    model: ModelTable
    """``size`` and fields that differ from it."""
    normalisation: Normalisation = "channel"
    """Of the latents: by the channel statistics of the training set, or the tokenizer's published shift and scale."""

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        if "kind" in self.model:
            raise ValueError("model.kind: the kind of the model is that of the run: leave it out")
        check_model_keys(self.model, self.shape)
        return self


class FlowRun(LatentRun):
    """A run of SiT or LightningDiT."""

    kind: Literal["sit", "lightningdit"]
    """As in the command."""
    flow: dict[str, Any] = Field(default_factory=dict)
    """Fields of `FlowLoss` that differ from what the kind was published with."""

    @model_validator(mode="after")
    def _loss_exists(self) -> Self:
        try:
            flow_loss(self.kind, **self.flow)
        except ValidationError as error:
            raise ValueError(f"flow: {problem_with(FlowLoss, error)}") from error
        return self

    @property
    def loss(self) -> FlowLoss:
        """Which times, and the terms of the loss."""
        return flow_loss(self.kind, **self.flow)


class DdpmRun(LatentRun):
    """A run of DiT."""

    kind: Literal["dit"]
    """As in the command."""
    loss: DdpmLoss = DdpmLoss()


class MaskedRun(LatentRun):
    """A run of eMIGM or one of the configurations it unifies."""

    shape: ClassVar[type[LatentShape]] = MaskedConfig

    kind: Literal["emigm"]
    """As in the command."""
    family: Literal["emigm", "maskgit", "mar", "mdm"] = "emigm"
    """Which published masking, loss and sampler: `masked_config.FAMILIES`, `masked_settings.FAMILY_SAMPLERS`."""
    codes: bool = False
    """Learn the ids of a discrete tokenizer instead of continuous latents."""

    @model_validator(mode="after")
    def _family_of_codes_or_not(self) -> Self:
        if self.family in ("maskgit", "mdm") and not self.codes:
            raise ValueError(f"family {self.family} is of codes: set codes=true, data.tokenizer to a discrete one")
        if self.family == "mar" and self.codes:
            raise ValueError("family mar is of continuous latents: leave codes out, or choose family maskgit")
        return self


def transformer_of(config: FlowRun | DdpmRun, shape: tuple[int, ...]) -> TransformerConfig:
    """Return the network's shape for latents (c,h,w) or (l,c).

    Raises:
        UserError: unknown size or field, or fields that do not fit each other or the latents.
    """
    fields = {**_latent_fields(shape), **config.model}
    return transformer_sized(f"{config.kind}-{fields.pop('size', 'b')}", **fields)


def masked_of(config: MaskedRun, shape: tuple[int, ...], vocabulary: int | None) -> MaskedConfig:
    """Return the network's shape for latents (c,h,w) or (l,c), or for codes out of ``vocabulary``.

    Raises:
        UserError: unknown size or field, or fields that do not fit each other or the latents.
    """
    fields = {**_latent_fields(shape), **config.model}
    if vocabulary is not None:
        fields = {**fields, "vocab_size": vocabulary}
    return masked_sized(f"emigm-{fields.pop('size', 'b')}", config.family, **fields)


def _latent_fields(shape: tuple[int, ...]) -> dict[str, Any]:
    if len(shape) == 3:
        return {"in_channels": shape[0], "input": shape[1:]}
    return {"in_channels": shape[1], "tokens": shape[0]}


def load_run(kind: str, path: str | Path, overrides: Sequence[str] = ()) -> FlowRun | DdpmRun | MaskedRun:
    """Read the configuration of a run of ``kind``.

    Raises:
        UserError: no such file, not YAML, an unknown or missing key, a value out of range.
    """
    model: Any = {"dit": DdpmRun, "emigm": MaskedRun}.get(kind, FlowRun)
    assert kind in get_args(model.model_fields["kind"].annotation)
    config: FlowRun | DdpmRun | MaskedRun = read_config(
        model, path, [*overrides, f"kind={kind}"], shipped_configs(CONFIGS), f"{kind} configuration"
    )
    return config
