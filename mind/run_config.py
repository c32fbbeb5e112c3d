"""What every training run of a generator configures: optimiser, precision, ranks, what is logged, shown and kept."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from latentlab.configuration import Beta, Strict
from latentlab.errors import unknown_name
from mind.recompute import Recompute


def _names_its_size(model: dict[str, Any]) -> dict[str, Any]:
    size = model.get("size", "")
    if not isinstance(size, str):
        raise ValueError(f"size must be a name, got {size!r}: leave it out for the usual one")
    return model


def check_model_keys(model: Mapping[str, Any], shape: type[BaseModel]) -> None:
    """Raise `ValueError` for a key of a run's ``model`` that is neither ``size`` nor a field of the model's ``shape``."""
    known = ["size", *(name for name in shape.model_fields if name != "kind")]
    for key in model:
        if key not in known:
            raise ValueError(str(unknown_name("key of model", key, known)))


ModelTable = Annotated[dict[str, Any], AfterValidator(_names_its_size)]
"""``size``, a published one by name, and fields that differ from it; what they are is the model's own configuration."""


class DataConfig(Strict):
    """Which images, and the tokenizer whose latents of them are learned; or stores that were encoded before."""

    tokenizer: str
    """A tokenizer: see `latentlab tokenizers`; for MIND a discrete one."""
    release: str | None = None
    """Which weights of the tokenizer; null for what suits the data."""
    weights: Path | None = None
    """Weights of the tokenizer, instead of the release's."""
    train: str | None = None
    """Images as in ``--data``; their latents are computed once and kept in latentlab's cache."""
    validation: str | None = None
    """Held-out images; their loss is logged."""
    store: Path | None = None
    """Folder that `latentlab encode` wrote, instead of ``train``; with ``--flip`` it holds the mirrored images too."""
    mirrored_store: Path | None = None
    """The same images mirrored, where they lie in a folder of their own."""
    validation_store: Path | None = None
    """Folder of held-out latents, instead of ``validation``."""
    image_size: PositiveInt | None = None
    """Side of the images after the centre crop; null for images as they are."""
    limit: PositiveInt | None = None
    """At most so many images, balanced over classes; null for all."""
    mirror: bool = True
    """Also encode every image mirrored left to right, and train on either copy with probability 1/2."""

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.train is None) == (self.store is None):
            raise ValueError("give either train (images) or store (a folder of latents with codes)")
        if self.store is not None and (self.limit is not None or self.image_size is not None):
            raise ValueError("limit and image_size go with train: a store holds the latents it holds")
        return self


class OptimiserConfig(Strict):
    """AdamW with a linear warm-up, then a constant rate or half a cosine."""

    steps: PositiveInt
    """Steps of the run."""
    batch_size: PositiveInt
    """Images per step over all ranks and accumulated parts."""
    accumulate: PositiveInt = 1
    """Parts that a rank's share of a step is taken in, one after the other."""
    learning_rate: PositiveFloat | None = None
    """None for 1e-4 times batch_size/256, at most 4e-4."""
    final_learning_rate: NonNegativeFloat | None = None
    """End of a half cosine; None keeps the rate constant after the warm-up."""
    warmup_steps: NonNegativeInt = 2500
    """Steps over which the rate rises from 0."""
    betas: tuple[Beta, Beta] = (0.9, 0.999)
    """Adam's."""
    epsilon: PositiveFloat = 1e-8
    """Adam's."""
    weight_decay: NonNegativeFloat = 0.0
    """AdamW's."""
    clip_norm: PositiveFloat = 1.0
    """Largest norm of the gradient; a longer one is shortened to it."""
    ema_decay: float = Field(0.9999, ge=0, lt=1)
    """Of the averaged weights; it grows to this, so that the start is forgotten."""

    @property
    def peak(self) -> float:
        """Learning rate after the warm-up."""
        return min(4e-4, 1e-4 * self.batch_size / 256) if self.learning_rate is None else self.learning_rate


class PreviewConfig(Strict):
    """Pictures and scores while training; steps between them, 0 for never."""

    grid_every: NonNegativeInt = 0
    """Steps between pictures in ``samples/`` of the run folder."""
    per_class: PositiveInt = 2
    """Images of a class in a grid."""
    classes: PositiveInt = 10
    """Classes in a grid: the first ones."""
    score_every: NonNegativeInt = 0
    """Frechet distance of samples to the training images, with raw and with averaged weights."""
    score_images: PositiveInt = 2000
    """Samples that are scored."""
    extractor: str = "efficientnet-lite0"
    """Whose features: on those of ``inception`` it is called FID."""
    batch_size: PositiveInt = 50
    """Samples at a time."""
    sampler: dict[str, Any] = Field(default_factory=dict)
    """Sampler settings that differ from the defaults; they are recorded in the weights as recommended."""


class RunConfig(Strict):
    """One training run; a kind of generator adds its model, data and objective."""

    name: str
    """Of the run, in messages and files."""
    data: DataConfig
    optimiser: OptimiserConfig
    preview: PreviewConfig = PreviewConfig()
    label_dropout: float = Field(0.1, ge=0, lt=1)
    """Share of labels replaced by "no class", for guidance."""
    precision: Literal["float32", "autocast"] = "autocast"
    """``autocast`` takes products in bfloat16 where the device has instructions for it, and is float32 elsewhere."""
    parallel: Literal["ddp", "fsdp"] = "ddp"
    """How several ranks share the work: copies of the model, or shards of it (FSDP2) where it does not fit."""
    recompute: Recompute | None = None
    """Which activations are computed again in the backward pass instead of kept; None for ``cheap``, or ``nothing`` where the
    blocks are compiled (a compiled block decides by itself) or small (see `mind.recompute.default_recompute`)."""
    compile: bool | None = None
    """Compile the blocks; None does so on CUDA only."""
    track: tuple[Literal["tensorboard", "wandb"], ...] = ()
    """Where the numbers of `metrics.jsonl` go too; needs `pip install latentlab[track]`."""
    seed: NonNegativeInt = 0
    """Of everything random."""
    log_every: PositiveInt = 50
    """Steps between lines in `metrics.jsonl`."""
    validate_every: NonNegativeInt = 0
    """Steps between losses on held-out images; 0 for never."""
    validation_images: PositiveInt = 512
    """Held-out images whose loss is taken, at most."""
    checkpoint_every: PositiveInt = 1000
    """Steps that a kill may lose."""
    keep_steps: tuple[PositiveInt, ...] = ()
    """Steps after which raw and averaged weights are kept in ``weights/step_NNNNNN`` of the run folder, for learning curves."""
    export_dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    """Of the exported weights."""

    @model_validator(mode="after")
    def _validation_has_data(self) -> Self:
        if self.validate_every and self.data.validation is None and self.data.validation_store is None:
            raise ValueError("validate_every needs data.validation or data.validation_store")
        return self
