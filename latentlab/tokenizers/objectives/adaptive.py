"""Weights from gradients: a term may pull at a layer as hard as the reconstruction does, times a factor.

VQGAN (Esser et al. 2021, arXiv 2012.09841, eq. 7) for the discriminator at the decoder's last layer; VA-VAE (Yao et al. 2025,
arXiv 2501.01423, eq. 7) for the alignment at the encoder's last layer.
"""

import torch
from torch import Tensor

from latentlab.tokenizers.objectives.rank_means import mean_over_ranks

_SMALLEST = 1e-4
"""Added to the norm below the line: a term without gradient does not get an infinite weight."""

LARGEST = 1e4


def gradient_ratio(reference: Tensor, term: Tensor, parameter: Tensor) -> Tensor:
    """Return |d reference / d parameter| / (|d term / d parameter| + 1e-4), at most 1e4, without a gradient.

    The norms are of the gradients of the mean over all ranks, so the ratio is the same on each of them.
    """
    above, below = (_gradient(loss, parameter) for loss in (reference, term))
    return (above.norm() / (below.norm() + _SMALLEST)).clamp(max=LARGEST).detach()


def _gradient(loss: Tensor, parameter: Tensor) -> Tensor:
    (gradient,) = torch.autograd.grad(loss, parameter, retain_graph=True)
    return mean_over_ranks(gradient.float())
