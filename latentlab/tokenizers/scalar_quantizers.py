"""Quantizers that look nothing up: every channel is rounded by itself, to its sign (LFQ) or one of a few levels (FSQ)."""

import math
from collections.abc import Sequence
from typing import ClassVar, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latentlab.tokenizers.objectives.rank_means import mean_over_ranks
from latentlab.tokenizers.quantizers import LookupFreeQuantizer, Quantized


class Quantizer(Protocol):
    """What `CodebookAutoencoder` asks of its quantizer."""

    loss_terms: ClassVar[tuple[str, ...]]
    """Names of the losses that it gives."""
    needed_terms: ClassVar[tuple[str, ...]]
    """Those of them without which its codes would learn nothing."""

    @property
    def vectors(self) -> Tensor:
        """The codes as the decoder sees them, [v,c]."""

    def nearest(self, features: Tensor) -> Tensor:
        """Return the code of every cell of [n,c,h,w], int64 [n,h,w]."""

    def lookup(self, indices: Tensor) -> Tensor:
        """Return the codes of ``indices`` [n,h,w], [n,c,h,w]."""

    def __call__(self, features: Tensor) -> Quantized:
        """Quantize [n,c,h,w] with a gradient."""


class SignCodebook(LookupFreeQuantizer):
    """LFQ in training (Yu et al. 2023, arXiv 2310.05737, section 3.1): signs, with the straight-through gradient."""

    loss_terms: ClassVar[tuple[str, ...]] = ("commitment", "entropy")
    needed_terms: ClassVar[tuple[str, ...]] = ()
    entropy_temperature = 1.0

    @property
    def vectors(self) -> Tensor:  # type: ignore[override]
        """All codes, -1 or 1, [v,c]."""
        return super().vectors(torch.device("cpu"))

    def forward(self, features: Tensor) -> Quantized:
        """Quantize [n,c,h,w].

        Losses: ``commitment`` |z-sg(sign z)|^2 per number; ``entropy`` the mean entropy of the bits of a cell minus the entropy
        of their means over all cells, summed over bits, in nats. A bit is positive with probability sigmoid(4 z), which is the
        softmax over squared distances to -1 and 1. That the bits' entropies are added takes them as independent: it bounds the
        entropy of the codes, and does without a table of 2^c of them (Zhao et al. 2024, arXiv 2406.07548, section 3.3).
        """
        features = features.float()
        indices = self.nearest(features)
        codes = self.lookup(indices)
        positive = torch.sigmoid(4 * features / self.entropy_temperature).movedim(1, -1).flatten(0, -2)  # [r,c]
        of_each, of_mean = _bit_entropy(positive).mean(0), _bit_entropy(mean_over_ranks(positive.mean(0)))
        losses = {"commitment": F.mse_loss(features, codes), "entropy": (of_each - of_mean).sum()}
        return Quantized(features + (codes - features).detach(), indices, losses)


def _bit_entropy(p: Tensor) -> Tensor:
    return -(torch.xlogy(p, p + 1e-12) + torch.xlogy(1 - p, 1 - p + 1e-12))


class FiniteScalarCodebook(nn.Module):
    """FSQ (Mentzer et al. 2023, arXiv 2309.15505): channel i is squashed to ``levels[i]`` integers and rounded; no losses.

    Codes as the decoder sees them lie in [-1,1]. The number of a code counts in the base of the levels, first channel fastest.
    """

    loss_terms: ClassVar[tuple[str, ...]] = ()
    needed_terms: ClassVar[tuple[str, ...]] = ()

    def __init__(self, levels: Sequence[int]) -> None:
        super().__init__()
        self.levels = tuple(levels)

    @property
    def vectors(self) -> Tensor:
        """All codes in the order of their numbers, [v,c]."""
        numbers = torch.arange(math.prod(self.levels))
        return self.lookup(numbers.view(1, -1, 1))[0, :, :, 0].T.contiguous()

    def nearest(self, features: Tensor) -> Tensor:
        """Return the number of the code of every cell of [n,c,h,w], int64 [n,h,w]."""
        counts = self._counts(features.device)
        digits = self._bounded(features.float()).round().long() + counts // 2
        return (digits * (counts.cumprod(0) // counts)).sum(1)

    def lookup(self, indices: Tensor) -> Tensor:
        """Return the codes of ``indices`` [n,h,w], channel first, float32 [n,c,h,w]."""
        counts = self._counts(indices.device)
        digits = indices[:, None] // (counts.cumprod(0) // counts) % counts
        return (digits - counts // 2) / (counts // 2)

    def forward(self, features: Tensor) -> Quantized:
        """Quantize [n,c,h,w]; the gradient skips the rounding."""
        bounded = self._bounded(features.float())
        rounded = bounded + (bounded.round() - bounded).detach()
        return Quantized(rounded / (self._counts(features.device) // 2), self.nearest(features), {})

    def _counts(self, device: torch.device) -> Tensor:
        return torch.tensor(self.levels, device=device)[:, None, None]

    def _bounded(self, features: Tensor) -> Tensor:
        """Return features squashed to as many integers as there are levels (section 3.1).

        An even number of levels is not centred on 0: they are moved by half a step.
        """
        counts = self._counts(features.device)
        half, offset = (counts - 1) * 1.001 / 2, (counts % 2 == 0) * 0.5
        return torch.tanh(features + torch.atanh(offset / half)) * half - offset
