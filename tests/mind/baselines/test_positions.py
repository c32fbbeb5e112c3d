"""Sinusoids and rotations against loops over tokens, with matrices for the rotations."""

import math

import pytest
import torch
from torch import Tensor

from mind.baselines.positions import _turned_by_parts, rotary_tables, rotate_pairs, sinusoidal_positions

CPU = torch.device("cpu")


def waves(place: int, count: int) -> list[float]:
    angles = [place / 10000 ** (i / count) for i in range(count)]
    return [math.sin(a) for a in angles] + [math.cos(a) for a in angles]


def test_sinusoids_of_a_grid_give_the_first_half_to_the_column() -> None:
    table = sinusoidal_positions((2, 3), 8)
    slow = [waves(column, 2) + waves(row, 2) for row in range(2) for column in range(3)]
    torch.testing.assert_close(table, torch.tensor(slow), rtol=0, atol=1e-7)


def test_sinusoids_of_a_sequence() -> None:
    table = sinusoidal_positions((5,), 12)
    torch.testing.assert_close(table, torch.tensor([waves(i, 6) for i in range(5)]), rtol=0, atol=1e-7)


def turned(x: Tensor, angles: list[float]) -> Tensor:
    """Rotate the pairs of one head [2m] by matrices."""
    matrices = [[[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]] for angle in angles]
    return (torch.tensor(matrices, dtype=torch.float64) @ x.double().view(-1, 2, 1)).flatten()


@pytest.mark.parametrize("sides", [(7,), (3, 2)])
def test_rotations_are_products_with_matrices(sides: tuple[int, ...]) -> None:
    tokens, m = math.prod(sides), 4
    x = torch.randn(1, 1, tokens, 2 * m, generator=torch.Generator().manual_seed(0))
    rotated = rotate_pairs(x, *rotary_tables(sides, 2 * m, CPU))
    share = m // len(sides)
    for token in range(tokens):
        places = [token] if len(sides) == 1 else [token // sides[1], token % sides[1]]  # rows first
        angles = [place * 10000 ** (-i / share) for place in places for i in range(share)]
        torch.testing.assert_close(rotated[0, 0, token].double(), turned(x[0, 0, token], angles), rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_cpus_and_gpus_rotate_alike(dtype: torch.dtype) -> None:
    x = torch.randn(2, 5, 3, 2, 8, generator=torch.Generator().manual_seed(2)).to(dtype).requires_grad_()
    query = x.permute(3, 0, 2, 1, 4)[1]  # as a layer cuts it out of queries, keys and values
    tables = rotary_tables((5,), 8, CPU)
    on_gpus = _turned_by_parts(query.float().unflatten(-1, (-1, 2)), *tables).flatten(-2)
    on_cpus = rotate_pairs(query, *tables)
    torch.testing.assert_close(on_cpus, on_gpus)
    gradients = [torch.autograd.grad(rotated.square().sum(), x)[0] for rotated in (on_cpus, on_gpus)]
    torch.testing.assert_close(*gradients)


def test_rotated_products_depend_on_the_distance_only() -> None:
    source = torch.Generator().manual_seed(1)
    q, k = (torch.randn(8, generator=source).expand(1, 1, 16, 8) for _ in range(2))
    tables = rotary_tables((4, 4), 8, CPU)
    scores = (rotate_pairs(q, *tables) @ rotate_pairs(k, *tables).transpose(-1, -2))[0, 0].view(4, 4, 4, 4)
    torch.testing.assert_close(scores[0, 0, 1, 2], scores[2, 1, 3, 3])
    torch.testing.assert_close(scores[3, 3, 1, 0], scores[2, 3, 0, 0])
    assert not torch.isclose(scores[0, 0, 1, 2], scores[0, 0, 2, 1])
