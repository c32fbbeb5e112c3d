"""What a tokenizer is trained to minimise: pixel and perceptual reconstruction plus the terms of its bottleneck."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from latentlab.tokenizers.autoencoder import TrainOutput
from latentlab.tokenizers.config import LossConfig


class TokenizerLoss(nn.Module):
    """Weighted sum of the terms a `LossConfig` switches on."""

    def __init__(self, config: LossConfig) -> None:
        """Build the perceptual network if it is used."""
        super().__init__()
        self.config = config
        self.perceptual: nn.Module | None = None
        if config.perceptual:
            from latentlab.quality.stlpips import STLPIPS

            self.perceptual = STLPIPS(net=config.perceptual_net)

    def forward(self, images: Tensor, output: TrainOutput) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the total and its unweighted terms.

        Args:
            images: [n,3,H,W] in [-1,1].
            output: what the tokenizer's training pass returned; ``output.losses`` holds the bottleneck's own terms.
        """
        reconstruction = output.reconstruction.float()
        terms: dict[str, Tensor] = {}
        if self.config.l1:
            terms["l1"] = functional.l1_loss(reconstruction, images)
        if self.config.l2:
            terms["l2"] = functional.mse_loss(reconstruction, images)
        if self.perceptual is not None:
            terms["perceptual"] = self.perceptual(self._enlarge(reconstruction), self._enlarge(images)).mean()
        for name, value in output.losses.items():
            if getattr(self.config, name):
                terms[name] = value.float()
        total = torch.stack([getattr(self.config, name) * value for name, value in terms.items()]).sum()
        return total, {name: value.detach() for name, value in terms.items()}

    def _enlarge(self, images: Tensor) -> Tensor:
        side = self.config.perceptual_size
        if side is None:
            return images
        return functional.interpolate(images, size=(side, side), mode="bilinear", align_corners=False)
