"""The whole sampler against a slow loop over samples and tokens in Python numbers, state by state and token by token."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from mind import noise
from mind.network import Mind
from mind.sampler import sample
from mind.settings import SamplerSettings

NULL = 3
LABELS = [2, 0, 1]


# The slow version: its own arithmetic in Python floats (float64); only the logits of the network are shared.


class PerSample:
    """Random numbers of sample ``index``, by name."""

    def __init__(self, seed: int, indices: list[int]) -> None:
        self.seed, self.indices = seed, torch.tensor(indices)

    def initial(self) -> Tensor:
        return noise.normal(self.seed, "sampler/initial", self.indices, 0, (4, 8))

    def labels(self, step: int) -> Tensor:
        return noise.uniform(self.seed, "sampler/labels", self.indices, step, (1,))[:, 0]

    def tokens(self, step: int, evaluation: int, width: int) -> Tensor:
        return noise.uniform(self.seed, f"sampler/tokens/{evaluation}", self.indices, step, (4,))

    def fresh(self, step: int, evaluation: int) -> Tensor:
        return noise.normal(self.seed, f"sampler/fresh/{evaluation}", self.indices, step, (4, 8))


class Released:
    """One generator, asked in the order of the calls."""

    def __init__(self, seed: int, indices: list[int]) -> None:
        self.generator, self.n = torch.Generator().manual_seed(seed), len(indices)

    def initial(self) -> Tensor:
        return torch.randn(self.n, 4, 8, generator=self.generator)

    def labels(self, step: int) -> Tensor:
        return torch.rand(self.n, generator=self.generator)

    def tokens(self, step: int, evaluation: int, width: int) -> Tensor:
        return torch.rand(self.n, 4, width, generator=self.generator)

    def fresh(self, step: int, evaluation: int) -> Tensor:
        return torch.randn(self.n, 4, 8, generator=self.generator)


def softmax(values: list[float]) -> list[float]:
    exponentials = [math.exp(v - max(values)) for v in values]
    return [e / sum(exponentials) for e in exponentials]


def unit(row: list[float]) -> list[float]:
    """Return a row with each pair of numbers divided by its norm plus 1e-6."""
    out = []
    for a, b in zip(row[::2], row[1::2], strict=True):
        out += [a / (math.hypot(a, b) + 1e-6), b / (math.hypot(a, b) + 1e-6)]
    return out


def mean_row(row: list[float], k: int, divisor: float, model: Mind, s: SamplerSettings) -> list[float]:
    smallest = sorted(row, reverse=True)[k - 1] if 0 < k < len(row) else -math.inf
    kept = [token for token in range(len(row)) if row[token] >= smallest]
    table = model.table.embedding.tolist()
    if s.soft_stage != "raw_embedding":
        table = [unit(r) for r in table]
    shares = softmax([row[token] / divisor for token in kept])
    mean = [sum(share * table[token][j] for share, token in zip(shares, kept, strict=True)) for j in range(8)]
    if s.soft_stage == "sphere_subvector":
        return unit(mean)
    if s.soft_stage == "sphere_full":
        norm = math.sqrt(sum(v * v for v in mean))
        return [2.0 * v / (norm + 1e-6) for v in mean]
    return mean


def drawn(row: list[float], divisor: float, numbers: list[float] | float, s: SamplerSettings) -> int:
    window = len(row) if s.topk_window == "full" or s.strategy == "nucleus" else min(s.topk_window, len(row))
    order = sorted(range(len(row)), key=lambda token: -row[token])[:window]
    allowed = window if s.strategy == "nucleus" else s.top_k
    shares = softmax([row[t] / (divisor + 1e-10) if r < allowed else -math.inf for r, t in enumerate(order)])
    kept, before = [], 0.0
    for rank, share in enumerate(shares):
        removed = before >= s.top_p if s.strategy == "nucleus" else before > s.top_p
        kept.append(0.0 if removed and rank > 0 else share)
        before += share
    kept = [share / (sum(kept) + 1e-10) for share in kept]
    if isinstance(numbers, float):  # inverse of the cumulative distribution
        before = 0.0
        for rank, share in enumerate(kept):
            before += share
            if before >= numbers * sum(kept):
                return order[rank]
    assert isinstance(numbers, list)
    scores = [math.log(q + 1e-10) - math.log(-math.log(u + 1e-10) + 1e-10) for q, u in zip(kept, numbers, strict=True)]
    return order[scores.index(max(scores))]


def slow_logits(model: Mind, x: Tensor, t: float, labels: list[int], w: float, s: SamplerSettings) -> list[Any]:
    times = torch.full((len(x),), t)
    given = model.logits(x.float(), times, torch.tensor(labels)).tolist()
    null = model.logits(x.float(), times, torch.full((len(x),), NULL)).tolist()
    for row, null_row in ((r, q) for a, b in zip(given, null, strict=True) for r, q in zip(a, b, strict=True)):
        difference = [a - b for a, b in zip(row, null_row, strict=True)]
        rms = math.sqrt(sum(d * d for d in difference) / len(difference))
        factor = min(1.0, s.cfg_guidance_clip / (rms + 1e-6)) if s.cfg_guidance_clip > 0 else 1.0
        row[:] = [b + w * factor * d for b, d in zip(null_row, difference, strict=True)]
    return given


def slow_feature_logits(model: Mind, x: Tensor, t: float, labels: list[int], w: float, s: SamplerSettings) -> list[Any]:
    times, left = torch.full((len(x),), t), 1 if s.feature_point == "before_last_block" else 0
    read = model.read(x.float())
    conds = [model.condition(times, torch.tensor(y)) for y in (labels, [NULL] * len(x))]
    given, null = (model.run_blocks(read, cond, 0, 2 - left) for cond in conds)
    hidden = model.run_blocks(null + w * (given - null), conds[0], 2 - left, 2)
    return list(model.output(hidden, conds[0]).tolist())


def slow_estimate(
    model: Mind, logits: list[Any], step: int, numbers: Callable[[], Any], second: bool, s: SamplerSettings
) -> tuple[list[list[int]], Tensor]:
    table = [unit(r) for r in model.table.embedding.tolist()]
    greedy = step >= int(s.steps * (1 - s.greedy_ratio)) or s.strategy == "greedy"
    soft = step < int(s.steps * s.soft_ratio)
    draws = None if soft or greedy else numbers().tolist()
    ids, x0 = [], []
    for b, sample_logits in enumerate(logits):
        for i, row in enumerate(sample_logits):
            if max(softmax(row)) > s.confidence_threshold:
                row = [v / s.confidence_scale for v in row]
            divisor = s.temp
            if s.entropy:
                nats = -sum(p * math.log(p + 1e-12) for p in softmax(row))
                divisor *= 2.5 * math.exp(-nats / 3) + 0.6
            if soft:
                ids.append(row.index(max(row)))
                k = s.top_k if second else s.soft_top_k
                x0.append(mean_row(row, k, divisor if second else 1.0, model, s))
                continue
            ids.append(row.index(max(row)) if draws is None else drawn(row, divisor, draws[b][i], s))
            x0.append(table[ids[-1]])
    n = len(logits)
    return torch.tensor(ids).view(n, 4).tolist(), torch.tensor(x0, dtype=torch.float64).view(n, 4, 8)


def slow_update(x: Tensor, x0: Tensor, t: float, u: float, xi: Tensor, eta: float, mode: str) -> Tensor:
    """K1 = 0.6, K2 = 1."""
    e = (x - math.sqrt(t) * x0) / (0.6 * math.sqrt(1 - t) + 1e-8)
    s = 0.6 * math.sqrt(1 - u)
    if mode == "keep":
        kept, new = eta * s, math.sqrt(1 - eta**2) * s
    elif mode == "fresh":
        kept, new = math.sqrt(1 - eta**2) * s, eta * s
    else:
        before = 0.6 * math.sqrt(1 - t)
        new = eta * s * math.sqrt(max(before**2 - t / u * s**2, 0)) / before
        kept = math.sqrt(s**2 - new**2)
    return math.sqrt(u) * x0 + kept * e + new * xi.double()


def slow_sample(model: Mind, labels: list[int], s: SamplerSettings, source: Any) -> tuple[Any, list[Tensor]]:
    times = [0.001 + 0.999 * i / s.steps for i in range(s.steps + 1)]
    n = source.initial().double()
    anchor = torch.tensor(unit(model.table.embedding[1].tolist()), dtype=torch.float64)
    x = {
        "token1": math.sqrt(times[0]) * anchor + 0.6 * math.sqrt(1 - times[0]) * n,
        "zero_anchor": 0.6 * math.sqrt(1 - times[0]) * n,
        "pure_noise": 0.6 * n,
    }[s.init_mode]
    answer = slow_logits if s.guidance_space == "logits" else slow_feature_logits
    width = model.config.vocab_size
    if s.strategy == "topk_topp" and s.topk_window != "full":
        width = min(s.topk_window, width)
    states = []
    for i in range(s.steps):
        t, u, r = times[i], times[i + 1], i / s.steps
        y = labels
        if s.label_dropout and r <= s.label_dropout_end:
            chance = s.label_dropout * (1 - r / s.label_dropout_end)
            y = [NULL if v < chance else label for v, label in zip(source.labels(i).tolist(), labels, strict=True)]
        w = s.cfg_scale if s.cfg_t_min <= r <= s.cfg_t_max else 1.0
        logits = (
            answer(model, x, t, y, w, s)
            if w != 1
            else slow_logits(model, x, t, y, 1.0, SamplerSettings(cfg_guidance_clip=0))
        )
        ids, x0 = slow_estimate(model, logits, i, lambda i=i: source.tokens(i, 1, width), False, s)
        after = slow_update(x, x0, t, u, source.fresh(i, 1), s.eta, s.eta_mode)
        if s.solver_order == 2 and i < s.steps - 1:
            logits = (
                answer(model, after, u, y, w, s)
                if w != 1
                else slow_logits(model, after, u, y, 1.0, SamplerSettings(cfg_guidance_clip=0))
            )
            _, other = slow_estimate(model, logits, i, lambda i=i: source.tokens(i, 2, width), True, s)
            after = slow_update(x, (x0 + other) / 2, t, u, source.fresh(i, 2), 0.0, "keep")
        x = after
        states.append(x)
    return ids, states


CASES: dict[str, dict[str, Any]] = {
    "released": {},
    "window": {"topk_window": 5, "top_k": 4, "top_p": 0.9, "soft_top_k": 3},
    "full_window": {"topk_window": "full", "top_k": 9, "top_p": 0.95},
    "nucleus": {"strategy": "nucleus", "top_p": 0.7},
    "greedy_strategy": {"strategy": "greedy", "eta": 0.8},
    "entropy": {"entropy": True, "soft_ratio": 0.0},
    "confidence": {"confidence_threshold": 0.5, "confidence_scale": 1.7, "temp": 1.3},
    "sphere_subvector": {"soft_stage": "sphere_subvector", "soft_ratio": 0.5},
    "sphere_full": {"soft_stage": "sphere_full", "soft_ratio": 0.5, "soft_top_k": 0},
    "no_clip": {"cfg_guidance_clip": 0.0, "cfg_scale": 1.8},
    "hard_clip": {"cfg_guidance_clip": 0.4},
    "no_guidance": {"cfg_scale": 1.0, "greedy_ratio": 0.0, "soft_ratio": 0.0},
    "before_last": {"guidance_space": "feature", "cfg_scale": 1.5},
    "after_last": {"guidance_space": "feature", "feature_point": "after_last_block", "cfg_scale": 1.5},
    "fresh": {"eta_mode": "fresh", "eta": 0.6},
    "ddim_sigma": {"eta_mode": "ddim_sigma", "eta": 0.7},
    "all_fresh": {"eta": 0.0},
    "order_2": {"solver_order": 2, "soft_ratio": 0.3, "soft_top_k": 3, "top_k": 5, "temp": 0.7},
    "order_2_ddim": {"solver_order": 2, "eta_mode": "ddim_sigma", "entropy": True},
    "zero_anchor": {"init_mode": "zero_anchor"},
    "pure_noise": {"init_mode": "pure_noise"},
    "label_dropout": {"label_dropout": 0.9, "solver_order": 2},
}


@torch.no_grad()
@pytest.mark.parametrize("noise_name", ["per_sample", "released"])
@pytest.mark.parametrize("case", CASES)
def test_state_by_state_and_token_by_token(model: Mind, case: str, noise_name: str) -> None:
    settings = SamplerSettings(**{"steps": 10, "noise": noise_name, **CASES[case]})
    source = {"per_sample": PerSample, "released": Released}[noise_name](7, [5, 6, 7])
    tokens_by_step: list[Any] = []
    result = sample(
        model, LABELS, settings, seed=7, first_index=5, return_trajectory=True,
        on_step=lambda step, state, tokens: tokens_by_step.append(tokens.tolist()),
    )  # fmt: skip
    expected, states = slow_sample(model, LABELS, settings, source)
    assert result.trajectory is not None
    assert result.trajectory.shape == (10, 3, 4, 8)
    for step, (state, slow_state) in enumerate(zip(result.trajectory, states, strict=True)):
        assert float((state - slow_state).abs().max()) < 2e-5, f"step {step}"
    assert result.indices.tolist() == expected == tokens_by_step[-1]


def test_the_cases_differ(model: Mind) -> None:
    """Every case changes some state: none compares the released behaviour with itself."""
    trajectories = {}
    for case, fields in CASES.items():
        result = sample(model, LABELS, SamplerSettings(**{"steps": 10, **fields}), seed=7, return_trajectory=True)
        assert result.trajectory is not None
        trajectories[case] = result.trajectory
    cases = list(CASES)
    for i, left in enumerate(cases):
        for right in cases[i + 1 :]:
            assert not torch.allclose(trajectories[left], trajectories[right], atol=1e-3), f"{left} is {right}"
