"""The adversarial game between tokenizer and discriminator, with the hinge loss (Lim and Ye 2017, arXiv 1705.02894, eq. 3).

As in VQGAN and VA-VAE: the discriminator minimises half the sum of both hinges, the tokenizer minimises minus the mean score of
its reconstructions.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from latentlab.tokenizers.objectives.feature_discriminator import FeatureDiscriminator
from latentlab.tokenizers.objectives.patch_discriminator import PatchDiscriminator
from latentlab.tokenizers.objectives.settings import AdversarialSettings


def discriminator_loss(real: Tensor, made: Tensor) -> Tensor:
    """Return (mean relu(1 - D(x)) + mean relu(1 + D(x'))) / 2 of scores of images and of reconstructions: 1 for a blind one."""
    return (F.relu(1 - real).mean() + F.relu(1 + made).mean()) / 2


def tokenizer_loss(made: Tensor) -> Tensor:
    """Return -mean D(x') of the scores of reconstructions."""
    return -made.mean()


def build_discriminator(settings: AdversarialSettings) -> nn.Module:
    """Return the discriminator: images [n,3,H,W] in [-1,1] -> scores, higher for what it takes for an image.

    Raises:
        UserError: the weights of its frozen network are not on this machine.
    """
    if settings.kind == "features":
        return FeatureDiscriminator(settings.network, settings.width)
    return PatchDiscriminator(settings.width, settings.layers)
