"""The sampler's random numbers: each sample its own, or one generator in the order of the released evaluation code.

Shapes: b batch, l tokens, d embedding width, r candidates of a token.
"""

from typing import Protocol

import torch
from torch import Tensor

from mind import noise
from mind.token_choice import draw_by_gumbel, draw_by_inverse_cdf


class NoiseSource(Protocol):
    """What `mind.sample` draws; ``evaluation`` is 1, or 2 for the second evaluation of a step of order 2."""

    def initial(self, shape: tuple[int, int]) -> Tensor:
        """Return the noise of the first state, [b,*shape] ~ N(0,I)."""

    def labels(self, step: int) -> Tensor:
        """Return uniform numbers for label dropout, [b]."""

    def ranks(self, probabilities: Tensor, step: int, evaluation: int) -> Tensor:
        """Draw ranks [b,l] from ``probabilities`` [b,l,r]."""

    def fresh(self, shape: tuple[int, int], step: int, evaluation: int) -> Tensor:
        """Return the fresh noise of a step, [b,*shape] ~ N(0,I)."""


class PerSampleNoise:
    """Numbers that depend on (seed, sample index, step) only: a sample is the same in any batch, on any rank, after a restart."""

    def __init__(self, seed: int, indices: Tensor, dtype: torch.dtype) -> None:
        """Serve the samples numbered ``indices`` [b]; their device is that of the numbers."""
        self.seed, self.indices, self.dtype = seed, indices, dtype

    def initial(self, shape: tuple[int, int]) -> Tensor:
        """See `NoiseSource`."""
        return noise.normal(self.seed, "sampler/initial", self.indices, 0, shape).to(self.dtype)

    def labels(self, step: int) -> Tensor:
        """See `NoiseSource`."""
        return noise.uniform(self.seed, "sampler/labels", self.indices, step, ())

    def ranks(self, probabilities: Tensor, step: int, evaluation: int) -> Tensor:
        """See `NoiseSource`; one uniform number for each token."""
        shape = (probabilities.shape[1],)
        uniform = noise.uniform(self.seed, f"sampler/tokens/{evaluation}", self.indices, step, shape)
        return draw_by_inverse_cdf(probabilities, uniform)

    def fresh(self, shape: tuple[int, int], step: int, evaluation: int) -> Tensor:
        """See `NoiseSource`."""
        return noise.normal(self.seed, f"sampler/fresh/{evaluation}", self.indices, step, shape).to(self.dtype)


class ReleasedNoise:
    """One generator for the whole batch, asked in the released order: first state, then each step labels, tokens, fresh noise."""

    def __init__(self, generator: torch.Generator, batch: int, dtype: torch.dtype) -> None:
        """Take numbers from ``generator``, on its device, for ``batch`` samples."""
        self.generator, self.batch, self.dtype = generator, batch, dtype

    def initial(self, shape: tuple[int, int]) -> Tensor:
        """See `NoiseSource`."""
        return self._normal(shape)

    def labels(self, step: int) -> Tensor:
        """See `NoiseSource`."""
        return torch.rand(self.batch, generator=self.generator, device=self.generator.device)

    def ranks(self, probabilities: Tensor, step: int, evaluation: int) -> Tensor:
        """See `NoiseSource`; one uniform number for each candidate, by the Gumbel-max trick."""
        uniform = torch.rand(probabilities.shape, generator=self.generator, device=self.generator.device)
        return draw_by_gumbel(probabilities, uniform)

    def fresh(self, shape: tuple[int, int], step: int, evaluation: int) -> Tensor:
        """See `NoiseSource`."""
        return self._normal(shape)

    def _normal(self, shape: tuple[int, int]) -> Tensor:
        device = self.generator.device
        return torch.randn((self.batch, *shape), generator=self.generator, device=device, dtype=self.dtype)
