"""One training pass of a tokenizer as its losses take it, without noise or masks on the latents."""

import torch
from torch import Tensor

from latentlab.tokenizers.trainable import TrainableTokenizer, TrainOutput


def training_pass(
    tokenizer: TrainableTokenizer, images: Tensor, generator: torch.Generator | None = None
) -> TrainOutput:
    """Encode images [n,3,H,W] in [-1,1] and decode their latents, with gradients."""
    found = tokenizer.encode_train(images, generator)
    return TrainOutput(tokenizer.reconstruct(found.latents), found.latents, found.losses, found.indices)
