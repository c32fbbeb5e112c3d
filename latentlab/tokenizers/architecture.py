"""Shapes of the tokenizers with 2-D latents, under the field names of the published configurations. Imports no torch."""

from collections.abc import Mapping
from math import prod
from typing import Any, ClassVar, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from latentlab.errors import UserError, unknown_name
from latentlab.files import first_problem


class ConvolutionalConfig(BaseModel):
    """What the convolutional encoders and decoders share.

    Attributes:
        ch: width of the first level.
        ch_mult: width of each level as a multiple of ``ch``; every level after the first halves the resolution.
        num_res_blocks: residual blocks per encoder level.
        resolution: nominal image side in pixels.
        in_channels: channels of the images given to the encoder.
        out_ch: channels of the images the decoder makes.
        z_channels: channels between the encoder and what follows it.
        norm_groups: groups of every GroupNorm, 32 in all published models. Narrow ones need fewer: with one channel per group a
            norm forgets the contrast of the image.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    ch: int = Field(default=128, gt=0)
    ch_mult: tuple[int, ...] = Field(default=(1, 1, 2, 2, 4), min_length=1)
    num_res_blocks: int = Field(default=2, gt=0)
    resolution: int = Field(default=256, gt=0)
    in_channels: int = Field(default=3, gt=0)
    out_ch: int = Field(default=3, gt=0)
    z_channels: int = Field(gt=0)
    norm_groups: int = Field(default=32, gt=0)

    @model_validator(mode="after")
    def _whole_groups(self) -> "ConvolutionalConfig":
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

    @property
    def latent_side(self) -> int:
        """Side of the latent grid at the nominal resolution."""
        return self.resolution // self.downsampling


class LDMConfig(ConvolutionalConfig):
    """Encoder and decoder of latent diffusion and VQGAN (Esser et al. 2021, arXiv 2012.09841; Rombach et al. 2022, 2112.10752).

    Decoder levels have one block more than encoder levels. The nominal resolution decides where attention sits, not which images
    can be encoded.

    Attributes:
        attn_resolutions: resolutions of levels with attention, at the nominal ``resolution``; or ``coarsest``, the last level.
        decoder_attn_resolutions: the same for the decoder; None means as in the encoder.
        decoder_ch: width of the decoder's first level; None means ``ch``.
        double_z: whether the encoder gives a mean and a log-variance.
    """

    attn_resolutions: tuple[int, ...] | Literal["coarsest"] = (16,)
    decoder_attn_resolutions: tuple[int, ...] | Literal["coarsest"] | None = None
    decoder_ch: int | None = Field(default=None, gt=0)
    double_z: bool = False

    @model_validator(mode="after")
    def _whole_decoder_groups(self) -> "LDMConfig":
        if self.decoder_ch is not None and self.decoder_ch % self.norm_groups:
            raise ValueError(
                f"decoder_ch must be a multiple of norm_groups, got {self.decoder_ch} and {self.norm_groups}"
            )
        return self

    @property
    def decoder_widths(self) -> tuple[int, ...]:
        """Channels of each level of the decoder, finest first."""
        return tuple((self.decoder_ch or self.ch) * multiple for multiple in self.ch_mult)

    def encoder_attention(self, level: int) -> bool:
        """Whether this level of the encoder has attention."""
        return self._attends(level, self.attn_resolutions)

    def decoder_attention(self, level: int) -> bool:
        """Whether this level of the decoder has attention."""
        chosen = self.decoder_attn_resolutions
        return self._attends(level, self.attn_resolutions if chosen is None else chosen)

    def _attends(self, level: int, resolutions: tuple[int, ...] | str) -> bool:
        if isinstance(resolutions, str):
            return level == len(self.ch_mult) - 1
        return self.resolution >> level in resolutions


class Architecture(LDMConfig):
    """A whole tokenizer: `LDMConfig` and what lies between encoder and decoder.

    Attributes:
        quantizer: ``none`` (plain autoencoder), ``kl`` (diagonal Gaussian posterior), ``vq`` (nearest code), ``vq-cosine`` (code
            of the nearest direction, all vectors at length 1), ``ibq`` (code with the largest dot product), ``lfq`` (signs) or
            ``fsq`` (levels per channel).
        embed_dim: channels of the latent; left out, ``z_channels``.
        n_embed: number of codes, for the discrete ones only; of ``lfq`` and ``fsq`` it follows and may be left out.
        levels: of ``fsq``, one number per channel of the latent.
        use_quant_conv: whether a 1x1 convolution follows the encoder.
        use_post_quant_conv: whether a 1x1 convolution precedes the decoder.
        patch_size: side of the patches of cells that are normalised as one vector (FLUX.2); 1 for normalisation per channel.
        batch_norm_eps: added to the variances of those vectors.
    """

    quantizer: Literal["none", "kl", "vq", "vq-cosine", "ibq", "lfq", "fsq"] = "none"
    embed_dim: int = Field(default=0, gt=0)
    n_embed: int | None = Field(default=None, gt=1)
    levels: tuple[int, ...] | None = None
    use_quant_conv: bool = True
    use_post_quant_conv: bool = True
    patch_size: int = Field(default=1, gt=0)
    batch_norm_eps: float = Field(default=1e-4, ge=0)

    @model_validator(mode="before")
    @classmethod
    def _fill(cls, given: Any) -> Any:
        if not isinstance(given, Mapping):
            return given
        posterior = given.get("quantizer") == "kl"
        fixed: dict[str, Any] = {"embed_dim": given.get("z_channels", 0), "double_z": posterior}
        if given.get("quantizer") == "lfq":
            fixed["n_embed"] = 2 ** int({**fixed, **given}["embed_dim"])
        if given.get("quantizer") == "fsq" and given.get("levels"):
            fixed["n_embed"] = prod(given["levels"])
        return {**fixed, **given}

    @model_validator(mode="after")
    def _agree(self) -> "Architecture":
        if self.double_z != (self.quantizer == "kl"):
            raise ValueError(
                f"double_z={self.double_z} does not go with quantizer '{self.quantizer}': only 'kl' has it"
            )
        self._check_levels()
        if (self.n_embed is not None) != self.discrete:
            need = "needs n_embed, its number of codes" if self.discrete else "has no codes: leave n_embed out"
            raise ValueError(f"quantizer '{self.quantizer}' {need}")
        if self.quantizer == "lfq" and self.n_embed != 2**self.embed_dim:
            raise ValueError(
                f"quantizer 'lfq' has one bit per channel: n_embed must be 2^{self.embed_dim}, got {self.n_embed}"
            )
        if not (self.use_quant_conv and self.use_post_quant_conv) and self.embed_dim != self.z_channels:
            raise ValueError(
                f"without quant_conv embed_dim must equal z_channels, got {self.embed_dim} and {self.z_channels}"
            )
        if self.patch_size > 1 and self.quantizer != "kl":
            raise ValueError(f"patch_size={self.patch_size} needs quantizer 'kl', got '{self.quantizer}'")
        return self

    @property
    def discrete(self) -> bool:
        """Whether latents are entries of a codebook."""
        return self.quantizer not in ("none", "kl")

    def _check_levels(self) -> None:
        if (self.levels is not None) != (self.quantizer == "fsq"):
            raise ValueError("levels belong to quantizer 'fsq', which needs them: one number per channel of the latent")
        if self.levels is not None and (
            min(self.levels, default=0) < 2 or len(self.levels) != self.embed_dim or prod(self.levels) != self.n_embed
        ):
            raise ValueError(
                f"levels must be {self.embed_dim} numbers (embed_dim) from 2 on whose product is n_embed, got "
                f"{list(self.levels)} and {self.n_embed}"
            )

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Shape (c,h,w) of the latent of one image at the nominal resolution."""
        return (self.embed_dim, self.latent_side, self.latent_side)


class MagvitArchitecture(ConvolutionalConfig):
    """Open-MAGVIT2 (Luo et al. 2024, arXiv 2409.04410): one bit per channel of the latent.

    Attributes:
        embed_dim: number of bits; left out, ``z_channels``, which it must equal.
        n_embed: number of codes; left out, 2 to the number of bits, which it must equal.
        double_z: published, and always false: there is no posterior.
    """

    num_res_blocks: int = Field(default=4, gt=0)
    z_channels: int = Field(gt=0, lt=63)  # indices are int64
    embed_dim: int = Field(default=0, gt=0)
    n_embed: int = Field(default=0, gt=1)
    double_z: Literal[False] = False

    quantizer: ClassVar[str] = "lfq"

    @model_validator(mode="before")
    @classmethod
    def _fill(cls, given: Any) -> Any:
        bits = given.get("z_channels") if isinstance(given, Mapping) else None
        return {"embed_dim": bits, "n_embed": 2**bits, **given} if isinstance(bits, int) and 0 < bits < 63 else given

    @model_validator(mode="after")
    def _agree(self) -> "MagvitArchitecture":
        if self.embed_dim != self.z_channels or self.n_embed != 2**self.z_channels:
            raise ValueError(
                f"one bit per channel: z_channels {self.z_channels} needs embed_dim {self.z_channels} and n_embed "
                f"{2**self.z_channels}, got {self.embed_dim} and {self.n_embed}"
            )
        return self

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Shape (c,h,w) of the latent of one image at the nominal resolution."""
        return (self.z_channels, self.latent_side, self.latent_side)


class TinyArchitecture(BaseModel):
    """Encoder and decoder of the TAESD family (`latentlab.tokenizers.taesd`).

    Attributes:
        latent_channels: channels of the latent.
        width: channels of the layers in between, 64 in all published models.
        pooled: whether blocks at the lowest resolution have the normalised bottleneck of TAEF2.
        downsampling: image side divided by latent side: 8, or 32 (the one for DC-AE), whose decoder is wider where it is coarse.
        resolution: nominal image side in pixels.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    latent_channels: int = Field(default=4, gt=0)
    width: int = Field(default=64, gt=0)
    pooled: bool = False
    downsampling: Literal[8, 32] = 8
    resolution: int = Field(default=256, gt=0)

    quantizer: ClassVar[str] = "none"
    n_embed: ClassVar[None] = None

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
