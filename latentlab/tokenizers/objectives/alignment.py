"""Alignment of latents with the features of a frozen vision network.

VA-VAE (Yao et al. 2025, arXiv 2501.01423, eqs. 4 to 6) with the margins m1 and m2; ``repa`` is the cosine alignment of REPA (Yu
et al. 2024, arXiv 2410.06940) applied to the tokenizer. z' is a linear projection of the latent to the width of the features.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from latentlab.tokenizers.objectives.settings import AlignmentSettings


def repa_loss(projected: Tensor, features: Tensor) -> Tensor:
    """Return mean (1 - cos(z'_i, f_i)) over cells, in [0,2], of [n,d,s] and [n,d,s]."""
    return (1 - F.cosine_similarity(projected, features, dim=1)).mean()


def mcos_loss(projected: Tensor, features: Tensor, margin: float = 0.5) -> Tensor:
    """Return mean relu(1 - m1 - cos(z'_i, f_i)) over cells of [n,d,s] and [n,d,s]: 0 from a cosine of 1 - m1 on."""
    return F.relu(1 - margin - F.cosine_similarity(projected, features, dim=1)).mean()


def mdms_loss(latents: Tensor, features: Tensor, margin: float = 0.25) -> Tensor:
    """Return mean relu(|cos(z_i,z_j) - cos(f_i,f_j)| - m2) over all pairs of cells of an image, of [n,c,s] and [n,d,s]."""
    return F.relu((_cosines(latents) - _cosines(features)).abs() - margin).mean()


def _cosines(vectors: Tensor) -> Tensor:  # [n,c,s] => [n,s,s]
    units = F.normalize(vectors, dim=1)
    return units.transpose(1, 2) @ units


class Alignment(nn.Module):
    """The alignment terms a configuration switches on, and the projection that they train.

    Attributes:
        projection: from the channels of the latent to those of the features, without bias; None where no term reads it (`mdms`
            compares cells of the latent with each other).
    """

    def __init__(self, settings: AlignmentSettings, channels: int, width: int) -> None:
        super().__init__()
        self.settings = settings
        projected = settings.repa or settings.mcos
        self.projection = nn.Conv1d(channels, width, 1, bias=False) if projected else None

    def forward(self, latents: Tensor, features: Tensor) -> dict[str, Tensor]:
        """Return the unweighted terms of latents [n,c,h,w] and features [n,d,h,w]."""
        settings = self.settings
        cells, wanted = latents.float().flatten(2), features.float().flatten(2)
        terms = {}
        if self.projection is not None:
            projected = self.projection(cells)
            if settings.repa:
                terms["repa"] = repa_loss(projected, wanted)
            if settings.mcos:
                terms["mcos"] = mcos_loss(projected, wanted, settings.cosine_margin)
        if settings.mdms:
            terms["mdms"] = mdms_loss(cells, wanted, settings.distance_margin)
        return terms

    def total(self, terms: dict[str, Tensor]) -> Tensor:
        """Return the weighted sum of what `forward` returned."""
        weights = {"repa": self.settings.repa, "mcos": self.settings.mcos, "mdms": self.settings.mdms}
        return sum((weights[name] * value for name, value in terms.items()), next(iter(terms.values())).new_zeros(()))
