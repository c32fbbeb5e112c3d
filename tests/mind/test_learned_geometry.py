"""The geometry of token tables against closed forms, slow obvious versions and tables whose geometry is known."""

import math

import numpy as np
import pytest
import torch
from scipy.special import comb
from scipy.stats import kstest

from latentlab.errors import UserError
from mind.geometry import TokenTable
from mind.learned_geometry import (
    codebook_agreement,
    effective_rank,
    learned_geometry,
    nearest_angles,
    nearest_codes,
    neighbour_overlap,
    participation_ratio,
    separation,
    table_statistics,
    uniform_directions,
)


def circle(degrees: list[float]) -> torch.Tensor:
    angles = torch.deg2rad(torch.tensor(degrees, dtype=torch.float64))
    return torch.stack([angles.cos(), angles.sin()], dim=1)


def table(rows: torch.Tensor, size: int, normalise: bool = True) -> TokenTable:
    made = TokenTable(*rows.shape, size, normalise)
    with torch.no_grad():
        made.embedding.copy_(rows)
    return made


def test_angles_on_a_circle_by_hand() -> None:
    vectors = circle([0, 10, 50, 180]) * torch.tensor([1.0, 5.0, 0.1, 2.0])[:, None]  # norms do not matter
    np.testing.assert_allclose(nearest_angles(vectors), [10, 10, 40, 130], rtol=1e-12)
    np.testing.assert_allclose(nearest_angles(circle([0, 1e-5])), [1e-5, 1e-5], rtol=1e-6)  # small angles stay exact
    np.testing.assert_allclose(nearest_angles(circle([0, 180])), [180, 180])


@pytest.mark.parametrize(("points", "k"), [(7, 3), (3000, 5)])
def test_neighbours_are_those_of_the_whole_table_of_distances(points: int, k: int) -> None:
    """3000 points make three blocks."""
    x = torch.randn(points, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    distances = torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist").fill_diagonal_(torch.inf)
    numbers, found = nearest_codes(x, k)
    expected, order = distances.sort(dim=1)
    assert torch.equal(numbers, order[:, :k])
    torch.testing.assert_close(found, expected[:, :k])


@pytest.mark.parametrize("v", [5, 64])
def test_uniform_points_on_a_circle(v: int) -> None:
    """The v-1 others are at angles uniform on (0, 180): P(nearest > a) = (1 - a/180)^(v-1), mean 180/v."""
    found = separation(circle([float(i) for i in range(v)]), 2).uniform.numpy()
    assert len(found) >= 4096
    spread = 180 / v / math.sqrt(len(found) / 2)  # nearest angles of two points that are each other's are one number
    assert abs(found.mean() - 180 / v) < 4 * spread
    some = found.reshape(-1, v)[:, 0]  # of one code per table: independent
    assert kstest(some, lambda a: 1 - (1 - a / 180) ** (v - 1)).pvalue > 0.01


def test_uniform_points_on_a_sphere() -> None:
    """Caps have area (1 - cos a)/2: P(nearest > a) = ((1 + cos a)/2)^m with m = v-1, mean pi C(2m,m)/4^m."""
    v = 12
    found = separation(torch.eye(3).repeat(4, 1), 3).uniform.numpy()
    m = v - 1
    mean = math.degrees(math.pi * comb(2 * m, m) / 4**m)
    assert abs(found.mean() - mean) < 4 * found.std() / math.sqrt(len(found) / 2)
    some = found.reshape(-1, v)[:, 0]
    assert kstest(some, lambda a: 1 - ((1 + np.cos(np.radians(a))) / 2) ** m).pvalue > 0.01


def test_uniform_points_are_on_every_sphere_and_repeat() -> None:
    points = uniform_directions(2000, 6, 2, 3)
    torch.testing.assert_close(points.view(-1, 3, 2).norm(dim=2), torch.ones(2000, 3, dtype=torch.float64))
    assert torch.equal(points, uniform_directions(2000, 6, 2, 3)) and not torch.equal(
        points, uniform_directions(2000, 6, 2, 4)
    )
    quarter = torch.atan2(points[:, 1], points[:, 0]).numpy()
    assert kstest(quarter, "uniform", args=(-math.pi, 2 * math.pi)).pvalue > 0.01


def test_cosines_over_all_pairs() -> None:
    x = torch.randn(50, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 0.5
    found = separation(x, 4)
    units = (x / x.norm(dim=1, keepdim=True)).numpy()
    pairs = (units @ units.T)[~np.eye(50, dtype=bool)]
    assert found.mean_cosine == pytest.approx(pairs.mean(), rel=1e-9)
    assert found.rms_cosine == pytest.approx(math.sqrt((pairs**2).mean()), rel=1e-9)
    uniform = separation(uniform_directions(3000, 8, 2, 0), 2)
    assert uniform.rms_cosine == pytest.approx(uniform.uniform_rms_cosine, rel=0.02)  # 1/sqrt(8) for circles too
    assert abs(uniform.mean_cosine) < 0.002 and uniform.ratio == pytest.approx(1, abs=0.02)


def test_equally_spaced_codes_are_twice_as_far_apart_as_chance() -> None:
    """360/v against 180/v."""
    assert separation(circle([360 / 32 * i for i in range(32)]), 2).ratio == pytest.approx(2, rel=0.05)
    collapsed = separation(circle([i / 100 for i in range(32)]), 2)
    assert collapsed.ratio < 0.01 and collapsed.mean_cosine > 0.999


def test_ranks_of_known_tables() -> None:
    """Singular values 3, 1 (and 0): shares 3/4, 1/4; second moments 9, 1."""
    x = torch.zeros(5, 3)
    x[0, 0], x[1, 1] = 3, 1
    assert effective_rank(x) == pytest.approx(math.exp(-(0.75 * math.log(0.75) + 0.25 * math.log(0.25))))
    assert participation_ratio(x) == pytest.approx(100 / 82)
    assert effective_rank(torch.eye(4)) == pytest.approx(4) == participation_ratio(torch.eye(4))
    assert effective_rank(torch.ones(6, 4)) == pytest.approx(1, abs=1e-6)  # a common direction is no diversity


def test_logged_statistics() -> None:
    """Two circles: rows of norm sqrt(2), stored rows of norm 5; neighbours 60 degrees away on both circles."""
    rows = torch.cat([circle([0, 60, 120, 180, 240, 300])] * 2, dim=1) * torch.tensor([3.0, 3, 4, 4])
    found = table_statistics(table(rows, 2))
    assert found["latent_norm"] == pytest.approx(math.sqrt(2), rel=1e-5)
    assert found["raw_norm"] == pytest.approx(5) and found["nearest_angle"] == pytest.approx(60, rel=1e-5)
    free = table_statistics(table(rows, 2, normalise=False))
    assert free["latent_norm"] == pytest.approx(5) and list(free) == ["latent_norm", "raw_norm", "nearest_angle"]


def test_norms_at_the_start_of_training() -> None:
    """Xavier of gain 0.02 on (16384, 16) gives rows of 8.7e-4; the 1e-6 in the denominator makes them 1.994."""
    torch.manual_seed(0)
    found = learned_geometry(TokenTable(4096, 16, 4)).norms
    gain = 0.02 * math.sqrt(2 / (4096 + 16)) * math.sqrt(16)
    assert found["raw_rows"]["mean"] == pytest.approx(gain, rel=0.02)
    assert 1.99 < found["rows"]["mean"] < 2 and len(found["subvectors"]) == 4
    assert all(0.99 < part["mean"] < 1 for part in found["subvectors"])


def test_random_table_is_as_uniform_as_it_should_be() -> None:
    torch.manual_seed(1)
    found = learned_geometry(TokenTable(512, 16, 4))
    assert found.whole.ratio == pytest.approx(1, abs=0.03)
    assert [part.ratio for part in found.subvectors] == pytest.approx([1] * 4, abs=0.1)
    assert found.effective_rank == pytest.approx(16, abs=0.2) and found.participation_ratio == pytest.approx(
        16, abs=0.7
    )
    assert found.neighbours.shape == (512, 8)
    torch.testing.assert_close(found.neighbour_angles[:, 0], found.whole.angles)
    assert found.to_dict()["separation"]["ratio"] == found.whole.ratio


def test_without_spheres_whole_rows_are_compared_with_one_sphere() -> None:
    """On two circles cosines lie below those of a sphere in R^4 less often: nearest angles differ by several percent."""
    rows = torch.randn(256, 4, generator=torch.Generator().manual_seed(0))
    assert learned_geometry(table(rows, 2, normalise=False)).whole.ratio == pytest.approx(1, abs=0.06)
    one, two = (separation(rows, size).uniform.mean() for size in (4, 2))
    assert one > 1.03 * two or two > 1.03 * one


def test_agreement_with_a_codebook() -> None:
    x = torch.randn(40, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    numbers, _ = nearest_codes(x, 8)
    same = codebook_agreement(numbers, 3 * x + 1)  # moved and scaled: the same neighbours
    assert {k: entry["overlap"] for k, entry in same.items()} == {"1": 1.0, "2": 1.0, "4": 1.0, "8": 1.0}
    assert same["4"]["chance"] == pytest.approx(4 / 39)
    others = [torch.randn(400, 6, generator=torch.Generator().manual_seed(i)) for i in (1, 2)]
    chance = codebook_agreement(nearest_codes(others[0], 8)[0], others[1])["8"]
    assert chance["overlap"] == pytest.approx(chance["chance"], abs=0.008)
    assert neighbour_overlap(torch.tensor([[1, 2], [0, 2]]), torch.tensor([[2, 1], [3, 4]])) == 0.5


def test_mistakes() -> None:
    with pytest.raises(UserError, match="between 1 and the 2 other codes, got 3"):
        nearest_codes(torch.eye(3), 3)
    with pytest.raises(UserError, match="1 of 3 embeddings are zero or not finite, the first of code 1"):
        learned_geometry(table(torch.tensor([[1.0, 0], [0, 0], [0, 1]]), 2, normalise=False))
    with pytest.raises(UserError, match="one code has no angles"):
        learned_geometry(table(torch.ones(1, 2), 2))
    with pytest.raises(UserError, match="has 40 codes and the tokenizer's codebook 39"):
        codebook_agreement(nearest_codes(torch.randn(40, 2), 2)[0], torch.randn(39, 2))
