"""The shape of a masked generator and what it is trained on, one validated table; the published sizes and families.

Imports no torch.
"""

from collections.abc import Mapping
from typing import Any, Literal, Self

from pydantic import Field, PositiveInt, ValidationError, model_validator

from latentlab.errors import UserError, unknown_name
from latentlab.files import first_problem
from mind.baselines.latent_shape import LatentShape

MaskSchedule = Literal["linear", "cosine", "exp", "log_exp"]
Masking = Literal["exact", "independent"]
Weighting = Literal["one", "mdm"]


class MaskedConfig(LatentShape):
    """One masked generator. The defaults are eMIGM-B for 256x256 images (arXiv 2503.07197)."""

    # Latents
    input: tuple[PositiveInt, PositiveInt] | None = (16, 16)
    patch: PositiveInt = 1
    in_channels: PositiveInt = 16
    vocab_size: PositiveInt | None = None
    """v, number of codes; None for continuous latents."""

    # Transformer
    width: PositiveInt = 768
    """Of the blocks."""
    depth: PositiveInt = 24
    """Blocks of encoder and decoder together."""
    heads: PositiveInt = 12
    """Heads of attention."""
    mae: bool = True
    """Masked autoencoder: the first half of the blocks sees unmasked tokens only, the second half all positions. Off: all blocks
    see all positions, with the mask token at those that are masked."""
    class_tokens: PositiveInt = 64
    """How often the class stands before the tokens, each time with a position of its own."""
    null_token: Literal["mask_token", "own"] = "mask_token"
    """What stands for "no class": the mask token (CFG with mask) or an embedding of its own."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """In attention and after the layers of each block; eMIGM's released training code has 0.1, its paper does not speak of it."""

    # Diffusion head, for continuous latents
    head_depth: PositiveInt = 6
    """Blocks of the diffusion head."""
    head_width: PositiveInt = 1024
    """Of its layers."""
    head_copies: PositiveInt = 4
    """Noise levels at which the head is trained for every token of a step."""

    # Masking
    schedule: MaskSchedule = "exp"
    """Share of masked tokens over time."""
    masking: Masking = "independent"
    """``exact``: that share of the tokens of an image, rounded up; ``independent``: each token with that probability."""
    weighting: Weighting = "one"
    """Of the loss at time t: 1, or ``mdm``: gamma'(t)/gamma(t), with which it bounds the likelihood."""
    t_min: float = Field(0.2, ge=0, lt=1)
    """Training times are uniform in [t_min, 1]; 1 is fully masked."""
    average: Literal["all", "masked"] = "all"
    """The loss of an image is a sum over its masked tokens, divided by the number of ``all`` tokens (the paper's integral) or of
    the ``masked`` ones (as released code does)."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.width % self.heads:
            raise ValueError(f"heads ({self.heads}) must divide width ({self.width})")
        if self.vocab_size is not None and self.patch != 1:
            raise ValueError("codes are tokens as they are: patch must be 1 with vocab_size")
        if self.mae and self.depth < 2:
            raise ValueError("mae needs a depth of at least 2: one block to encode, one to decode")
        if self.weighting == "mdm" and self.masking == "exact":
            raise ValueError(
                "weighting mdm belongs to independent masking: choose masking independent, or weighting one"
            )
        return self

    @property
    def token_width(self) -> int:
        """d, numbers in one continuous token."""
        return int(self.in_channels * self.patch ** len(self.sides))

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """Shape of one latent: (c, h, w) or (l, c), of codes (h, w) or (l,)."""
        return super().latent_shape if self.vocab_size is None else self.sides

    @property
    def encoder_depth(self) -> int:
        """Blocks before masked tokens come in; 0 where they are there from the beginning."""
        return self.depth // 2 if self.mae else 0


_TRANSFORMERS: dict[str, dict[str, Any]] = {
    "xs": {"depth": 20, "width": 448, "heads": 8},
    "s": {"depth": 24, "width": 512, "heads": 8},
    "b": {"depth": 24, "width": 768, "heads": 12},
    "l": {"depth": 32, "width": 1024, "heads": 16},
    "h": {"depth": 40, "width": 1280, "heads": 16},
}
_HEADS_256 = {"xs": (3, 1024), "s": (3, 1024), "b": (6, 1024), "l": (8, 1280), "h": (12, 1536)}
_HEADS_512 = {"xs": (6, 1280), "s": (6, 1280), "b": (8, 1280), "l": (8, 1280)}

SIZES: dict[str, dict[str, Any]] = {
    **{f"emigm-{s}": {**_TRANSFORMERS[s], "head_depth": d, "head_width": w} for s, (d, w) in _HEADS_256.items()},
    **{
        f"emigm-{s}-512": {**_TRANSFORMERS[s], "head_depth": d, "head_width": w, "in_channels": 32}
        for s, (d, w) in _HEADS_512.items()
    },
}
"""The published sizes, as differences from the defaults: 16x16 latents of 16 channels (a KL autoencoder, f16) for 256x256 images,
16x16 of 32 channels (DC-AE, f32) for 512x512."""

FAMILIES: dict[str, dict[str, Any]] = {
    "emigm": {},
    "maskgit": {
        "schedule": "cosine", "masking": "exact", "t_min": 0.0, "mae": False, "class_tokens": 1, "null_token": "own",
    },
    "mar": {"schedule": "linear", "masking": "exact", "t_min": 0.7, "null_token": "own", "dropout": 0.1},
    "mdm": {"schedule": "linear", "weighting": "mdm", "t_min": 0.0, "mae": False, "null_token": "own"},
}  # fmt: skip
"""What each family fixes, as differences from the defaults. MaskGIT and MDM are of codes, MAR of continuous latents, eMIGM of
either: ``vocab_size`` says which.

MaskGIT (arXiv 2202.04200): ceil(l cos(pi/2 r)) tokens masked, r uniform in (0,1); one encoder, one class token. MAR (arXiv
2406.11838): a share of the tokens drawn from [0.7, 1] (here uniformly; its released code prefers shares near 1), a masked
autoencoder with 64 class tokens, dropout. MDM (arXiv 2406.04329): each token by itself, the linear schedule, the weight 1/t that
makes the loss a bound on the likelihood."""


def sized(name: str, family: str = "emigm", /, **overrides: Any) -> MaskedConfig:
    """Return a published size by name as one of `FAMILIES`, with some fields changed.

    Raises:
        UserError: unknown size, family or field, or fields that do not fit each other.
    """
    if name not in SIZES:
        raise unknown_name("masked generator size", name, SIZES)
    if family not in FAMILIES:
        raise unknown_name("masked generator family", family, FAMILIES)
    fields = {**SIZES[name], **FAMILIES[family], **overrides}
    if family in ("maskgit", "mdm") and fields.get("vocab_size") is None:
        raise UserError(f"{family} is of codes: give vocab_size, the number of the tokenizer's codes")
    if family == "mar" and fields.get("vocab_size") is not None:
        raise UserError("mar is of continuous latents: leave vocab_size out, or choose maskgit for codes")
    return read_config_fields(fields)


def read_config_fields(fields: Mapping[str, Any]) -> MaskedConfig:
    """Return the configuration with these fields.

    Raises:
        UserError: unknown field, or fields that do not fit each other; says which.
    """
    try:
        return MaskedConfig.model_validate(dict(fields))
    except ValidationError as error:
        raise UserError(f"masked generator: {first_problem(error)}") from error
