"""How far reconstructions are from the images: pixels, and a learned perceptual distance."""

import torch.nn.functional as F
from torch import Tensor, nn

from latentlab.tokenizers.config import LossConfig


class Reconstruction(nn.Module):
    """The terms l1, l2 and perceptual that a configuration switches on."""

    def __init__(self, config: LossConfig) -> None:
        """Build the perceptual network if it is used.

        Raises:
            UserError: its weights are not on this machine.
        """
        super().__init__()
        self.config = config
        self.perceptual = _perceptual(config) if config.perceptual else None

    def forward(self, reconstruction: Tensor, images: Tensor) -> dict[str, Tensor]:
        """Return the unweighted terms of reconstructions and images, [n,3,H,W] in [-1,1]; means over pixels and images."""
        reconstruction = reconstruction.float()
        terms: dict[str, Tensor] = {}
        if self.config.l1:
            terms["l1"] = F.l1_loss(reconstruction, images)
        if self.config.l2:
            terms["l2"] = F.mse_loss(reconstruction, images)
        if self.perceptual is not None:
            terms["perceptual"] = self.perceptual(self._enlarge(reconstruction), self._enlarge(images)).mean()
        return terms

    def _enlarge(self, images: Tensor) -> Tensor:
        side = self.config.perceptual_size
        if side is None:
            return images
        return F.interpolate(images, size=(side, side), mode="bilinear", align_corners=False)


def _perceptual(config: LossConfig) -> nn.Module:
    from latentlab.quality.perceptual import perceptual_distance

    name = config.perceptual_kind + ("_vgg" if config.perceptual_net == "vgg" else "")
    network = perceptual_distance(name).network
    assert isinstance(network, nn.Module)
    return network
