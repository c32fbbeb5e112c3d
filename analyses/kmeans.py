"""k-means++ seeding and a few Lloyd steps: where the search for a mixture starts."""

import torch
from torch import Tensor

from latentlab.errors import UserError


def kmeans(rows: Tensor, k: int, generator: torch.Generator, steps: int = 5) -> tuple[Tensor, Tensor]:
    """Cluster ``rows`` roughly.

    Args:
        rows: [n,d] float64.
        k: number of clusters, at most n.
        generator: source of randomness.
        steps: Lloyd steps after the seeding.

    Returns:
        Centres [k,d] and the index of each row's nearest centre [n].

    Raises:
        UserError: fewer than ``k`` different rows.
    """
    centres = seed_centres(rows, k, generator)
    for _ in range(steps):
        nearest = nearest_centre(rows, centres)
        counts = torch.bincount(nearest, minlength=k)
        sums = torch.zeros_like(centres).index_add_(0, nearest, rows)
        # A cluster that lost all its rows keeps its centre.
        centres = torch.where(counts[:, None] > 0, sums / counts[:, None].clamp_min(1), centres)
    return centres, nearest_centre(rows, centres)


def seed_centres(rows: Tensor, k: int, generator: torch.Generator) -> Tensor:
    """Draw ``k`` rows, each with probability proportional to its squared distance to those drawn before.

    Arthur & Vassilvitskii, "k-means++: the advantages of careful seeding", SODA 2007, algorithm 1.
    """
    first = torch.randint(len(rows), (1,), generator=generator)
    centres = [rows[first]]
    distance = (rows - centres[0]).square().sum(1)
    while len(centres) < k:
        if not distance.any():
            raise UserError(f"{k} components need {k} different points, there are only {len(centres)}: ask for fewer")
        centres.append(rows[torch.multinomial(distance, 1, generator=generator)])
        distance = torch.minimum(distance, (rows - centres[-1]).square().sum(1))
    return torch.cat(centres)


def nearest_centre(rows: Tensor, centres: Tensor) -> Tensor:
    """Return the index of the centre nearest to each row, [n]."""
    # argmin |x-c|^2 = argmin |c|^2 - 2 x.c: one matrix product
    return torch.addmm(centres.square().sum(1), rows, centres.T, alpha=-2).argmin(1)
