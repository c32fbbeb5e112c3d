"""Shape of transformer tokenizers with latents on a grid. Imports no torch."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from latentlab.files import first_problem
from latentlab.tokenizers.architecture import Architecture
from latentlab.tokenizers.sequence_architecture import TransformerSize

PerHalf = int | tuple[int, int]
"""One number for encoder and decoder, or one for each."""


class TransformerArchitecture(BaseModel):
    """Two vision transformers with a grid of latents between them, one cell per patch; by default both of the size ViT-B.

    Positions are relative (rotary), so that images of any size whose sides are multiples of ``downsampling`` fit.

    Attributes:
        downsampling: side of a patch in pixels, which is image side divided by latent side.
        embed_dim: channels of the latent.
        width: channels of a token.
        depth: blocks.
        heads: heads of attention.
        resolution: nominal image side in pixels.
        quantizer: as in `Architecture`, as are the next two.
        n_embed: number of codes, for the discrete ones only.
        levels: of ``fsq``.
        mask_ratio: share of the patches that a learned token replaces in training; all are seen when images are encoded.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    downsampling: Literal[4, 8, 16] = 16
    embed_dim: int = Field(gt=0)
    width: PerHalf = 768
    depth: PerHalf = 12
    heads: PerHalf = 12
    resolution: int = Field(default=256, gt=0)
    quantizer: Literal["none", "kl", "vq", "vq-cosine", "ibq", "lfq", "fsq"] = "none"
    n_embed: int | None = Field(default=None, gt=1)
    levels: tuple[int, ...] | None = None
    mask_ratio: float = Field(default=0.0, ge=0, lt=1)

    in_channels: ClassVar[int] = 3
    use_quant_conv: ClassVar[bool] = False  # the transformers end and begin with such maps themselves
    use_post_quant_conv: ClassVar[bool] = False

    @model_validator(mode="before")
    @classmethod
    def _same_bottlenecks(cls, given: Any) -> Any:
        """Complete and check what lies between encoder and decoder by the rules of `Architecture`."""
        if not isinstance(given, Mapping) or not isinstance(given.get("embed_dim"), int):
            return given
        between = {name: given[name] for name in ("embed_dim", "quantizer", "n_embed", "levels") if name in given}
        try:
            checked = Architecture.model_validate({"z_channels": given["embed_dim"], **between})
        except ValidationError as error:
            raise ValueError(first_problem(error)) from error
        return {**given, "n_embed": checked.n_embed}

    @model_validator(mode="after")
    def _agree(self) -> "TransformerArchitecture":
        if self.resolution % self.downsampling:
            raise ValueError(f"resolution {self.resolution} is no multiple of downsampling {self.downsampling}")
        for size in (self.encoder_transformer, self.decoder_transformer):
            if min(size.width, size.depth, size.heads) < 1 or size.width % (4 * size.heads):
                raise ValueError(
                    f"width {size.width} must be a multiple of four times heads {size.heads}, depth at least 1"
                )
        return self

    @property
    def encoder_transformer(self) -> TransformerSize:
        """Size of the encoder."""
        return self._size(0)

    @property
    def decoder_transformer(self) -> TransformerSize:
        """Size of the decoder."""
        return self._size(1)

    def _size(self, half: int) -> TransformerSize:
        given = (self.width, self.depth, self.heads)
        return TransformerSize(*(value[half] if isinstance(value, tuple) else value for value in given))

    @property
    def double_z(self) -> bool:
        """Whether the encoder gives a mean and a log-variance."""
        return self.quantizer == "kl"

    @property
    def z_channels(self) -> int:
        """Channels that the decoder takes."""
        return self.embed_dim

    @property
    def discrete(self) -> bool:
        """Whether latents are entries of a codebook."""
        return self.quantizer not in ("none", "kl")

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Shape (c,h,w) of the latent of one image at the nominal resolution."""
        side = self.resolution // self.downsampling
        return (self.embed_dim, side, side)
