"""What two functions, a tokenizer, make of images and of latents, and the originals that decoded images are compared with.

The functions may be a user's own: networks with parameters that require gradients, on any device.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from latentlab.data.subset import choose_subset
from latentlab.errors import UserError
from latentlab.latents import Latents, tensor_of
from latentlab.pixels import ChosenPixels, Pixels

Encode = Callable[[Tensor], Tensor]
Decode = Callable[[Tensor], Tensor]


def originals_of(latents: Latents, images: Pixels, limit: int | None, seed: int) -> tuple[np.ndarray, Pixels]:
    """Return which latents to decode (at most ``limit``, evenly from the classes), and the images they were made of.

    Raises:
        UserError: ``limit`` below 2, or not one image per latent.
    """
    if images.n != latents.n:
        raise UserError(f"images must have one entry per latent: got {images.n} for {latents.n} latents")
    if limit is not None and limit < 2:
        raise UserError(f"limit must be at least 2, got {limit}")
    rows = choose_subset(latents.n, latents.labels, limit, seed)
    return rows, images if len(rows) == images.n else ChosenPixels(images, rows)


def encoded(encode: Encode, images: Tensor, what: str = "images") -> Tensor:
    """Return the latents of ``images`` [b,3,H,W] in the tokenizer's layout, [b,c,h,w] or [b,l,c], on the CPU, without gradients.

    Raises:
        UserError: no numbers, not one latent per image, NaN or infinity; the message calls the images ``what``.
    """
    with torch.no_grad():
        latents = tensor_of("what encode gives", encode(images)).cpu()
    if latents.ndim not in (3, 4) or len(latents) != len(images):
        raise UserError(
            f"encode must give latents [b,c,h,w] or [b,l,c], got shape {list(latents.shape)} for {len(images)} images"
        )
    if not torch.isfinite(latents).all():
        raise UserError(f"the tokenizer encodes {what} to NaN or infinity: check its weights")
    return latents


def decoded(decode: Decode, latents: Tensor, shape: tuple[int, ...] | None = None) -> Tensor:
    """Return the images [b,3,H,W] of ``latents`` in the tokenizer's layout, on the CPU, without gradients.

    Args:
        decode: the tokenizer's decoder.
        latents: [b,c,h,w] or [b,l,c].
        shape: that of one image, (3,H,W), where there is an original.

    Raises:
        UserError: no numbers, images of another shape, NaN or infinity.
    """
    with torch.no_grad():
        images = tensor_of("what decode gives", decode(latents)).cpu()
    if shape is not None and images.shape != (len(latents), *shape):
        raise UserError(
            f"decode must give images of the originals' shape {[len(latents), *shape]}, got {list(images.shape)}: "
            "choose an image size the tokenizer can divide"
        )
    if images.ndim != 4 or len(images) != len(latents):
        raise UserError(f"decode must give images [b,3,H,W], got shape {list(images.shape)} for {len(latents)} latents")
    if not torch.isfinite(images).all():
        raise UserError("the tokenizer decodes to NaN or infinite pixels: check its weights")
    return images
