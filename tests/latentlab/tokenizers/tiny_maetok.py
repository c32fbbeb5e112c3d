"""The smallest MAETok that still has all its parts."""

from typing import Any

ARCHITECTURE: dict[str, Any] = {
    "image_size": 32, "encoder_model": "vit_small_patch14_dinov2", "decoder_model": "vit_small_patch14_dinov2_movqv2",
    "enc_patch_size": 8, "dec_patch_size": 8, "num_latent_tokens": 4, "use_ape": False, "use_rope": True, "rope_mixed": True,
    "codebook_embed_dim": 8, "embed_dim": 32, "depth": 1, "num_heads": 2, "target_depth": 1,
}  # fmt: skip
