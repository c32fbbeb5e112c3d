"""PatchGAN: a score for every overlapping patch of an image (Isola et al. 2017, arXiv 1611.07004, section 3.2).

Layers as in VQGAN's (4x4 convolutions, slope 0.2), except that groups of channels of one image are normalised where that uses
batch statistics: scores then depend neither on the other images nor on the number of ranks.
"""

import math

from torch import Tensor, nn

from latentlab.errors import UserError


class PatchDiscriminator(nn.Module):
    """``layers`` halvings of the side, then two convolutions of stride 1; receptive field 70 pixels with three layers."""

    def __init__(self, width: int = 64, layers: int = 3) -> None:
        super().__init__()
        widths = [width * min(2**i, 8) for i in range(layers + 1)]
        stages: list[nn.Module] = [nn.Conv2d(3, width, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        for i in range(1, layers + 1):
            stride = 2 if i < layers else 1
            stages += [
                nn.Conv2d(widths[i - 1], widths[i], 4, stride=stride, padding=1, bias=False),
                nn.GroupNorm(math.gcd(32, widths[i]), widths[i]),
                nn.LeakyReLU(0.2),
            ]
        self.stages = nn.Sequential(*stages, nn.Conv2d(widths[-1], 1, 4, stride=1, padding=1))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, 0.0, 0.02)

    @staticmethod
    def check_side(layers: int, side: int) -> None:
        """Refuse images of this side that ``layers`` halvings leave no patch of.

        Raises:
            UserError: as the summary says.
        """
        if side < (smallest := 3 * 2**layers):  # both convolutions of stride 1 take a pixel away
            raise UserError(
                f"a PatchGAN of {layers} layers needs images of at least {smallest}x{smallest}, got {side}x{side}: "
                "lower objectives.adversarial.layers"
            )

    def forward(self, images: Tensor) -> Tensor:
        """Return scores [n,1,h,w] of images [n,3,H,W] in [-1,1]."""
        scores: Tensor = self.stages(images)
        return scores
