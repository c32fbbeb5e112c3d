"""Shape of an LDM-style tokenizer, under the field names of the published configurations. Imports no torch."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from latentlab.errors import UserError, unknown_name
from latentlab.files import first_problem


class LDMConfig(BaseModel):
    """Encoder and decoder of latent diffusion and VQGAN (Esser et al. 2021, arXiv 2012.09841; Rombach et al. 2022, 2112.10752).

    Attributes:
        ch: width of the first level.
        ch_mult: width of each level as a multiple of ``ch``; every level after the first halves the resolution.
        num_res_blocks: residual blocks per encoder level; decoder levels have one more.
        attn_resolutions: resolutions of levels with attention, at the nominal ``resolution``.
        decoder_attn_resolutions: the same for the decoder; None means as in the encoder.
        resolution: nominal image side in pixels. It decides where attention sits, not which images can be encoded.
        in_channels: channels of the images given to the encoder.
        out_ch: channels of the images the decoder makes.
        z_channels: channels between encoder and `quant_conv`.
        double_z: whether the encoder gives a mean and a log-variance.
        norm_groups: groups of every GroupNorm, 32 in all published models. Narrow ones need fewer: with one channel per group a
            norm forgets the contrast of the image.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    ch: int = Field(default=128, gt=0)
    ch_mult: tuple[int, ...] = Field(default=(1, 1, 2, 2, 4), min_length=1)
    num_res_blocks: int = Field(default=2, gt=0)
    attn_resolutions: tuple[int, ...] = (16,)
    decoder_attn_resolutions: tuple[int, ...] | None = None
    resolution: int = Field(default=256, gt=0)
    in_channels: int = Field(default=3, gt=0)
    out_ch: int = Field(default=3, gt=0)
    z_channels: int = Field(gt=0)
    double_z: bool = False
    norm_groups: int = Field(default=32, gt=0)

    @model_validator(mode="after")
    def _whole_groups(self) -> "LDMConfig":
        if self.ch % self.norm_groups:
            raise ValueError(f"ch must be a multiple of norm_groups, got {self.ch} and {self.norm_groups}")
        return self

    @property
    def downsampling(self) -> int:
        """Image side divided by latent side."""
        return 1 << (len(self.ch_mult) - 1)

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of each level, finest first."""
        return tuple(self.ch * multiple for multiple in self.ch_mult)

    def encoder_attention(self, level: int) -> bool:
        """Whether this level of the encoder has attention."""
        return self.resolution >> level in self.attn_resolutions

    def decoder_attention(self, level: int) -> bool:
        """Whether this level of the decoder has attention."""
        chosen = self.decoder_attn_resolutions
        return self.resolution >> level in (self.attn_resolutions if chosen is None else chosen)


class Architecture(LDMConfig):
    """A whole tokenizer: `LDMConfig` and what lies between encoder and decoder.

    Attributes:
        quantizer: ``none`` (plain autoencoder), ``kl`` (diagonal Gaussian posterior), ``vq`` (nearest code) or ``ibq``
            (code with the largest dot product).
        embed_dim: channels of the latent; left out, ``z_channels``.
        n_embed: number of codes, for ``vq`` and ``ibq`` only.
    """

    quantizer: Literal["none", "kl", "vq", "ibq"] = "none"
    embed_dim: int = Field(default=0, gt=0)
    n_embed: int | None = Field(default=None, gt=1)

    @model_validator(mode="before")
    @classmethod
    def _fill(cls, given: Any) -> Any:
        if not isinstance(given, Mapping):
            return given
        posterior = given.get("quantizer") == "kl"
        return {"embed_dim": given.get("z_channels", 0), "double_z": posterior, **given}

    @model_validator(mode="after")
    def _agree(self) -> "Architecture":
        if self.double_z != (self.quantizer == "kl"):
            raise ValueError(
                f"double_z={self.double_z} does not go with quantizer '{self.quantizer}': only 'kl' has it"
            )
        if (self.n_embed is not None) != self.discrete:
            need = "needs n_embed, its number of codes" if self.discrete else "has no codes: leave n_embed out"
            raise ValueError(f"quantizer '{self.quantizer}' {need}")
        return self

    @property
    def discrete(self) -> bool:
        """Whether latents are entries of a codebook."""
        return self.quantizer in ("vq", "ibq")

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Shape (c,h,w) of the latent of one image at the nominal resolution."""
        side = self.resolution // self.downsampling
        return (self.embed_dim, side, side)


class TinyArchitecture(BaseModel):
    """Encoder and decoder of the TAESD family (`latentlab.tokenizers.taesd`).

    Attributes:
        latent_channels: channels of the latent.
        width: channels of every layer in between, 64 in all published models.
        pooled: whether blocks at the lowest resolution have the normalised bottleneck of TAEF2.
        resolution: nominal image side in pixels.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    latent_channels: int = Field(default=4, gt=0)
    width: int = Field(default=64, gt=0)
    pooled: bool = False
    resolution: int = Field(default=256, gt=0)

    quantizer: ClassVar[str] = "none"
    n_embed: ClassVar[None] = None
    downsampling: ClassVar[int] = 8

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Shape (c,h,w) of the latent of one image at the nominal resolution."""
        side = self.resolution // self.downsampling
        return (self.latent_channels, side, side)


A = TypeVar("A", bound=BaseModel)


def read_architecture(fields: Mapping[str, Any], model: type[A]) -> A:
    """Check ``fields`` (names of the published configurations) and return them as a ``model``.

    Raises:
        UserError: an unknown name (with near misses), or a value that cannot be; names the first one.
    """
    for name in fields:
        if name not in model.model_fields:
            raise unknown_name("architecture field", name, model.model_fields)
    try:
        return model.model_validate(dict(fields))
    except ValidationError as error:
        raise UserError(f"tokenizer architecture: {first_problem(error)}") from error
