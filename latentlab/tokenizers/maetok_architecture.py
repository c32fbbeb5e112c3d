"""Shape of MAETok and SoftVQ, under the field names of their published ``config.json``. Imports no torch."""

import re
from typing import ClassVar, Literal

from pydantic import Field, model_validator

from latentlab.tokenizers.sequence_architecture import SequenceArchitecture, TransformerSize

SIZES = {
    "small": TransformerSize(384, 12, 6),
    "base": TransformerSize(768, 12, 12),
    "large": TransformerSize(1024, 24, 16),
}
"""Vision transformers by the word in their name (Dosovitskiy et al. 2021, arXiv 2010.11929, table 1)."""

_NAME = re.compile(r"vit_(small|base|large)_patch14_dinov2(_movqv2)?(\.\w+)?")
"""Transformers of this name have layer scale; ``movqv2`` marks a decoder whose norms are modulated by the latent."""


_UNREAD = """
base_image_size codebook_l2_norm codebook_show_usage codebook_size commit_loss_beta dec_drop_path_rate dec_pretrained
dec_tuning_method decoder_ch_mult dropout_p enc_drop_path_rate enc_pretrained enc_token_drop enc_token_drop_max
enc_tuning_method encoder_ch_mult entropy_loss_ratio kl_loss_weight num_codebooks repa repa_align repa_layer_indices
repa_loss_weight repa_model repa_patch_size repa_proj_dim rope_theta tau vq_loss_ratio z_channels
"""


class MAETokArchitecture(SequenceArchitecture):
    """MAETok: a transformer that sees image patches and latent tokens, and one that sees the latent and mask tokens.

    Attributes:
        image_size: side in pixels, the only one that fits.
        encoder_model: timm name of the encoder's transformer, which fixes its size.
        decoder_model: the decoder's; with ``_movqv2`` its norms are modulated by the latent.
        enc_type: of the encoder, the only one published.
        dec_type: of the decoder, the only one published.
        enc_patch_size: side of the encoder's patches in pixels (the number in the name does not count).
        dec_patch_size: side of the decoder's patches.
        num_latent_tokens: tokens of one latent.
        codebook_embed_dim: channels of one token.
        to_pixel: last layer of the decoder, the only one published.
        dec_cls_token: whether a class token stands before the decoder's image tokens; None for what the file holds.
        use_ape: whether learned positions are added to the decoder's image tokens; the encoder always has them.
        use_rope: whether queries and keys of patches are rotated by their position.
        rope_mixed: learned frequencies that mix both axes, the only kind of rotation there is.
        vq_mean: mean of all numbers of the latents, which `normalize` subtracts.
        vq_std: their standard deviation, by which it divides.
    """

    WITHOUT_EFFECT: ClassVar[frozenset[str]] = frozenset(_UNREAD.split())

    image_size: int = Field(default=256, gt=0)
    encoder_model: str
    decoder_model: str
    enc_type: Literal["vit"] = "vit"
    dec_type: Literal["vit"] = "vit"
    enc_patch_size: int = Field(default=16, gt=0)
    dec_patch_size: int = Field(default=16, gt=0)
    num_latent_tokens: int = Field(gt=0)
    codebook_embed_dim: int = Field(gt=0)
    to_pixel: Literal["linear"] = "linear"
    dec_cls_token: bool | None = None
    use_ape: bool = True
    use_rope: bool = False
    rope_mixed: bool = False
    vq_mean: float = 0.0
    vq_std: float = Field(default=1.0, gt=0)

    quantizer: ClassVar[str] = "none"
    n_embed: ClassVar[None] = None

    @model_validator(mode="after")
    def _possible(self) -> "MAETokArchitecture":
        for patch in (self.enc_patch_size, self.dec_patch_size):
            if self.image_size % patch:
                raise ValueError(f"image_size {self.image_size} is no multiple of the patch size {patch}")
        if self.use_rope and not self.rope_mixed:
            raise ValueError("use_rope goes only with rope_mixed: fixed frequencies are not known to be published")
        return self

    @property
    def published_sizes(self) -> tuple[TransformerSize, TransformerSize]:
        """Sizes of encoder and decoder, from the names of the transformers."""
        return _named("encoder_model", self.encoder_model), _named("decoder_model", self.decoder_model)

    @property
    def modulated(self) -> bool:
        """Whether the norms of the decoder are modulated by the latent."""
        return "movqv2" in self.decoder_model

    @property
    def resolution(self) -> int:
        """Image side in pixels."""
        return self.image_size

    @property
    def latent_shape(self) -> tuple[int, int]:
        """Shape (l,c) of the latent of one image."""
        return (self.num_latent_tokens, self.codebook_embed_dim)


class SoftVQArchitecture(MAETokArchitecture):
    """SoftVQ: the same networks, with soft codes between them.

    Attributes:
        codebook_size: codes of each codebook.
        num_codebooks: codebooks; each serves as many consecutive tokens as the others.
        tau: temperature of the softmax over codes.
    """

    WITHOUT_EFFECT: ClassVar[frozenset[str]] = MAETokArchitecture.WITHOUT_EFFECT - {
        "codebook_size",
        "num_codebooks",
        "codebook_l2_norm",
        "tau",
    }

    codebook_size: int = Field(default=8192, gt=0)
    num_codebooks: int = Field(default=1, gt=0)
    codebook_l2_norm: Literal[True] = True
    tau: float = Field(default=0.07, gt=0)

    quantizer: ClassVar[str] = "softvq"

    @model_validator(mode="after")
    def _equal_segments(self) -> "SoftVQArchitecture":
        if self.num_latent_tokens % self.num_codebooks:
            raise ValueError(
                f"{self.num_codebooks} codebooks do not share {self.num_latent_tokens} latent tokens equally"
            )
        return self


def _named(field: str, name: str) -> TransformerSize:
    match = _NAME.fullmatch(name)
    if match is None or (match[2] and field == "encoder_model"):
        raise ValueError(
            f"{field} '{name}' is not a DINOv2-style transformer that is known here, such as "
            "vit_base_patch14_dinov2.lvd142m"
        )
    return SIZES[match[1]]
