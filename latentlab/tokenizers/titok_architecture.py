"""Shape of TiTok, under the field names of its published configurations. Imports no torch."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from latentlab.tokenizers.sequence_architecture import SequenceArchitecture, TransformerSize

SIZES = {
    "small": TransformerSize(512, 8, 8),
    "base": TransformerSize(768, 12, 12),
    "large": TransformerSize(1024, 24, 16),
}

Size = Literal["small", "base", "large"]


class TiTokArchitecture(SequenceArchitecture):
    """TiTok: a transformer that sees image patches and latent tokens, and one that sees the latent and mask tokens.

    Attributes:
        crop_size: image side in pixels, the only one that fits.
        vit_enc_model_size: name of the encoder's size.
        vit_dec_model_size: name of the decoder's.
        vit_enc_patch_size: side of the encoder's patches in pixels.
        vit_dec_patch_size: side of the decoder's patches.
        num_latent_tokens: tokens of one latent.
        token_size: channels of one token.
        quantize_mode: ``vq`` (codebook) or ``vae`` (Gaussian posterior per token).
        codebook_size: number of codes, for ``vq``.
        use_l2_norm: whether tokens and codes are compared, and used, with unit length.
        is_legacy: the first models: they mix up channels and tokens at the end of the encoder, and their decoder predicts codes
            of a MaskGIT-VQGAN.
        finetune_decoder: whether the decoder of that VQGAN follows. Always so for published legacy models, never for others.
        hidden_channels: width of the first level of the VQGAN.
        pixel_codebook_size: codes of the VQGAN.
    """

    WITHOUT_EFFECT: ClassVar[frozenset[str]] = frozenset({"commitment_cost", "clustering_vq"})

    crop_size: int = Field(default=256, gt=0)
    vit_enc_model_size: Size
    vit_dec_model_size: Size
    vit_enc_patch_size: int = Field(default=16, gt=0)
    vit_dec_patch_size: int = Field(default=16, gt=0)
    num_latent_tokens: int = Field(gt=0)
    token_size: int = Field(gt=0)
    quantize_mode: Literal["vq", "vae"] = "vq"
    codebook_size: int | None = Field(default=None, gt=1)
    use_l2_norm: bool = False
    is_legacy: bool = True
    finetune_decoder: bool = True
    hidden_channels: int = Field(default=128, gt=0, multiple_of=32)
    pixel_codebook_size: int = Field(default=1024, gt=1)

    @classmethod
    def flat(cls, config: Mapping[str, Any]) -> dict[str, Any]:
        """Return sections ``model.vq_model`` and ``dataset.preprocessing`` of a published configuration as one; or its fields."""
        model, pictures = _section(config, "model", "vq_model"), _section(config, "dataset", "preprocessing")
        return {**pictures, **model} if model else dict(config)

    @model_validator(mode="after")
    def _possible(self) -> "TiTokArchitecture":
        for patch in (self.vit_enc_patch_size, self.vit_dec_patch_size):
            if self.crop_size % patch:
                raise ValueError(f"crop_size {self.crop_size} is no multiple of the patch size {patch}")
        if self.finetune_decoder != self.is_legacy:
            raise ValueError(
                "is_legacy and finetune_decoder must be both true or both false, as in all published models"
            )
        if self.is_legacy and (self.quantize_mode == "vae" or self.vit_dec_patch_size != 16):
            raise ValueError("a legacy model has quantize_mode 'vq', and vit_dec_patch_size 16 as its VQGAN")
        if self.quantize_mode == "vq" and self.codebook_size is None:
            raise ValueError("quantize_mode 'vq' needs codebook_size, its number of codes")
        return self

    @property
    def published_sizes(self) -> tuple[TransformerSize, TransformerSize]:
        """Sizes of encoder and decoder, by name."""
        return SIZES[self.vit_enc_model_size], SIZES[self.vit_dec_model_size]

    @property
    def encoder_grid(self) -> int:
        """Patches along one side of the encoder's image."""
        return self.crop_size // self.vit_enc_patch_size

    @property
    def decoder_grid(self) -> int:
        """Patches along one side of the decoder's image."""
        return self.crop_size // self.vit_dec_patch_size

    @property
    def quantizer(self) -> str:
        """``vq``, ``vq-cosine`` or ``kl``."""
        if self.quantize_mode == "vae":
            return "kl"
        return "vq-cosine" if self.use_l2_norm else "vq"

    @property
    def n_embed(self) -> int | None:
        """Number of codes; None for continuous latents."""
        return self.codebook_size if self.quantize_mode == "vq" else None

    @property
    def resolution(self) -> int:
        """Image side in pixels."""
        return self.crop_size

    @property
    def latent_shape(self) -> tuple[int, int]:
        """Shape (l,c) of the latent of one image."""
        return (self.num_latent_tokens, self.token_size)


def _section(config: Mapping[str, Any], *names: str) -> Mapping[str, Any]:
    """Return a nested section, empty where there is none."""
    for name in names:
        inner = config.get(name)
        config = inner if isinstance(inner, Mapping) else {}
    return config
