"""LeCam regularisation of a discriminator (Tseng et al. 2021, arXiv 2104.03310, eq. 5 and section 3.2).

Scores of images are drawn to the average score that reconstructions had, and the other way round, so that a discriminator that
wins does not run away. As in the authors' experiments only the side that leads is drawn back (the squares are of positive parts).
"""

import torch
import torch.nn.functional as F
from torch import Tensor

_DECAY = 0.999
"""Of the averages over steps; ours, the paper tries 0.9 to 0.999."""


def lecam_penalty(real: Tensor, made: Tensor, averages: Tensor) -> Tensor:
    """Return mean relu(D(x) - a_made)^2 + mean relu(a_real - D(x'))^2.

    Args:
        real: scores D(x) of images.
        made: scores D(x') of reconstructions.
        averages: a_real and a_made, the average scores of both so far, [2].
    """
    return F.relu(real - averages[1]).square().mean() + F.relu(averages[0] - made).square().mean()


class ScoreAverages:
    """Exponential averages of a discriminator's scores over steps; they start at 0, the score of a blind one.

    Attributes:
        values: of images and of reconstructions, [2] float32.
    """

    def __init__(self, device: torch.device) -> None:
        self.values = torch.zeros(2, device=device)

    def update(self, means: Tensor) -> None:
        """Hear the mean scores [2] of one step."""
        self.values = torch.lerp(means, self.values, _DECAY)
