"""The configuration of a tokenizer training run: a YAML file, checked, with overrides from the command line."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator

from latentlab.configuration import Beta, Strict, checked_config, read_config, shipped_configs
from latentlab.errors import UserError
from latentlab.tokenizers.objectives.settings import Objectives
from latentlab.tokenizers.row_file import is_row_file, row_settings, told_rows

CONFIGS = Path(__file__).parents[1] / "configs" / "tokenizers"
"""Folder of the shipped configurations; `--config ibq` means ``ibq_fashion32.yaml`` in it."""


class DataConfig(Strict):
    """What is trained on and what is held out; sources as in ``--data``."""

    train: str
    """Images that are learned."""
    validation: str
    """Held-out images, on which the averaged weights are scored."""
    image_size: PositiveInt | None = None
    """Side after the centre crop; null for images as they are."""
    limit: PositiveInt | None = None
    """At most so many images to learn, balanced over classes; null for all."""
    flip: bool = True
    """Mirror every image left to right with probability 1/2."""


class LossConfig(Strict):
    """Weights of the training terms; 0 leaves a term out."""

    l1: NonNegativeFloat = 0.0
    """Mean absolute pixel error, pixels in [-1,1]."""
    l2: NonNegativeFloat = 0.0
    """Mean squared pixel error."""
    perceptual: NonNegativeFloat = 0.0
    """Learned perceptual distance."""
    perceptual_kind: Literal["st_lpips", "lpips"] = "st_lpips"
    """ST-LPIPS (Ghildyal and Liu, ECCV 2022), whose weights come in a wheel, or LPIPS (Zhang et al. 2018)."""
    perceptual_net: Literal["alex", "vgg"] = "alex"
    """Network of either."""
    perceptual_size: PositiveInt | None = None
    """Enlarge images to this side before the perceptual distance: its networks expect more than 32 pixels."""
    kl: NonNegativeFloat = 0.0
    """KL divergence of the posterior to N(0, I), summed over the latent and averaged over images."""
    codebook: NonNegativeFloat = 0.0
    """Mean squared distance that pulls codes to latents."""
    commitment: NonNegativeFloat = 0.0
    """Mean squared distance that pulls latents to their codes."""
    entropy: NonNegativeFloat = 0.0
    """Entropy of each assignment minus entropy of the mean assignment: sharp and evenly used codes."""
    auxiliary: NonNegativeFloat = 1.0
    """What auxiliary decoders miss, for tokenizers that have them (MAETok)."""

    @model_validator(mode="after")
    def _reconstructs(self) -> "LossConfig":
        if not (self.l1 or self.l2 or self.perceptual):
            raise ValueError("a tokenizer must reconstruct: give l1, l2 or perceptual a weight above 0")
        return self


class OptimiserConfig(Strict):
    """Adam (AdamW with weight decay) with a linear warm-up and a cosine decay of the learning rate."""

    steps: PositiveInt
    """Steps of the run."""
    batch_size: PositiveInt
    """Images per step over all ranks and accumulated parts."""
    accumulate: PositiveInt = 1
    """Parts that a rank's share of a step is taken in, one after the other; each balances adaptive weights by itself."""
    learning_rate: PositiveFloat
    """After the warm-up."""
    final_learning_rate: NonNegativeFloat = 0.0
    """End of the cosine."""
    warmup_steps: int = Field(0, ge=0)
    """Steps over which the rate rises from 0."""
    betas: tuple[Beta, Beta] = (0.9, 0.99)
    """Adam's."""
    weight_decay: NonNegativeFloat = 0.0
    """With 0 the optimiser is Adam."""
    clip_norm: PositiveFloat = 1.0
    """Largest norm of the gradient; a longer one is shortened to it."""
    ema_decay: float = Field(0.999, ge=0, lt=1)
    """Of the averaged weights, which are validated and exported; 0 follows the weights."""


class TrainConfig(Strict):
    """One tokenizer training run."""

    name: str
    """Of the tokenizer, under which it is loaded."""
    release: str
    """Of its weights."""
    family: Literal["ldm", "transformer", "maetok"] = "ldm"
    """What the fields of the architecture describe (`families.FAMILIES`); ``ldm`` is the convolutional one."""
    architecture: dict[str, Any]
    """Field names of the published configurations: ch, ch_mult, num_res_blocks, z_channels, embed_dim, quantizer, ..."""
    start_from: Path | None = None
    """Weights of an earlier stage (MAETok: before its decoder is trained alone)."""
    data: DataConfig
    loss: LossConfig
    objectives: Objectives = Objectives()
    """What shapes the latents and sharpens the reconstructions."""
    optimiser: OptimiserConfig
    precision: Literal["float32", "bfloat16"] = "float32"
    """``bfloat16`` autocasts the networks where the device has instructions for it, and is float32 elsewhere."""
    seed: int = 0
    """Of everything random."""
    log_every: PositiveInt = 50
    """Steps between lines in `metrics.jsonl`."""
    validate_every: PositiveInt = 1000
    """Steps between scores and pictures of held-out images."""
    checkpoint_every: PositiveInt = 500
    """Steps that a kill may lose."""
    validation_images: PositiveInt = 512
    """Held-out images that are scored, at most."""
    rfd: str | None = None
    """Network (``efficientnet-lite0``, ``fashion-classifier``, ``inception``) on whose features the Frechet distance of
    reconstructions to the validation images is logged; None for none."""
    export_dtype: Literal["float32", "float16"] = "float16"
    """Of the exported weights."""


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> TrainConfig:
    """Read a training configuration.

    Args:
        path: a YAML file, the name of a shipped configuration (``ibq``), or ``FILE#ID``, a row of a file of `row_file`.
        overrides: ``a.b=value`` with the value in YAML; applied in order.

    Raises:
        UserError: no such file, not YAML, an unknown or missing key, a value out of range.
    """
    file, row = str(path).rpartition("#")[::2]
    if is_row_file(Path(path)):
        raise UserError(f"{path} holds many configurations: choose one as {path}#ID; {told_rows(Path(path))}")
    if (file and row.isdecimal()) or is_row_file(Path(file)):
        return checked_config(TrainConfig, path, row_settings(Path(file), row), overrides)
    return read_config(TrainConfig, path, overrides, shipped_configs(CONFIGS), "tokenizer configuration")
