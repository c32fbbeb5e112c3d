"""Random numbers of a training step that do not depend on how many ranks and parts share its batch.

Every rank draws for the whole batch and takes the rows of its own images, so that an image meets the same numbers wherever it is.
"""

from collections.abc import Callable

import torch
from torch import Tensor


class BatchGenerator(torch.Generator):
    """A CPU generator that knows which images of a batch are at hand.

    Attributes:
        first: place in the batch of the first image at hand.
        total: images of the whole batch.
    """

    first: int
    total: int

    @classmethod
    def of(cls, source: torch.Generator, first: int, total: int) -> "BatchGenerator":
        """Return a generator in the state of ``source`` for the images from place ``first`` of a batch of ``total``."""
        made = cls()
        made.set_state(source.get_state())
        made.first, made.total = first, total
        return made


def normal(shape: torch.Size | tuple[int, ...], generator: torch.Generator | None) -> Tensor:
    """Return standard normal numbers for images, [n,...] float32 on the generator's device."""
    return _rows(torch.randn, shape, generator)


def uniform(shape: torch.Size | tuple[int, ...], generator: torch.Generator | None) -> Tensor:
    """Return uniform numbers in [0,1) for images, [n,...] float32 on the generator's device."""
    return _rows(torch.rand, shape, generator)


def _rows(
    draw: Callable[..., Tensor], shape: torch.Size | tuple[int, ...], generator: torch.Generator | None
) -> Tensor:
    n, *rest = shape
    device = generator.device if generator is not None else "cpu"
    if not isinstance(generator, BatchGenerator):
        return draw((n, *rest), generator=generator, device=device)
    whole = draw((generator.total, *rest), generator=generator, device=device)
    return whole[generator.first : generator.first + n]
