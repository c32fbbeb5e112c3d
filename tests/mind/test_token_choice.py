"""Choosing tokens against a loop over tokens that sorts the vocabulary, and against hand-made probabilities."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from mind.geometry import TokenTable
from mind.settings import SamplerSettings
from mind.token_choice import (
    choose,
    draw_by_gumbel,
    draw_by_inverse_cdf,
    entropy,
    entropy_factor,
    kept_candidates,
    soft_mean,
    stage,
    temperature,
)


@pytest.fixture
def logits() -> Tensor:
    return 3 * torch.randn(2, 5, 400, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def table() -> TokenTable:
    torch.manual_seed(0)
    return TokenTable(400, 8, 2, init="normal")


def never(probabilities: Tensor) -> Tensor:
    raise AssertionError("this stage draws nothing")


def slow_probabilities(row: list[float], divisor: float, s: SamplerSettings) -> dict[int, float]:
    """Return {token: probability} of one token's kept candidates, from a full sort."""
    order = sorted(range(len(row)), key=lambda token: -row[token])
    if s.strategy == "topk_topp":
        order = order[: min(s.top_k, len(row) if s.topk_window == "full" else s.topk_window)]
    scaled = [row[token] / (divisor + 1e-10) for token in order]
    total = sum(math.exp(v - scaled[0]) for v in scaled)
    kept: dict[int, float] = {}
    before = 0.0
    for rank, (token, v) in enumerate(zip(order, scaled, strict=True)):
        removed = before >= s.top_p if s.strategy == "nucleus" else before > s.top_p
        share = math.exp(v - scaled[0]) / total
        if rank == 0 or not removed:
            kept[token] = share
        before += share
    return {token: share / sum(kept.values()) for token, share in kept.items()}


@pytest.mark.parametrize("noise", ["per_sample", "released"])
@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"top_k": 7, "top_p": 1.0},
        {"top_k": 350, "top_p": 1.0},
        {"top_k": 350, "top_p": 0.9999, "topk_window": "full"},
        {"topk_window": 3, "top_p": 0.99},
        {"top_p": 0.0},
        {"top_p": 0.95, "temp": 2.5},
        {"strategy": "nucleus", "top_p": 0.95},
        {"strategy": "nucleus", "top_p": 0.999},
    ],
)
def test_kept_candidates(logits: Tensor, fields: dict[str, Any], noise: str) -> None:
    settings = SamplerSettings(noise=noise, **fields)  # type: ignore[arg-type]
    probabilities, candidates = kept_candidates(logits, torch.tensor(settings.temp), settings)
    assert (probabilities[..., 1:] <= probabilities[..., :-1]).all()
    for b in range(2):
        for i in range(5):
            expected = slow_probabilities(logits[b, i].tolist(), settings.temp, settings)
            kept = probabilities[b, i] > 0
            found = dict(zip(candidates[b, i, kept].tolist(), probabilities[b, i, kept].tolist(), strict=True))
            assert found == pytest.approx(expected, rel=1e-4, abs=1e-9)


def test_the_token_that_crosses_top_p_stays() -> None:
    logits = torch.tensor([[[0.25, 0.5, 0.125, 0.125]]]).log()
    one = torch.tensor(1.0)

    def kept(**fields: Any) -> int:
        return int((kept_candidates(logits, one, SamplerSettings(**fields))[0] > 0).sum())

    assert kept(top_p=0.4) == 1  # 0.5 crosses
    assert kept(top_p=0.5) == 2  # 0.5 is not more than 0.5: strict
    assert kept(top_p=0.6) == 2
    assert kept(top_p=0.0) == 1
    assert kept(top_p=1.0) == 4
    assert kept(top_p=0.5, strategy="nucleus") == 1  # not strict
    assert kept(top_p=0.6, strategy="nucleus") == 2


@pytest.mark.parametrize("noise", ["per_sample", "released"])
def test_top_k_acts_as_the_window_at_most(logits: Tensor, noise: str) -> None:
    one = torch.tensor(1.0)
    at_200, at_300 = (SamplerSettings(top_k=k, top_p=1.0, noise=noise) for k in (200, 300))  # type: ignore[arg-type]
    for left, right in zip(kept_candidates(logits, one, at_200), kept_candidates(logits, one, at_300), strict=True):
        assert torch.equal(left, right)


def test_bfloat16_logits_give_float32_probabilities(logits: Tensor) -> None:
    rounded = logits.bfloat16()
    probabilities, _ = kept_candidates(rounded, torch.tensor(0.99), SamplerSettings())
    expected, _ = kept_candidates(rounded.float(), torch.tensor(0.99), SamplerSettings())
    assert torch.equal(probabilities, expected)


def test_stages_of_the_released_run() -> None:
    stages = [stage(SamplerSettings(), i) for i in range(250)]
    assert stages == ["soft"] * 25 + ["sampling"] * 200 + ["greedy"] * 25


def test_stage_thresholds_are_cut_off_floats() -> None:
    def stages(**fields: Any) -> list[str]:
        settings = SamplerSettings(**fields)
        return [stage(settings, i) for i in range(settings.steps)]

    assert stages(steps=250, greedy_ratio=0.9, soft_ratio=0.0).count("sampling") == 24  # 250 * (1 - 0.9) is below 25
    assert stages(steps=100, greedy_ratio=0.9, soft_ratio=0.0).count("sampling") == 9
    assert set(stages(steps=250, greedy_ratio=0.0, soft_ratio=0.0)) == {"sampling"}
    assert set(stages(steps=50, greedy_ratio=1.0, soft_ratio=1.0)) == {"soft"}  # soft comes first
    assert set(stages(steps=50, greedy_ratio=1.0, soft_ratio=0.0)) == {"greedy"}


def test_inverse_cdf_gives_each_rank_its_share() -> None:
    probabilities = torch.tensor([0.5, 0.3, 0.2, 0.0, 0.0])
    uniform = (torch.arange(1000) + 0.5) / 1000
    ranks = draw_by_inverse_cdf(probabilities.expand(1, 1000, 5).contiguous(), uniform[None])
    assert ranks[0].bincount(minlength=5).tolist() == [500, 300, 200, 0, 0]
    assert ranks[0].tolist() == sorted(ranks[0].tolist())


def test_inverse_cdf_at_its_ends() -> None:
    probabilities = torch.tensor([[[0.4, 0.6, 0.0]] * 2])
    assert draw_by_inverse_cdf(probabilities, torch.tensor([[2**-24, 1 - 2**-24]])).tolist() == [[0, 1]]


def test_gumbel_draws_follow_the_probabilities() -> None:
    probabilities = torch.tensor([0.5, 0.3, 0.15, 0.05, 0.0])
    uniform = torch.rand(1, 40_000, 5, generator=torch.Generator().manual_seed(0))
    counts = draw_by_gumbel(probabilities.expand(1, 40_000, 5), uniform)[0].bincount(minlength=5)
    expected = 40_000 * probabilities
    assert counts[4] == 0
    assert (
        float(((counts - expected)[:4] ** 2 / expected[:4]).sum()) < 16.3
    )  # chi-square, 3 degrees of freedom, p = 0.001


def test_removed_ranks_carry_minus_23() -> None:
    """The largest Gumbel number is -ln(2^-24 + 1e-10) = 16.63, the smallest -ln(-ln 1e-10) = -3.14.

    So at those two a removed rank wins over a kept one with ln q < 16.63 - 23.03 + 3.14 = -3.26.
    """
    uniform = torch.tensor([[[0.0, 1 - 2**-24]]])
    assert draw_by_gumbel(torch.tensor([[[math.exp(-3.2), 0.0]]]), uniform).item() == 0
    assert draw_by_gumbel(torch.tensor([[[math.exp(-3.3), 0.0]]]), uniform).item() == 1


def test_entropy_factor_at_hand_values() -> None:
    nats = torch.tensor([0, 2, 4, 5.50, 7, 9, 9.70])
    assert entropy_factor(nats).tolist() == pytest.approx([3.10, 1.88, 1.26, 1.00, 0.84, 0.72, 0.70], abs=0.005)


def test_entropy_of_known_distributions() -> None:
    uniform, sure = torch.full((50,), 0.02), torch.eye(50)[3]
    assert entropy(torch.stack([uniform, sure])).squeeze(-1).tolist() == pytest.approx([math.log(50), 0.0], abs=1e-5)


@pytest.mark.parametrize("entropy", [False, True])
def test_temperature_is_not_rounded_with_the_logits(entropy: bool, logits: Tensor) -> None:
    found = temperature(logits.bfloat16(), SamplerSettings(entropy=entropy))
    one = temperature(logits.bfloat16(), SamplerSettings(temp=1.0, entropy=entropy))
    assert torch.equal(found, torch.tensor(0.99) * one)  # 0.98828125 in bfloat16
    assert torch.equal(one, one.bfloat16().float())


@torch.no_grad()
def test_a_second_soft_evaluation_stays_in_the_precision_of_the_model(logits: Tensor, table: TokenTable) -> None:
    settings = SamplerSettings(entropy=True, top_k=5)
    choice = choose(logits.bfloat16(), table.bfloat16(), "soft", settings, never, second=True)
    assert choice.x0.dtype == torch.bfloat16 and choice.x0.isfinite().all()


def test_temperature_of_each_token(logits: Tensor) -> None:
    assert temperature(logits, SamplerSettings(temp=0.7)).tolist() == pytest.approx(0.7)
    whole = temperature(logits, SamplerSettings(temp=0.7, entropy=True))
    settings = SamplerSettings(temp=0.7, entropy=True, entropy_after_filter=True)
    after = temperature(logits, settings)
    for b in range(2):
        for i in range(5):
            nats = float(torch.distributions.Categorical(logits=logits[b, i]).entropy())
            assert float(whole[b, i]) == pytest.approx(0.7 * (2.5 * math.exp(-nats / 3) + 0.6), rel=1e-4)
            kept = slow_probabilities(logits[b, i].tolist(), 1.0, settings)
            nats = -sum(p * math.log(p) for p in kept.values())
            assert float(after[b, i]) == pytest.approx(0.7 * (2.5 * math.exp(-nats / 3) + 0.6), rel=1e-4)


@pytest.mark.parametrize("at", ["soft", "greedy"])
@torch.no_grad()
def test_soft_and_greedy_choose_the_likeliest(logits: Tensor, table: TokenTable, at: Any) -> None:
    chosen = choose(logits, table, at, SamplerSettings(), never)
    assert torch.equal(chosen.indices, logits.argmax(-1))
    if at == "greedy":
        assert torch.equal(chosen.x0, table.vectors()[logits.argmax(-1)])


@torch.no_grad()
def test_greedy_strategy_draws_nothing_while_sampling(logits: Tensor, table: TokenTable) -> None:
    chosen = choose(logits, table, "sampling", SamplerSettings(strategy="greedy"), never)
    assert torch.equal(chosen.indices, logits.argmax(-1))


@torch.no_grad()
def test_sampling_returns_the_token_of_the_drawn_rank(logits: Tensor, table: TokenTable) -> None:
    ranks = torch.tensor([[0, 1, 2, 3, 4], [4, 3, 2, 1, 0]])
    chosen = choose(logits, table, "sampling", SamplerSettings(temp=50.0), lambda _: ranks)
    order = logits.argsort(-1, descending=True)
    assert torch.equal(chosen.indices, order.gather(-1, ranks[..., None])[..., 0])
    assert torch.equal(chosen.x0, table.vectors()[chosen.indices])


@torch.no_grad()
@pytest.mark.parametrize("k", [0, 1, 20, 400, 1000])
@pytest.mark.parametrize("soft_stage", ["raw_embedding", "sphere_subvector", "sphere_full", "sphere_mean"])
def test_soft_stage(logits: Tensor, table: TokenTable, soft_stage: Any, k: int) -> None:
    settings = SamplerSettings(soft_stage=soft_stage, soft_top_k=k, temp=5.0)
    x0 = choose(logits, table, "soft", settings, never).x0
    rows = table.embedding if soft_stage == "raw_embedding" else table.vectors()
    for b in range(2):
        for i in range(5):
            order = logits[b, i].argsort(descending=True)[: k or 400]
            weights = torch.softmax(logits[b, i, order], 0)  # the temperature does not count here
            mean = (weights[:, None] * rows[order]).sum(0)
            if soft_stage == "sphere_subvector":
                mean = torch.cat([part / part.norm() for part in mean.split(2)])
            if soft_stage == "sphere_full":
                mean = 2.0 * mean / mean.norm()  # sqrt(8 / 2)
            assert torch.allclose(x0[b, i], mean, atol=1e-4)


@torch.no_grad()
def test_soft_stage_of_a_second_evaluation_uses_temperature_and_top_k(logits: Tensor, table: TokenTable) -> None:
    settings = SamplerSettings(temp=5.0, top_k=6)
    x0 = choose(logits, table, "soft", settings, never, second=True).x0
    order = logits[1, 2].argsort(descending=True)[:6]
    weights = torch.softmax(logits[1, 2, order] / 5.0, 0)
    assert torch.allclose(x0[1, 2], (weights[:, None] * table.embedding[order]).sum(0), atol=1e-5)


@torch.no_grad()
def test_soft_stage_keeps_ties() -> None:
    table = TokenTable(5, 4, 2, init="normal")
    logits = torch.tensor([[[1.0, 3.0, 1.0, 0.0, 1.0]]])
    weights = torch.softmax(torch.tensor([1.0, 3.0, 1.0, 1.0]), 0)
    expected = (weights[:, None] * table.embedding[[0, 1, 2, 4]]).sum(0)
    assert torch.allclose(soft_mean(logits, table, 2, SamplerSettings())[0, 0], expected, atol=1e-6)


@torch.no_grad()
def test_soft_stage_off_the_spheres_does_not_project() -> None:
    table = TokenTable(5, 4, 2, init="normal", normalise=False)
    logits = torch.randn(1, 1, 5, generator=torch.Generator().manual_seed(0))
    means = [soft_mean(logits, table, 0, SamplerSettings(soft_stage=s)) for s in ("raw_embedding", "sphere_full")]  # type: ignore[arg-type]
    assert torch.equal(*means)


@torch.no_grad()
def test_confident_tokens_are_calmed(table: TokenTable) -> None:
    logits = torch.zeros(1, 2, 400)
    logits[0, :, 0] = torch.tensor([8.0, 4.0])  # largest probabilities 0.88 and 0.12
    seen: list[Tensor] = []

    def record(probabilities: Tensor) -> Tensor:
        seen.append(probabilities[0, :, 0])
        return torch.zeros(1, 2, dtype=torch.int64)

    settings = SamplerSettings(temp=1.0, top_p=1.0, top_k=100, confidence_threshold=0.5, confidence_scale=2.0)
    choose(logits, table, "sampling", settings, record)
    choose(logits, table, "sampling", SamplerSettings(temp=1.0, top_p=1.0), record)
    calmed = math.exp(4) / (math.exp(4) + 99)
    assert seen[0].tolist() == pytest.approx([calmed, calmed], rel=1e-5)
    assert seen[1].tolist() == pytest.approx([math.exp(8) / (math.exp(8) + 99), calmed], rel=1e-5)
