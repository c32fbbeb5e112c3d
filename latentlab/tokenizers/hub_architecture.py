"""Fields of DC-AE and RAE, under the names of their published ``config.json``, which are diffusers'. Imports no torch."""

from math import lcm
from typing import ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Block = Literal["ResBlock", "EfficientViTBlock"]
Norm = Literal["batch_norm", "rms_norm"]
Activation = Literal["relu", "silu"]
Numbers = tuple[int, ...]
Scales = tuple[Numbers, ...]

HEAD_WIDTH = 64
"""Channels of one head of RAE's encoder."""

_WIDTHS = (128, 256, 512, 512, 1024, 1024)


class DCArchitecture(BaseModel):
    """``AutoencoderDC``: DC-AE (Chen et al. 2024, arXiv 2410.10733).

    Attributes:
        in_channels: channels of the images.
        latent_channels: channels of the latent.
        attention_head_dim: channels of one head of attention.
        encoder_block_types: kind of block of each level, finest first, or one for all; ``decoder_block_types`` likewise.
        encoder_block_out_channels: width of each level; every level after the first halves the resolution.
        encoder_layers_per_block: blocks of each level; without any, the first level is left out and its halving comes first.
        encoder_qkv_multiscales: kernel sizes that gather keys and values at further scales, for each level.
        decoder_norm_types: kind of normalisation of each level, or one for all.
        decoder_act_fns: activation of each level, or one for all.
        downsample_block_type: ``pixel_unshuffle`` or ``conv``.
        upsample_block_type: ``pixel_shuffle`` or ``interpolate``.
        encoder_out_shortcut: whether the last layer works on a residual; ``decoder_in_shortcut`` likewise.
        decoder_conv_act_fn: activation before the last convolution.
        scaling_factor: of the latents, for generators.
        resolution: nominal image side in pixels; ours, not published.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    in_channels: int = Field(default=3, gt=0)
    latent_channels: int = Field(default=32, gt=0)
    attention_head_dim: int = Field(default=32, gt=0)
    encoder_block_types: Block | tuple[Block, ...] = "ResBlock"
    decoder_block_types: Block | tuple[Block, ...] = "ResBlock"
    encoder_block_out_channels: Numbers = Field(default=_WIDTHS, min_length=1)
    decoder_block_out_channels: Numbers = Field(default=_WIDTHS, min_length=1)
    encoder_layers_per_block: Numbers = (2, 2, 2, 3, 3, 3)
    decoder_layers_per_block: Numbers = (3, 3, 3, 3, 3, 3)
    encoder_qkv_multiscales: Scales = ((), (), (), (5,), (5,), (5,))
    decoder_qkv_multiscales: Scales = ((), (), (), (5,), (5,), (5,))
    upsample_block_type: Literal["pixel_shuffle", "interpolate"] = "pixel_shuffle"
    downsample_block_type: Literal["pixel_unshuffle", "conv", "Conv"] = "pixel_unshuffle"
    decoder_norm_types: Norm | tuple[Norm, ...] = "rms_norm"
    decoder_act_fns: Activation | tuple[Activation, ...] = "silu"
    encoder_out_shortcut: bool = True
    decoder_in_shortcut: bool = True
    decoder_conv_act_fn: Activation = "relu"
    scaling_factor: float = Field(default=1.0, gt=0)
    resolution: int = Field(default=256, gt=0)

    quantizer: ClassVar[str] = "none"
    n_embed: ClassVar[None] = None

    @model_validator(mode="after")
    def _equal_lengths(self) -> "DCArchitecture":
        for half in ("encoder", "decoder"):
            levels = len(getattr(self, f"{half}_block_out_channels"))
            for field in ("layers_per_block", "qkv_multiscales", "block_types"):
                value = getattr(self, f"{half}_{field}")
                if not isinstance(value, str) and len(value) != levels:
                    raise ValueError(f"{half}_{field} needs {levels} entries, one per level, got {len(value)}")
        return self

    @property
    def downsampling(self) -> int:
        """Image side divided by latent side."""
        return 1 << (len(self.encoder_block_out_channels) - 1)

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Shape (c,h,w) of the latent of one image at the nominal resolution."""
        side = self.resolution // self.downsampling
        return (self.latent_channels, side, side)


class RAEArchitecture(BaseModel):
    """``AutoencoderRAE``: a frozen representation encoder and a decoder for it (Zheng et al. 2025, arXiv 2510.11690).

    Attributes:
        encoder_type: the representation; the published models with SigLIP 2 and MAE are not supported.
        encoder_hidden_size: width of the encoder, channels of the latent.
        encoder_patch_size: side of its patches in pixels.
        encoder_num_hidden_layers: its blocks.
        decoder_hidden_size: width of the decoder.
        decoder_num_hidden_layers: its blocks.
        decoder_num_attention_heads: its heads.
        decoder_intermediate_size: width inside its blocks.
        patch_size: side of the decoder's patches in pixels.
        encoder_input_size: side to which images are resized before the encoder.
        image_size: side of the images the decoder makes; left out, what the patches give.
        num_channels: channels of the images.
        encoder_norm_mean: statistics that the weights hold too, and those count; likewise ``encoder_norm_std``, ``latents_mean``
            and ``latents_std``.
        noise_tau: of training only; likewise ``use_encoder_loss``.
        reshape_to_2d: always true: latents are grids.
        scaling_factor: multiplies latents in the encoder.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    encoder_type: Literal["dinov2"] = "dinov2"
    encoder_hidden_size: int = Field(default=768, gt=0)
    encoder_patch_size: int = Field(default=14, gt=0)
    encoder_num_hidden_layers: int = Field(default=12, gt=0)
    decoder_hidden_size: int = Field(default=512, gt=0)
    decoder_num_hidden_layers: int = Field(default=8, gt=0)
    decoder_num_attention_heads: int = Field(default=16, gt=0)
    decoder_intermediate_size: int = Field(default=2048, gt=0)
    patch_size: int = Field(default=16, gt=0)
    encoder_input_size: int = Field(default=224, gt=0)
    image_size: int | None = Field(default=None, gt=0)
    num_channels: Literal[3] = 3
    encoder_norm_mean: object = None
    encoder_norm_std: object = None
    latents_mean: object = None
    latents_std: object = None
    noise_tau: float = 0.0
    reshape_to_2d: Literal[True] = True
    use_encoder_loss: bool = False
    scaling_factor: float = Field(default=1.0, gt=0)

    quantizer: ClassVar[str] = "none"
    n_embed: ClassVar[None] = None

    @model_validator(mode="after")
    def _whole_patches(self) -> "RAEArchitecture":
        if self.encoder_input_size % self.encoder_patch_size:
            raise ValueError(
                f"encoder_input_size must be a multiple of encoder_patch_size, got {self.encoder_input_size} and "
                f"{self.encoder_patch_size}"
            )
        if self.encoder_hidden_size % HEAD_WIDTH or self.decoder_hidden_size % lcm(4, self.decoder_num_attention_heads):
            raise ValueError(
                f"encoder_hidden_size must be a multiple of {HEAD_WIDTH}, decoder_hidden_size of 4 and of its heads, got "
                f"{self.encoder_hidden_size}, {self.decoder_hidden_size} and {self.decoder_num_attention_heads} heads"
            )
        if self.image_size not in (None, self.resolution):
            raise ValueError(f"image_size must be {self.resolution}, got {self.image_size}")
        return self

    @property
    def latent_channels(self) -> int:
        """Channels of the latent."""
        return self.encoder_hidden_size

    @property
    def latent_side(self) -> int:
        """Cells along one side of the latent."""
        return self.encoder_input_size // self.encoder_patch_size

    @property
    def resolution(self) -> int:
        """Side in pixels of the images that are decoded."""
        return self.patch_size * self.latent_side

    @property
    def downsampling(self) -> int:
        """Side of decoded images divided by latent side."""
        return self.patch_size

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Shape (c,h,w) of the latent of one image."""
        return (self.encoder_hidden_size, self.latent_side, self.latent_side)
