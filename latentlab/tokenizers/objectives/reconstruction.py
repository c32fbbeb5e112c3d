"""How far reconstructions are from the images: pixels, and a learned perceptual distance."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latentlab.errors import UserError
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

    def check_side(self, side: int) -> None:
        """Compare two images of this side, to see that it can be done.

        Raises:
            UserError: the perceptual network needs more pixels.
        """
        if self.perceptual is None:
            return
        blank = torch.zeros(1, 3, side, side, device=next(self.perceptual.buffers()).device)
        try:
            with torch.no_grad():
                self(blank, blank)
        except (UserError, RuntimeError) as error:  # RuntimeError: a layer has nothing left to work on
            shown, why = self.config.perceptual_size or side, " ".join(str(error).split())
            raise UserError(
                f"the perceptual distance ({self.config.perceptual_kind}) cannot compare images of {shown}x{shown}, which is "
                "what loss.perceptual_size, data.image_size and objectives.equivariance.smallest_scale make of them: "
                f"set loss.perceptual_size=64 ({why})"
            ) from error

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
