import math

import numpy as np
import pytest
import torch

from analyses.slerp import lerp, slerp
from latentlab.errors import UserError


def by_definition(a: np.ndarray, b: np.ndarray, t: float) -> np.ndarray:
    """The authors' pieces on one pair: unit vectors, acos of the product, weights on the vectors as they are."""
    u, v = a / (np.linalg.norm(a) + 1e-7), b / (np.linalg.norm(b) + 1e-7)
    theta = np.arccos(np.clip(u @ v, -1, 1))
    return (np.sin((1 - t) * theta) * a + np.sin(t * theta) * b) / (np.sin(theta) + 1e-7)


@pytest.mark.parametrize("alpha", [0.0, 0.25, 0.5, 1.0])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_equals_the_definition(alpha: float, dtype: type) -> None:
    a, b = np.random.default_rng(0).standard_normal((2, 20, 4, 3, 3)).astype(dtype) * 3
    found = slerp(torch.from_numpy(a), torch.from_numpy(b), alpha)
    assert found.dtype == torch.float64 and found.shape == a.shape
    for x, y, z in zip(a, b, found.numpy(), strict=True):
        expected = by_definition(x.ravel().astype(np.float64), y.ravel().astype(np.float64), alpha)
        np.testing.assert_allclose(z.ravel(), expected, atol=2e-5)


def test_quarter_circle() -> None:
    a, b = torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 4.0]])
    half = math.sqrt(0.5)
    torch.testing.assert_close(slerp(a, b, 0.5), torch.tensor([[2 * half, 4 * half]], dtype=torch.float64))


def test_alpha_goes_from_the_first_to_the_second() -> None:
    a, b = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for between in (slerp, lerp):
        torch.testing.assert_close(between(a, b, 0.0), a, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(between(a, b, 1.0), b, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(lerp(a, b, 0.25), 0.75 * a + 0.25 * b)


def test_identical_and_nearly_identical_vectors() -> None:
    """The arc cosine of the product would err by up to 2e-3 here."""
    a = torch.randn(50, 100, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(slerp(a, a, 0.5), a.double(), rtol=1e-12, atol=0)
    near = a.double() * (1 + 1e-9)
    near[:, 0] += 1e-5
    torch.testing.assert_close(slerp(a, near, 0.5), (a.double() + near) / 2, rtol=1e-9, atol=1e-12)


def test_parallel_vectors_of_other_lengths_and_zero_vectors_take_the_straight_line() -> None:
    a = torch.tensor([[1.0, 2.0], [0.0, 0.0], [0.0, 0.0]])
    b = torch.tensor([[3.0, 6.0], [2.0, 0.0], [0.0, 0.0]])
    torch.testing.assert_close(slerp(a, b, 0.25), lerp(a, b, 0.25))


def test_opposite_vectors_take_a_half_circle() -> None:
    """Not through 0: the length goes from one to the other, and the way is orthogonal to both in the middle."""
    a = torch.tensor([[3.0, 0.0, 4.0], [1.0, 1.0, 1.0]])
    b = torch.tensor([[-6.0, 0.0, -8.0], [-1.0, -1.0, -1.0]])
    middle = slerp(a, b, 0.5)
    torch.testing.assert_close(middle[0], torch.tensor([0.0, 7.5, 0.0], dtype=torch.float64))
    torch.testing.assert_close(middle.norm(dim=1), torch.tensor([7.5, 3**0.5], dtype=torch.float64))
    torch.testing.assert_close((middle * a).sum(1), torch.zeros(2, dtype=torch.float64))
    torch.testing.assert_close(slerp(a, b, 0.0), a.double())
    torch.testing.assert_close(slerp(a, b, 1.0), b.double())


def test_wrong_use_is_explained() -> None:
    a = torch.ones(2, 3)
    with pytest.raises(UserError, match=r"alpha must lie in \[0, 1\], got 1.5"):
        slerp(a, a, 1.5)
    with pytest.raises(UserError, match=r"one shape \[b,...\], got \[2, 3\] and \[3, 3\]"):
        slerp(a, torch.ones(3, 3), 0.5)
