"""Truths: explicit loops over tokens and sub-vectors, hand numbers, and what the paper's equations say at their limits."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from latentlab import UserError
from mind.geometry import NORMS, Norm, TokenTable, project, soft_topk, unit_subvectors


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def norms(x: Tensor, size: int | None = None) -> Tensor:
    return x.norm(dim=-1) if size is None else x.unflatten(-1, (-1, size)).norm(dim=-1)


def slow_subvectors(x: np.ndarray, size: int) -> np.ndarray:
    out = np.empty_like(x)
    for row, target in zip(x.reshape(-1, x.shape[-1]), out.reshape(-1, x.shape[-1]), strict=True):
        for start in range(0, len(row), size):
            part = row[start : start + size]
            target[start : start + size] = part / (math.sqrt(sum(v * v for v in part)) + 1e-6)
    return out


# --- product of spheres -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("width", "size"), [(16, 4), (8, 2), (16, 16), (16, 1), (32, 8)])
def test_subvectors_against_a_loop(width: int, size: int) -> None:
    x = normal(3, 5, width)
    torch.testing.assert_close(unit_subvectors(x, size), torch.from_numpy(slow_subvectors(x.numpy(), size)))


def test_the_small_number_is_added_to_the_norm() -> None:
    """|x| = 5e-6, so that x / (5e-6 + 1e-6); with a maximum instead it would be (0.6, 0.8)."""
    x = torch.tensor([3e-6, 4e-6], dtype=torch.float64)
    torch.testing.assert_close(unit_subvectors(x, 2), torch.tensor([0.5, 2 / 3], dtype=torch.float64))
    assert unit_subvectors(torch.zeros(4), 2).tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize(("width", "size", "radius"), [(16, 4, 2.0), (8, 2, 2.0), (16, 16, 1.0), (8, 4, math.sqrt(2))])
def test_norms_on_the_spheres(width: int, size: int, radius: float) -> None:
    x = unit_subvectors(normal(50, width), size)
    torch.testing.assert_close(norms(x, size), torch.ones(50, width // size, dtype=torch.float64), rtol=0, atol=1e-4)
    torch.testing.assert_close(norms(x), torch.full((50,), radius, dtype=torch.float64), rtol=0, atol=1e-4)


# --- the table --------------------------------------------------------------------------------------------------------


def released_table(**options: object) -> TokenTable:
    torch.manual_seed(0)
    return TokenTable(16384, 16, 4, **options)  # type: ignore[arg-type]


def test_norms_at_the_released_initialisation() -> None:
    """Rows of norm 8.7e-4 in four parts of 4e-4 on average: the added 1e-6 takes 0.3 % off every part."""
    table = released_table().requires_grad_(False)
    assert float(table.embedding.std()) == pytest.approx(0.02 * math.sqrt(2 / (16384 + 16)), rel=0.01)
    assert float(norms(table.embedding).mean()) == pytest.approx(8.7e-4, rel=0.01)
    assert float(norms(table.vectors()).mean()) == pytest.approx(1.994, abs=1e-3)
    assert float(norms(table.vectors(), 4).mean()) == pytest.approx(0.997, abs=5e-4)


@pytest.mark.parametrize(("init", "norm"), [("released", 8.7e-4), ("xavier", 0.0435), ("normal", 3.94)])
def test_raw_norms_without_spheres(init: str, norm: float) -> None:
    table = released_table(normalise=False, init=init).requires_grad_(False)
    assert float(norms(table.vectors()).mean()) == pytest.approx(norm, rel=0.01)
    assert torch.equal(table.vectors(), table.embedding)
    assert torch.equal(table(torch.tensor([[5, 7]])), table.embedding[[5, 7]][None])


def test_rows_of_a_trained_table_count_by_direction_only() -> None:
    table = TokenTable(40, 8, 2)
    with torch.no_grad():
        table.embedding.copy_(normal(40, 8))
        before = table.vectors()
        table.embedding.mul_(300)
    torch.testing.assert_close(table.vectors(), before, rtol=0, atol=2e-5)


def test_looking_up_equals_taking_rows() -> None:
    table = released_table()
    ids = torch.randint(0, 16384, (2, 3, 4))
    assert torch.equal(table(ids), table.vectors()[ids])


def test_the_table_learns_through_the_lookup() -> None:
    table = TokenTable(10, 4, 2)
    (table(torch.tensor([3, 3, 8])) * torch.arange(4.0)).sum().backward()
    assert table.embedding.grad is not None
    assert table.embedding.grad.abs().sum(1).nonzero().flatten().tolist() == [3, 8]


# --- projections ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("norm", "length"), [("full_unit", 1.0), ("full_radius", 2.0), ("subvector", 2.0)])
def test_projections_have_their_norm(norm: Norm, length: float) -> None:
    x = normal(20, 16)
    found = project(x, norm, 4)
    torch.testing.assert_close(norms(found), torch.full((20,), length, dtype=torch.float64), rtol=0, atol=1e-5)
    if norm != "subvector":  # one factor for the whole vector
        torch.testing.assert_close(found / x, (found / x)[:, :1].expand(-1, 16))
    assert torch.equal(project(x, "none", 4), x)


def test_an_unknown_norm_is_named() -> None:
    with pytest.raises(UserError, match=r"'sphere'.*Available: full_unit, full_radius, subvector, none"):
        project(normal(1, 4), "sphere", 2)  # type: ignore[arg-type]


# --- soft top-k -------------------------------------------------------------------------------------------------------


def slow_topk(logits: np.ndarray, vectors: np.ndarray, k: int) -> np.ndarray:
    """Equation 2 for one token, as a sum over the k best ids."""
    best = sorted(range(len(logits)), key=lambda i: -logits[i])[:k]
    e = [math.exp(logits[i] - logits[best[0]]) for i in best]
    q = [v / sum(e) for v in e]
    return sum(w / (sum(q) + 1e-5) * vectors[i] for w, i in zip(q, best, strict=True))  # type: ignore[return-value]


@pytest.mark.parametrize("k", [1, 2, 7, 30])
@pytest.mark.parametrize("norm", NORMS)
def test_soft_topk_against_a_sum(k: int, norm: Norm) -> None:
    logits, vectors = normal(2, 3, 30) * 3, unit_subvectors(normal(30, 8, seed=1), 2)
    means = [slow_topk(row, vectors.numpy(), k) for row in logits.flatten(0, 1).numpy()]
    expected = project(torch.from_numpy(np.stack(means)).view(2, 3, 8), norm, 2)
    torch.testing.assert_close(soft_topk(logits, vectors, k, norm, 2), expected)


def test_one_token_gives_its_embedding_or_half_of_it() -> None:
    """With d=16, g=4 embeddings have norm 2, and the released mapping has norm 1."""
    logits, vectors = normal(9, 50), unit_subvectors(normal(50, 16, seed=1), 4)
    best = vectors[logits.argmax(-1)]
    for norm, expected in (("subvector", best), ("full_radius", best), ("full_unit", best / 2)):
        found = soft_topk(logits, vectors, 1, norm, 4)  # type: ignore[arg-type]
        torch.testing.assert_close(found, expected, rtol=0, atol=5e-5)


def test_all_tokens_give_the_mean_under_the_softmax() -> None:
    logits, vectors = normal(9, 50), unit_subvectors(normal(50, 16, seed=1), 4)
    mean = logits.softmax(-1) @ vectors
    expected = mean / (mean.norm(dim=-1, keepdim=True) + 1e-6)
    for k in (50, 51, 10_000):  # never more than there are
        torch.testing.assert_close(soft_topk(logits, vectors, k, "full_unit", 4), expected, rtol=0, atol=2e-5)


def test_the_released_mapping_stays_a_distance_of_one_away_from_every_embedding() -> None:
    """|zhat| = 1 and |z| = 2: the squared distance is at least 1 (1/16 per coordinate), reached at z/2 only."""
    vectors = unit_subvectors(normal(50, 16, seed=1), 4)
    found = soft_topk(normal(200, 50) * 4, vectors, 5, "full_unit", 4)
    squares = torch.cdist(found, vectors).square()
    assert float(squares.min()) >= 1 - 1e-5
    certain = torch.full((1, 50), -1e3, dtype=torch.float64)
    certain[0, 3] = 1e3
    nearest = soft_topk(certain, vectors, 5, "full_unit", 4)
    assert float((nearest[0] - vectors[3]).square().mean()) == pytest.approx(0.0625, abs=1e-5)


def test_the_error_per_coordinate_is_at_most_four_over_g() -> None:
    z = unit_subvectors(normal(1, 16), 4)
    assert float((z + z).square().mean()) == pytest.approx(4 / 4, abs=1e-4)  # opposite points


def test_gradients_reach_logits_and_embeddings() -> None:
    logits = normal(3, 12).requires_grad_()
    raw = normal(12, 4, seed=1).requires_grad_()

    def loss(values: Tensor, rows: Tensor) -> Tensor:
        return soft_topk(values, unit_subvectors(rows, 2), 4, "full_unit", 2)

    assert torch.autograd.gradcheck(loss, (logits, raw))
    loss(logits, raw).square()[..., 0].sum().backward()
    assert logits.grad is not None
    assert (logits.grad != 0).sum(1).tolist() == [4, 4, 4]  # only the k best have a say
