"""The product of spheres on which tokens live, and the soft top-k mapping from logits back to it.

MIND, arXiv 2606.00094, section 3.2: a token's embedding in R^d is cut into d/g sub-vectors, each of norm 1.
Shapes: v vocabulary, d embedding width, g sub-vector size, k tokens kept.
"""

import math
from typing import Literal

import torch
from torch import Tensor, nn

from latentlab.errors import UserError

Norm = Literal["full_unit", "full_radius", "subvector", "none"]
NORMS: tuple[Norm, ...] = ("full_unit", "full_radius", "subvector", "none")

EPSILON = 1e-6
"""Added to norms (not a lower bound of them), as in the released evaluation code."""

RELEASED_GAIN = 0.02


def unit_subvectors(x: Tensor, size: int) -> Tensor:
    """Return ``x`` [...,d] with each of its d/size consecutive sub-vectors scaled to norm |x|/(|x| + 1e-6), about 1."""
    parts = x.unflatten(-1, (-1, size))
    return (parts / (torch.linalg.vector_norm(parts, dim=-1, keepdim=True) + EPSILON)).flatten(-2)


def project(x: Tensor, norm: Norm, size: int) -> Tensor:
    """Return ``x`` [...,d] brought back to where embeddings live.

    Args:
        x: weighted means of embeddings.
        norm: ``full_unit`` one norm over all of d, to 1 (released code); ``full_radius`` to sqrt(d/size); ``subvector``
            every sub-vector to 1; ``none`` leaves it, for embeddings without spheres.
        size: g, of a sub-vector.

    Raises:
        UserError: unknown norm.
    """
    if norm == "none":
        return x
    if norm == "subvector":
        return unit_subvectors(x, size)
    if norm not in NORMS:
        raise UserError(f"unknown norm of the soft top-k mapping '{norm}'. Available: {', '.join(NORMS)}")
    radius = math.sqrt(x.shape[-1] / size) if norm == "full_radius" else 1.0
    return radius * x / (torch.linalg.vector_norm(x, dim=-1, keepdim=True) + EPSILON)


def aggregate(values: Tensor, rows: Tensor) -> Tensor:
    """Return the mean [...,d] of ``rows`` [...,k,d] weighted by the softmax of the logits ``values`` [...,k] (eq. 2)."""
    weights = torch.softmax(values, dim=-1, dtype=torch.promote_types(values.dtype, torch.float32))
    weights = (weights / (weights.sum(-1, keepdim=True) + 1e-5)).to(rows.dtype)
    return (weights.unsqueeze(-2) @ rows).squeeze(-2)


def soft_topk(logits: Tensor, vectors: Tensor, k: int, norm: Norm, size: int) -> Tensor:
    """Return the soft top-k estimate [...,d] of an embedding (eq. 2 and 3).

    Args:
        logits: [...,v].
        vectors: embeddings of all tokens, [v,d].
        k: how many of the largest logits count; at most v.
        norm: as in `project`.
        size: g.

    Raises:
        UserError: k below 1, or an unknown norm.
    """
    if k < 1:
        raise UserError(f"the soft top-k mapping needs k of at least 1, got {k}")
    values, indices = logits.topk(min(k, logits.shape[-1]), dim=-1)
    return project(aggregate(values, vectors[indices]), norm, size)


class TokenTable(nn.Module):
    """The learned embedding of every token; its rows are used on the product of spheres.

    Attributes:
        embedding: raw rows [v,d]; only their directions matter while ``normalise`` is on.
    """

    def __init__(self, vocabulary: int, width: int, size: int, normalise: bool = True, init: str = "released") -> None:
        """Draw the raw rows.

        Args:
            vocabulary: v.
            width: d.
            size: g.
            normalise: put rows on the spheres; off for the ablation.
            init: ``released``, ``xavier`` or ``normal``, as in `MindConfig.embedding_init`.
        """
        super().__init__()
        self.size, self.normalise = size, normalise
        self.embedding = nn.Parameter(torch.empty(vocabulary, width))
        if init == "normal":
            nn.init.normal_(self.embedding)
        else:
            nn.init.xavier_normal_(self.embedding, gain=RELEASED_GAIN if init == "released" else 1.0)

    def vectors(self) -> Tensor:
        """Return the embeddings of all tokens, [v,d]: norm sqrt(d/g), unless ``normalise`` is off."""
        return self._placed(self.embedding)

    def forward(self, indices: Tensor) -> Tensor:
        """Return the embeddings [...,d] of token ids [...]."""
        return self._placed(nn.functional.embedding(indices, self.embedding))

    def _placed(self, rows: Tensor) -> Tensor:
        return unit_subvectors(rows, self.size) if self.normalise else rows
