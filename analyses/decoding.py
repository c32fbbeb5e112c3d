"""Images decoded from latents, and the originals they are compared with."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from latentlab.data.subset import choose_subset
from latentlab.errors import UserError
from latentlab.latents import Latents, tokenizer_layout
from latentlab.pixels import ChosenPixels, Pixels

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


def decoded(decode: Decode, latents: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Return the images [b,*shape] of channel-first ``latents`` [b,...].

    Raises:
        UserError: images of another shape, NaN or infinity.
    """
    with torch.no_grad():
        images = torch.as_tensor(decode(tokenizer_layout(latents)))
    if images.shape != (len(latents), *shape):
        raise UserError(
            f"decode must give images of the originals' shape {[len(latents), *shape]}, got {list(images.shape)}: "
            "choose an image size the tokenizer can divide"
        )
    if not torch.isfinite(images).all():
        raise UserError("the tokenizer decodes to NaN or infinite pixels: check its weights")
    return images
