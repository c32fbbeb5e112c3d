"""Truths: SplitMix64 in Python's own integers (checked against published outputs), and scipy's tests of distribution."""

import hashlib
import math

import numpy as np
import pytest
import torch
from scipy import stats

from mind import noise
from mind.noise import normal, uniform

MASK = (1 << 64) - 1
GAMMA = 0x9E3779B97F4A7C15


def mixed(state: int) -> int:
    state = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9 & MASK
    state = (state ^ (state >> 27)) * 0x94D049BB133111EB & MASK
    return state ^ (state >> 31)


def slow_bits(seed: int, stream: str, index: int, step: int, count: int) -> list[int]:
    key = int.from_bytes(hashlib.sha256(f"{seed}/{stream}/{step}".encode()).digest()[:8], "little")
    start = mixed((key + (index + 1) * GAMMA) & MASK)
    return [mixed((start + j * GAMMA) & MASK) for j in range(1, count + 1)]


def test_the_slow_generator_is_splitmix64() -> None:
    """First outputs for seed 1234567, as they are published for this generator."""
    expected = [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]
    assert [mixed((1234567 + j * GAMMA) & MASK) for j in range(1, 6)] == expected


@pytest.mark.parametrize("index", [0, 1, 49_999, 2**40])
@pytest.mark.parametrize("step", [0, 249])
def test_bits_against_the_slow_generator(index: int, step: int) -> None:
    found = noise._bits(7, "fresh", torch.tensor([index]), step, 9)[0]
    assert [int(v) & MASK for v in found] == slow_bits(7, "fresh", index, step, 9)


def test_uniform_and_normal_are_made_of_those_bits() -> None:
    index = torch.tensor([3])
    bits = slow_bits(0, "s", 3, 5, 4)
    u = uniform(0, "s", index, 5, (4,))[0]
    np.testing.assert_allclose(u, [b / 2**64 for b in bits], rtol=0, atol=2**-22)
    pairs = [(math.sqrt(-2 * math.log((b >> 32) / 2**32)), 2 * math.pi * (b & 0xFFFFFFFF) / 2**32) for b in bits]
    expected = [r * math.cos(a) for r, a in pairs] + [r * math.sin(a) for r, a in pairs]
    np.testing.assert_allclose(normal(0, "s", index, 5, (2, 4))[0].flatten(), expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize("bits", [0, -1, 1, -(1 << 63), (1 << 63) - 1])
def test_the_ends_are_never_reached(bits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever 64 bits come, 0 < u < 1 in float32, and normals are finite."""
    monkeypatch.setattr(noise, "_bits", lambda *arguments: torch.full((1, arguments[-1]), bits))
    assert 0 < float(uniform(0, "s", torch.tensor([0]), 0, (1,))) < 1
    assert normal(0, "s", torch.tensor([0]), 0, (3,)).isfinite().all()


# --- what they are a function of --------------------------------------------------------------------------------------


@pytest.mark.parametrize("draw", [uniform, normal])
def test_a_sample_does_not_depend_on_its_batch(draw: object) -> None:
    def of(*index: int) -> torch.Tensor:
        return draw(3, "fresh", torch.tensor(index), 11, (5, 3))  # type: ignore[operator, no-any-return]

    together = of(4, 0, 9, 4)
    assert together.shape == (4, 5, 3) and together.dtype == torch.float32
    assert torch.equal(together, torch.cat([of(4), of(0), of(9), of(4)]))
    assert torch.equal(of(4), of(4))


@pytest.mark.parametrize("draw", [uniform, normal])
def test_every_argument_changes_every_number(draw: object) -> None:
    def of(seed: int = 0, stream: str = "a", index: int = 0, step: int = 0) -> torch.Tensor:
        return draw(seed, stream, torch.tensor([index]), step, (64,))[0]  # type: ignore[operator, no-any-return]

    others = [of(seed=1), of(stream="b"), of(index=1), of(step=1), of(seed=1, index=1), of(index=1, step=1)]
    for i, first in enumerate([of(), *others]):
        for second in others[i:]:
            assert not (first == second).any()


def test_odd_counts_and_empty_batches() -> None:
    assert normal(0, "s", torch.tensor([1, 2]), 0, (7,)).shape == (2, 7)
    assert normal(0, "s", torch.tensor([1, 2]), 0, ()).shape == (2,)
    assert uniform(0, "s", torch.zeros(0, dtype=torch.int64), 0, (3, 2)).shape == (0, 3, 2)


# --- distribution -----------------------------------------------------------------------------------------------------

N = 200_000


@pytest.fixture(scope="module", params=["one sample", "many samples", "many steps"])
def cut(request: pytest.FixtureRequest) -> tuple[np.ndarray, np.ndarray]:
    """Uniform and normal numbers along each direction in which they are used: within a sample, over samples, over steps."""
    kind = request.param
    one = torch.tensor([0])
    if kind == "many steps":
        parts = [[draw(1, "a", one, step, (100,)) for step in range(500)] for draw in (uniform, normal)]
        return tuple(torch.cat(part).flatten().double().numpy() for part in parts)  # type: ignore[return-value]
    index, shape = (one, (N,)) if kind == "one sample" else (torch.arange(N), (1,))
    return tuple(draw(1, "a", index, 0, shape).flatten().double().numpy() for draw in (uniform, normal))  # type: ignore[return-value]


def test_uniform_numbers_are_uniform(cut: tuple[np.ndarray, np.ndarray]) -> None:
    u = cut[0]
    assert stats.kstest(u, "uniform").pvalue > 1e-3
    assert u.mean() == pytest.approx(0.5, abs=4 * math.sqrt(1 / 12 / len(u)))
    bins = np.bincount((u * 256).astype(int), minlength=256)
    assert stats.chisquare(bins).pvalue > 1e-3


def test_normal_numbers_are_normal(cut: tuple[np.ndarray, np.ndarray]) -> None:
    x, n = cut[1], len(cut[1])
    assert stats.kstest(x, "norm").pvalue > 1e-3
    for power, moment, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):  # of N(0,1)
        assert np.mean(x**power) == pytest.approx(moment, abs=4 * math.sqrt(variance / n))
    assert 4 < np.abs(x).max() < 6.8


def test_neighbouring_numbers_are_independent(cut: tuple[np.ndarray, np.ndarray]) -> None:
    for x in cut:
        for lag in (1, 2, 50, len(x) // 2):
            r = np.corrcoef(x[:-lag], x[lag:])[0, 1]
            assert abs(r) < 4 / math.sqrt(len(x) - lag)
            s = np.corrcoef((x[:-lag] - x.mean()) ** 2, (x[lag:] - x.mean()) ** 2)[0, 1]
            assert abs(s) < 4 / math.sqrt(len(x) - lag)


@pytest.mark.parametrize("change", ["seed", "stream", "index", "step"])
def test_streams_are_independent(change: str) -> None:
    def of(seed: int = 0, stream: str = "a", index: int = 0, step: int = 0) -> np.ndarray:
        return normal(seed, stream, torch.tensor([index]), step, (50_000,))[0].numpy()

    other = {"seed": 1, "stream": "b", "index": 1, "step": 1}[change]
    first, second = of(), of(**{change: other})  # type: ignore[arg-type]
    for shift in (0, 1, 2):  # also not the same numbers a few places on
        r = np.corrcoef(first[shift:], second[: len(second) - shift])[0, 1]
        assert abs(r) < 4 / math.sqrt(len(first))
