"""Shape of GigaTok, under the field names of its published configurations (``init_args``). Imports no torch."""

from typing import ClassVar, Literal

from pydantic import Field, model_validator

from latentlab.tokenizers.sequence_architecture import SequenceArchitecture, TransformerSize

SIZES = {
    "tiny": TransformerSize(256, 4, 4),
    "small": TransformerSize(512, 6, 8),
    "base": TransformerSize(768, 12, 12),
    "large": TransformerSize(1024, 24, 16),
    "xl": TransformerSize(1280, 36, 20),
    "xxl": TransformerSize(1536, 48, 24),
}

Size = Literal["tiny", "small", "base", "large", "xl", "xxl"]


_UNREAD = """
codebook_show_usage commit_loss_beta entropy_loss_ratio dropout_p rot fea_rec_loss_type fea_rec_loss_weight distill_depth
out_inner_dim
"""


class GigaTokArchitecture(SequenceArchitecture):
    """GigaTok: a convolutional encoder and decoder, and between them transformers from grid to sequence and back.

    Fields that allow one value describe what all published models have in common.

    Attributes:
        image_size: side in pixels, the only one that fits; not configured in the published ones.
        ch: width of the first convolutional level; not configured in the published ones.
        encoder_ch_mult: width of each level of the encoder as a multiple of ``ch``.
        decoder_ch_mult: the same for the decoder.
        z_channels: channels of the grid between convolutions and transformers.
        encoder_size: name of the size of the transformer that makes the sequence.
        decoder_size: name of the size of the one that makes a grid of it.
        num_latent_tokens: tokens of one latent, a power of 2.
        codebook_size: number of codes.
        codebook_embed_dim: channels of one token.
    """

    WITHOUT_EFFECT: ClassVar[frozenset[str]] = frozenset(_UNREAD.split())

    image_size: int = Field(default=256, gt=0)
    ch: int = Field(default=128, gt=0, multiple_of=32)
    encoder_ch_mult: tuple[int, ...] = Field(default=(1, 1, 2, 2, 4), min_length=1)
    decoder_ch_mult: tuple[int, ...] = Field(default=(1, 1, 2, 2, 4), min_length=1)
    z_channels: int = Field(default=256, gt=0)
    encoder_size: Size
    decoder_size: Size
    num_latent_tokens: int = Field(default=256, gt=0)
    codebook_size: int = Field(default=16384, gt=1)
    codebook_embed_dim: int = Field(default=8, gt=0)

    model_size: None = None
    codebook_l2_norm: Literal[True] = True
    multi_level_query_init: Literal[True] = True
    last_level_2d_query_init: Literal[False] = False
    multi_level_2d_query_init: Literal[False] = False
    adaptive_gn: Literal[True] = True
    d2s_up: Literal[True] = True
    use_attn: Literal[False] = False
    use_qk_norm: Literal[False] = False

    quantizer: ClassVar[str] = "vq-cosine"

    @model_validator(mode="after")
    def _possible(self) -> "GigaTokArchitecture":
        if len(self.encoder_ch_mult) != len(self.decoder_ch_mult) or self.image_size % self.downsampling:
            raise ValueError(
                f"{len(self.encoder_ch_mult)} levels of the encoder and {len(self.decoder_ch_mult)} of the decoder must be "
                f"equally many, and halve image_size {self.image_size} without remainder"
            )
        tokens, cells = self.num_latent_tokens, self.grid**2
        if tokens & (tokens - 1) or cells % tokens or self.grid & (self.grid - 1):
            raise ValueError(
                f"num_latent_tokens {tokens} must be a power of 2 up to {cells}, the cells of a grid whose side is one, too"
            )
        return self

    @property
    def published_sizes(self) -> tuple[TransformerSize, TransformerSize]:
        """Sizes of both transformers, by name."""
        return SIZES[self.encoder_size], SIZES[self.decoder_size]

    @property
    def downsampling(self) -> int:
        """Image side divided by the side of the grid."""
        return 1 << (len(self.encoder_ch_mult) - 1)

    @property
    def grid(self) -> int:
        """Cells along one side of the grid between convolutions and transformers."""
        return self.image_size // self.downsampling

    @property
    def n_embed(self) -> int:
        """Number of codes."""
        return self.codebook_size

    @property
    def resolution(self) -> int:
        """Image side in pixels."""
        return self.image_size

    @property
    def latent_shape(self) -> tuple[int, int]:
        """Shape (l,c) of the latent of one image."""
        return (self.num_latent_tokens, self.codebook_embed_dim)
