"""The two bottlenecks of MIND's collapse study, at equal numbers of parameters, and how they are trained.

MIND (arXiv 2606.00094, section 3.1): what becomes of a latent that has to pass through 6 numbers on a product of circles?

    continuous   Linear(D,h) - GELU - Linear(h,d) - sphere - Linear(d,h) - GELU - Linear(h,D)    squared error
    discrete     Embedding(V,d) - sphere - Linear(d,V)                                           cross-entropy of the ids

The published counts (196K both, h = 4468 for D = 16, V = 16384, d = 6) fit only without biases: 2 h (D + d) = 196,592 and
2 V d = 196,608. The activation is not published; GELU is our choice, and so are PyTorch's default initial weights.
"""

from abc import abstractmethod
from collections.abc import Iterator
from typing import Literal, cast, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latentlab.errors import UserError, unknown_name

Sphere = Literal["pairs", "whole", "none"]
"""``pairs``: every two numbers have norm 1; ``whole``: all of them together the same norm sqrt(d/2); ``none``: free."""

CODES = 16384
"""Vocabulary of the published study: it fixes the number of parameters where there is no discrete tokenizer to match."""

LEARNING_RATE = WEIGHT_DECAY = 1e-2
EVERY = 50
"""Iterations between evaluations."""


class SphereNorm(nn.Module):
    """Puts latents on a product of circles, on one sphere of the same norm, or leaves them as they are."""

    def __init__(self, dims: int, sphere: Sphere) -> None:
        """Check the choice.

        Raises:
            UserError: unknown ``sphere``, no dimension, or an odd number of them for pairs.
        """
        super().__init__()
        if sphere not in get_args(Sphere):
            raise unknown_name("sphere", sphere, get_args(Sphere))
        if dims < 1:
            raise UserError(f"a bottleneck needs at least 1 dimension, got {dims}")
        if sphere == "pairs" and dims % 2:
            raise UserError(f"sphere='pairs' needs an even number of dimensions, got {dims}: use {dims + 1} or 'whole'")
        self.dims, self.sphere = dims, sphere

    def forward(self, x: Tensor) -> Tensor:
        """Return [r,d] of [r,d]."""
        if self.sphere == "pairs":
            return F.normalize(x.unflatten(-1, (-1, 2)), dim=-1).flatten(-2)
        return F.normalize(x, dim=-1) * (self.dims / 2) ** 0.5 if self.sphere == "whole" else x


class Bottleneck(nn.Module):
    """What both have in common: rows in, latents of a few numbers, the same rows wanted back."""

    encoder: nn.Module
    norm: SphereNorm
    decoder: nn.Module

    def latents(self, rows: Tensor) -> Tensor:
        """Return what passes through the bottleneck, [r,d]."""
        return self.norm(self.encoder(rows))

    @property
    def parameter_count(self) -> int:
        """Number of trainable parameters."""
        return sum(parameter.numel() for parameter in self.parameters())

    @abstractmethod
    def loss(self, rows: Tensor) -> Tensor:
        """Return the training loss, a mean over rows (and over their numbers)."""

    @abstractmethod
    def predict(self, rows: Tensor) -> Tensor:
        """Return the rows as they come out, in the form they went in."""


class ContinuousBottleneck(Bottleneck):
    """Two small networks around the sphere; rows are latent vectors, float [r,D]."""

    def __init__(self, width: int, dims: int, hidden: int, sphere: Sphere = "pairs") -> None:
        super().__init__()
        self.norm = SphereNorm(dims, sphere)
        self.encoder = _two_layers(width, hidden, dims)
        self.decoder = _two_layers(dims, hidden, width)

    def loss(self, rows: Tensor) -> Tensor:
        """Return the mean squared error per number."""
        return F.mse_loss(self.predict(rows), rows)

    def predict(self, rows: Tensor) -> Tensor:
        """Return the vectors as they come out, [r,D]."""
        return cast(Tensor, self.decoder(self.latents(rows)))


class DiscreteBottleneck(Bottleneck):
    """A table of latents and a linear classifier; rows are ids, int64 [r], and what comes out is the most likely id.

    Rows with the same id have the same logits, so each distinct id is computed once and weighted by how often it occurs.
    """

    def __init__(self, codes: int, dims: int, sphere: Sphere = "pairs") -> None:
        super().__init__()
        self.norm = SphereNorm(dims, sphere)
        self.encoder = nn.Embedding(codes, dims)
        self.decoder = nn.Linear(dims, codes, bias=False)

    def loss(self, rows: Tensor) -> Tensor:
        """Return the mean cross-entropy in nats."""
        ids, counts = rows.unique(return_counts=True)
        per_id = F.cross_entropy(self.decoder(self.latents(ids)), ids, reduction="none")
        return (per_id * counts).sum() / len(rows)

    def predict(self, rows: Tensor) -> Tensor:
        """Return the most likely ids, [r]."""
        ids, places = rows.unique(return_inverse=True)
        return cast(Tensor, self.decoder(self.latents(ids)).argmax(1)[places])


def hidden_width(width: int, dims: int, codes: int) -> int:
    """Return the hidden width that gives a continuous bottleneck as many parameters as the discrete one, rounded down.

    ``2 h (D + d) <= 2 V d``: 4468 for D = 16, d = 6, V = 16384.

    Raises:
        UserError: so few codes that nothing is left.
    """
    hidden = codes * dims // (width + dims)
    if hidden < 1:
        raise UserError(
            f"{codes} codes have too few parameters to match with latents of {width} numbers: use a patch of 1"
        )
    return hidden


def fit(bottleneck: Bottleneck, rows: Tensor, iterations: int, every: int = EVERY) -> Iterator[int]:
    """Train on all ``rows`` at once (AdamW) and yield the number of finished iterations whenever evaluation is due.

    That is before the first one, after every ``every`` of them, and after the last.

    Raises:
        UserError: the loss is not finite.
    """
    optimiser = torch.optim.AdamW(bottleneck.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    for done in range(iterations + 1):
        if done % every == 0 or done == iterations:
            yield done
        if done < iterations:
            loss = bottleneck.loss(rows)
            if not torch.isfinite(loss):
                raise UserError(
                    f"the bottleneck diverged after {done} iterations: check the latents, or use another seed"
                )
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()


def _two_layers(width_in: int, hidden: int, width_out: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width_in, hidden, bias=False), nn.GELU(), nn.Linear(hidden, width_out, bias=False))
