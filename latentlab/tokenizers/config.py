"""The configuration of a tokenizer training run: a YAML file, checked, with overrides from the command line."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt

from latentlab.configuration import Strict, read_config, shipped_configs

CONFIGS = Path(__file__).parents[1] / "configs" / "tokenizers"
"""Folder of the shipped configurations; `--config ibq` means ``ibq_fashion32.yaml`` in it."""


class DataConfig(Strict):
    """What is trained on and what is held out; sources as in ``--data``."""

    train: str
    validation: str
    image_size: PositiveInt | None = None
    limit: PositiveInt | None = None
    flip: bool = True
    """Mirror every image left to right with probability 1/2."""


class LossConfig(Strict):
    """Weights of the training terms; 0 leaves a term out."""

    l1: NonNegativeFloat = 0.0
    """Mean absolute pixel error, pixels in [-1,1]."""
    l2: NonNegativeFloat = 0.0
    """Mean squared pixel error."""
    perceptual: NonNegativeFloat = 0.0
    """ST-LPIPS distance (Ghildyal and Liu, ECCV 2022)."""
    perceptual_net: Literal["alex", "vgg"] = "alex"
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


class OptimiserConfig(Strict):
    """Adam with a linear warm-up and a cosine decay of the learning rate."""

    steps: PositiveInt
    batch_size: PositiveInt
    learning_rate: PositiveFloat
    final_learning_rate: NonNegativeFloat = 0.0
    warmup_steps: int = Field(0, ge=0)
    betas: tuple[float, float] = (0.9, 0.99)
    clip_norm: PositiveFloat = 1.0
    ema_decay: float = Field(0.999, ge=0, lt=1)


class TrainConfig(Strict):
    """One tokenizer training run."""

    name: str
    release: str
    architecture: dict[str, Any]
    """Field names of the published configurations: ch, ch_mult, num_res_blocks, z_channels, embed_dim, quantizer, ..."""
    data: DataConfig
    loss: LossConfig
    optimiser: OptimiserConfig
    precision: Literal["float32", "bfloat16"] = "float32"
    seed: int = 0
    log_every: PositiveInt = 50
    validate_every: PositiveInt = 1000
    checkpoint_every: PositiveInt = 500
    validation_images: PositiveInt = 512
    export_dtype: Literal["float32", "float16"] = "float16"


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> TrainConfig:
    """Read a training configuration.

    Args:
        path: a YAML file, or the name of a shipped configuration (``ibq``).
        overrides: ``a.b=value`` with the value in YAML; applied in order.

    Raises:
        UserError: no such file, not YAML, an unknown or missing key, a value out of range.
    """
    return read_config(TrainConfig, path, overrides, shipped_configs(CONFIGS), "tokenizer configuration")
