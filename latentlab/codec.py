"""A tokenizer as the measurements see it: two functions on the CPU, and a name for its weights."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from latentlab.encoding import default_batch_size, encode_batch, weights_digest
from latentlab.files import digest
from latentlab.runtime import whole_float32
from latentlab.tokenizers.base import DiscreteTokenizer, Tokenizer

_USUAL_SIDE = 256
"""Image side that 1-D latents are taken to decode to, for the choice of batch size only."""


@dataclass(frozen=True)
class Codec:
    """Encoder and decoder of a tokenizer, without gradients.

    Attributes:
        encode: images [b,3,H,W] in [-1,1] -> un-normalised latents [b,c,h,w] or [b,l,c]; posterior mode, quantised codes.
        decode: such latents -> images [b,3,H,W] in about [-1,1].
        codebook: code vectors [v,c]; None for a continuous tokenizer.
        fingerprint: changes with the architecture and the weights.
    """

    encode: Callable[[Tensor], Tensor]
    decode: Callable[[Tensor], Tensor]
    codebook: Tensor | None
    fingerprint: str


def codec_of(tokenizer: Tokenizer, device: torch.device | str = "cpu", batch_size: int | None = None) -> Codec:
    """Put ``tokenizer`` on ``device`` in evaluation mode; the functions take and return CPU tensors of any batch size.

    They pass at most ``batch_size`` images at a time, by default as `default_batch_size` says.
    """
    tokenizer = tokenizer.to(device).eval()

    def encode(images: Tensor) -> Tensor:
        return in_parts(lambda part: encode_batch(tokenizer, part)[0], images, images.shape[-1])

    def decode(latents: Tensor) -> Tensor:
        side = latents.shape[-1] * (tokenizer.spec.downsampling or 1) if latents.ndim == 4 else _USUAL_SIDE
        return in_parts(tokenizer.decode, latents, side)

    def in_parts(function: Callable[[Tensor], Tensor], batch: Tensor, image_side: int) -> Tensor:
        parts = batch.split(batch_size or default_batch_size(image_side, device))
        with torch.inference_mode(), whole_float32():
            results = torch.cat([function(part.to(device, torch.float32)).float().cpu() for part in parts])
        return results.clone()  # an ordinary tensor, through which callers may differentiate

    codebook = tokenizer.codebook.detach().float().cpu() if isinstance(tokenizer, DiscreteTokenizer) else None
    fingerprint = digest([tokenizer.spec.to_dict(), weights_digest(tokenizer)])
    return Codec(encode, decode, codebook, fingerprint)
