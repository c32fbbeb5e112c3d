"""The sums over pairs of cells against the matrix of all pairs."""

import numpy as np
import pytest
import torch

from analyses import spatial
from latentlab.errors import UserError
from latentlab.latents import ArrayLatents

GRIDS = [(1, 1), (1, 5), (2, 2), (4, 4), (5, 7), (6, 10), (16, 16)]


def distances(grid: tuple[int, int]) -> np.ndarray:
    cells = [(i, j) for i in range(grid[0]) for j in range(grid[1])]
    return np.array([[abs(a - c) + abs(b - d) for c, d in cells] for a, b in cells])


@pytest.mark.parametrize("grid", GRIDS)
def test_pairs_at_every_distance_are_counted(grid: tuple[int, int]) -> None:
    expected = distances(grid)
    assert spatial.pair_counts(grid).tolist() == np.bincount(expected.ravel()).tolist()
    assert spatial.largest_distance(grid) == expected.max()


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("beyond", [0.0, 0.3])
def test_pair_sums_equal_sums_over_the_matrix_of_all_pairs(grid: tuple[int, int], beyond: float) -> None:
    """Any function of the distance, given up to any reach, for one field and for two."""
    generator = torch.Generator().manual_seed(0)
    p, q = torch.randn(2, 2, 3, *grid, dtype=torch.float64, generator=generator)
    distance = torch.from_numpy(distances(grid))
    for reach in range(sum(grid)):
        functions = torch.randn(2, reach + 1, dtype=torch.float64, generator=generator)
        sums = spatial.PairSums(grid, functions, beyond)
        of_pairs = torch.where(distance <= reach, functions[:, distance.clamp_max(reach)], beyond)
        for found, other in ((sums(p, q), q), (sums(p), p)):
            expected = torch.einsum("bcs,mst,bct->bm", p.flatten(2), of_pairs, other.flatten(2))
            torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-10)


def test_float32_pair_sums_of_tokens_that_are_almost_alike() -> None:
    """The errors of a sum are small beside the number of all pairs; the largest distance has 4 of 65,536."""
    pairs = torch.from_numpy(spatial.pair_counts((16, 16))).double()
    sums = spatial.PairSums((16, 16), torch.diag(1 / pairs))
    tokens = torch.randn(20, 32, 16, 16, generator=torch.Generator().manual_seed(0)) + 5
    units = spatial.unit_tokens(tokens, 1e-8)
    errors = sums(units) - sums(units.double())
    assert (errors * pairs).abs().max() < 2e-8 * pairs.sum()
    assert errors[:, :24].abs().max() < 2e-6 and errors.mean(0).abs().max() < 3e-6


def test_unit_tokens() -> None:
    z = torch.tensor([3.0, 4.0, 0.0, 0.0, 3e-9, 4e-9], dtype=torch.float64).view(1, 3, 2).transpose(1, 2)[..., None]
    units = spatial.unit_tokens(z, 1e-8)[0, :, :, 0]
    expected = torch.tensor([[0.6, 0.8], [0, 0], [0.3, 0.4]], dtype=torch.float64).T  # the last is shorter than 1e-8
    torch.testing.assert_close(units, expected)


@pytest.mark.parametrize("threads", [1, 3])
def test_rows_come_in_the_order_of_the_images(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spatial, "_PIECE_BYTES", 4 * 2 * 6 * 3)  # three images at a time
    z = np.random.default_rng(0).standard_normal((11, 2, 2, 3)).astype(np.float32)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        rows = spatial.rows_per_image(
            ArrayLatents(z), lambda u, part: u[:, :, 0, 0] + part.start, normalize=False, epsilon=1e-8
        )
    finally:
        torch.set_num_threads(before)
    first = z[:, :, 0, 0] / np.linalg.norm(z[:, :, 0, 0], axis=1, keepdims=True)
    np.testing.assert_allclose(rows, first + np.arange(11)[:, None] // 3 * 3, rtol=1e-6)


def test_distances_that_do_not_fit_are_refused() -> None:
    spatial.check_distance("far", 14, 2, (8, 8))
    with pytest.raises(UserError, match="far=15 does not fit a 8x8 grid: no two cells are more than 14 apart"):
        spatial.check_distance("far", 15, 2, (8, 8))
    with pytest.raises(UserError, match="far must be at least 2 cells, got 1"):
        spatial.check_distance("far", 1, 2, (8, 8))
