"""The whole sampler against a slow loop over samples and tokens in Python numbers, and what it promises its users."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from latentlab.errors import UserError
from mind import noise
from mind.config import MindConfig
from mind.network import Mind
from mind.sampler import sample
from mind.settings import SamplerSettings

TINY = {
    "embed_dim": 8, "subvector_size": 2, "hidden_size": 32, "num_heads": 2, "num_blocks": 2, "cond_dim": 16, "num_classes": 3,
    "tokens": 4,
}  # fmt: skip
NULL = 3
LABELS = [2, 0, 1]


def tiny(**fields: Any) -> Mind:
    torch.manual_seed(0)
    model = Mind(MindConfig(**{**TINY, "vocab_size": 16, **fields})).eval()
    for parameter in model.parameters():  # fresh blocks are the identity and answer alike to every label
        torch.nn.init.normal_(parameter, std=0.25)
    return model


@pytest.fixture(scope="module")
def model() -> Mind:
    return tiny()


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


@pytest.mark.parametrize("eta_mode", ["keep", "fresh", "ddim_sigma"])
@pytest.mark.parametrize("eta", [0.0, 0.6, 0.99, 1.0])
def test_right_estimates_keep_the_variance_of_the_noise(
    monkeypatch: pytest.MonkeyPatch, eta: float, eta_mode: Any
) -> None:
    """With the network always right, states have variance K1^2 (1-t) around sqrt(t) z, whatever eta is."""
    model = tiny()
    true = torch.tensor([3, 1, 4, 1])
    monkeypatch.setattr(model, "logits", lambda x, t, y: 50 * torch.eye(16)[true].expand(len(x), 4, 16))
    settings = SamplerSettings(steps=5, eta=eta, eta_mode=eta_mode, cfg_scale=1.0, soft_ratio=0.0)
    result = sample(model, torch.zeros(500, dtype=torch.int64), settings, return_trajectory=True)
    assert result.trajectory is not None
    for state, t in zip(result.trajectory, result.times[1:].tolist(), strict=True):
        # 16,000 numbers: relative standard error of the variance 0.011.
        assert float(state.var(dim=0).mean()) == pytest.approx(0.36 * (1 - t), rel=0.05, abs=1e-12)
    assert torch.allclose(result.trajectory[-1], model.embed(true).expand(500, 4, 8), atol=1e-6)
    assert torch.equal(result.indices, true.expand(500, 4))


def test_share_of_fresh_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    """After one step two seeds with the same start differ by sqrt(1 - 0.99^2) = 0.14107 of the noise, times sqrt(2)."""
    model = tiny()
    monkeypatch.setattr(model, "logits", lambda x, t, y: 50 * torch.eye(16)[:4].expand(len(x), 4, 16))
    settings = SamplerSettings(steps=2, cfg_scale=1.0, greedy_ratio=1.0)
    start = torch.zeros(400, 4, 8)
    states = [
        sample(model, [0] * 400, settings, noise=start, seed=s, return_trajectory=True).trajectory for s in (0, 1)
    ]
    assert states[0] is not None
    assert states[1] is not None
    scale = 0.6 * math.sqrt(1 - 0.5005)
    assert float((states[0][0] - states[1][0]).std()) == pytest.approx(0.14107 * 2**0.5 * scale, rel=0.02)


def test_the_last_state_is_the_last_estimate(model: Mind) -> None:
    result = sample(model, LABELS, SamplerSettings(steps=6), return_trajectory=True)
    assert result.trajectory is not None
    assert torch.allclose(result.trajectory[-1], model.embed(result.indices), atol=1e-6)


@torch.no_grad()
def test_returned_tokens_are_the_argmax_of_the_last_step(model: Mind) -> None:
    settings = SamplerSettings(steps=6, greedy_ratio=0.2)
    result = sample(model, LABELS, settings, return_trajectory=True)
    assert result.trajectory is not None
    t = torch.full((3,), float(result.times[-2]))
    assert torch.equal(result.indices, model.logits(result.trajectory[-2], t, torch.tensor(LABELS)).argmax(-1))


def test_same_seed_same_tokens_other_seed_others(model: Mind) -> None:
    settings = SamplerSettings(steps=6, greedy_ratio=0.0, top_p=1.0, cfg_scale=1.0, temp=3.0)
    first, again, other = (sample(model, [0] * 40, settings, seed=s).indices for s in (1, 1, 2))
    assert torch.equal(first, again)
    assert float((first != other).float().mean()) > 0.3


@pytest.mark.parametrize(
    "fields", [{}, {"solver_order": 2}, {"label_dropout": 0.8}, {"entropy": True, "strategy": "nucleus"}]
)
def test_a_sample_does_not_depend_on_its_batch(model: Mind, fields: dict[str, Any]) -> None:
    settings = SamplerSettings(**{"steps": 8, "temp": 2.0, **fields})
    labels = torch.arange(12) % 3
    whole = sample(model, labels, settings, seed=3, first_index=100, return_trajectory=True)
    parts = [
        sample(model, labels[a:b], settings, seed=3, first_index=100 + a, return_trajectory=True)
        for a, b in ((0, 1), (1, 6), (6, 12))
    ]
    assert torch.equal(whole.indices, torch.cat([p.indices for p in parts]))
    assert whole.trajectory is not None
    assert torch.allclose(
        whole.trajectory, torch.cat([p.trajectory for p in parts if p.trajectory is not None], dim=1), atol=1e-5
    )
    order = torch.tensor([7, 2, 11])
    some = sample(model, labels[order], settings, seed=3, indices=100 + order)
    assert torch.equal(some.indices, whole.indices[order])


def test_given_noise_replaces_the_drawn_one(model: Mind) -> None:
    settings = SamplerSettings(steps=5)
    start = PerSample(3, [0, 1, 2]).initial()
    assert torch.equal(
        sample(model, LABELS, settings, seed=3).indices, sample(model, LABELS, settings, start, 3).indices
    )
    moved = sample(model, LABELS, settings, start + 1, 3, return_trajectory=True).trajectory
    drawn_states = sample(model, LABELS, settings, seed=3, return_trajectory=True).trajectory
    assert moved is not None
    assert drawn_states is not None
    assert not torch.allclose(moved[0], drawn_states[0], atol=0.1)


def test_a_generator_goes_on_from_batch_to_batch(model: Mind) -> None:
    settings = SamplerSettings(steps=4, noise="released")
    generator = torch.Generator().manual_seed(9)
    first, second = (sample(model, LABELS, settings, generator=generator, return_trajectory=True) for _ in range(2))
    alone = sample(model, LABELS, settings, seed=9, return_trajectory=True)
    assert first.trajectory is not None
    assert second.trajectory is not None
    assert alone.trajectory is not None
    assert torch.equal(first.trajectory, alone.trajectory)
    assert not torch.allclose(second.trajectory[0], first.trajectory[0], atol=0.1)


@pytest.mark.parametrize(
    ("fields", "guided", "order"),
    [
        ({}, range(4, 13), 1),
        ({"cfg_scale": 1.0}, [], 1),
        ({"solver_order": 2}, range(4, 13), 2),
        ({"cfg_t_min": 0.9, "cfg_t_max": 1.0}, [18, 19], 1),
    ],
)
def test_no_null_pass_outside_the_interval(model: Mind, fields: dict[str, Any], guided: Any, order: int) -> None:
    read: list[list[int]] = []
    hook = model.classes.register_forward_pre_hook(lambda _, arguments: read.append(arguments[0].tolist()))
    result = sample(model, LABELS, SamplerSettings(**{"steps": 20, **fields}))
    hook.remove()
    expected = []
    for step in range(20):
        passes = order if step < 19 else 1
        expected += passes * [LABELS + 3 * [NULL] if step in guided else LABELS]
    assert read == expected
    assert 3 * result.evaluations == sum(map(len, read))


def test_released_run_takes_351_evaluations(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny()
    monkeypatch.setattr(model, "logits", lambda x, t, y: torch.zeros(len(x), 4, 16))
    assert sample(model, [0], SamplerSettings()).evaluations == 250 + 101


def test_label_dropout_falls_to_zero(model: Mind) -> None:
    read: list[Tensor] = []
    hook = model.classes.register_forward_pre_hook(lambda _, arguments: read.append(arguments[0]))
    sample(model, [0] * 300, SamplerSettings(steps=10, cfg_scale=1.0, label_dropout=0.8))
    hook.remove()
    dropped = [float((labels == NULL).float().mean()) for labels in read]
    assert dropped == pytest.approx([max(0.0, 0.8 * (1 - i / 7)) for i in range(10)], abs=0.1)  # 3.6 standard errors
    assert dropped[7:] == [0.0, 0.0, 0.0]


def test_times_are_rounded_like_the_rotary_tables() -> None:
    coarse = tiny(rope_dtype="bfloat16")
    settings = SamplerSettings(steps=250, cfg_scale=1.0)
    exact = [0.001 + 0.999 * i / 250 for i in range(251)]
    for asked, model, repeats in (
        ("auto", coarse, 20),
        ("auto", tiny(), 0),
        ("float32", coarse, 0),
        ("bfloat16", tiny(), 20),
    ):
        model.logits = lambda x, t, y: torch.zeros(len(x), 4, 16)  # type: ignore[method-assign]
        times = sample(model, [0], SamplerSettings(**{**settings.model_dump(), "timestep_dtype": asked})).times
        assert int((times.diff() == 0).sum()) == repeats
        assert times.tolist() == pytest.approx(exact, abs=1e-7 if repeats == 0 else 5e-3)


def test_noise_convention_tells_noise_times(model: Mind) -> None:
    data, reverse = (sample(model, LABELS, SamplerSettings(steps=4, time_convention=c)) for c in ("data", "noise"))
    assert torch.equal(reverse.times, 1 - data.times)
    assert torch.equal(reverse.indices, data.indices)


@pytest.mark.parametrize("eta_mode", ["keep", "ddim_sigma", "fresh"])
@pytest.mark.parametrize("schedule", ["shifted_cosine", "logsnr_uniform", "linear_start0_end0995"])
def test_repeated_times_in_bfloat16_do_no_harm(schedule: str, eta_mode: Any) -> None:
    model = tiny().set_precision("released_bf16")
    settings = SamplerSettings(
        steps=250, schedule=schedule, eta_mode=eta_mode, timestep_dtype="bfloat16", cfg_scale=1.0
    )
    model.logits = lambda x, t, y: -(x @ model.table.vectors().T).square()  # type: ignore[method-assign]
    result = sample(model, LABELS, settings, return_trajectory=True)
    assert result.trajectory is not None
    assert result.trajectory.dtype == torch.bfloat16
    assert result.trajectory.isfinite().all()


def test_autocast_keeps_states_in_float32() -> None:
    model = tiny().set_precision("autocast")
    settings = SamplerSettings(steps=6, soft_ratio=0.5, soft_top_k=0)
    result = sample(model, LABELS, settings, return_trajectory=True)
    assert result.trajectory is not None
    assert result.trajectory.dtype == torch.float32
    assert torch.allclose(result.trajectory[-1], model.embed(result.indices), atol=1e-6)
    exact = sample(tiny(), LABELS, settings, return_trajectory=True).trajectory
    assert exact is not None
    assert not torch.equal(result.trajectory[0], exact[0])  # the first step's logits were rounded
    assert torch.allclose(result.trajectory[0], exact[0], atol=0.1)


def test_training_state_is_left_alone(model: Mind) -> None:
    result = sample(model, LABELS, SamplerSettings(steps=2), return_trajectory=True)
    assert result.trajectory is not None
    assert not result.trajectory.requires_grad
    assert not result.trajectory.is_inference()
    assert torch.is_grad_enabled()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"labels": [0, 4]}, "labels must be in 0 .. 2 .or 3 for no class., got 0 .. 4"),
        ({"labels": [-1]}, "labels must be in 0 .. 2"),
        ({"labels": torch.zeros(2)}, "labels must be a list of class ids"),
        ({"labels": [0, 1], "noise": torch.zeros(2, 4, 7)}, r"noise must have shape \[2, 4, 8\], got \[2, 4, 7\]"),
        ({"labels": [0, 1], "indices": torch.arange(3)}, "one sample number for each of 2 labels"),
    ],
)
def test_refusals(model: Mind, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        sample(model, settings=SamplerSettings(steps=1), **arguments)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"schedul": "cosine"}, "sampler settings: schedul: Extra inputs"),
        ({"schedule": "cosin"}, "sampler settings: unknown schedule 'cosin'. Did you mean cosine"),
        ({"eta_mode": "kept"}, "sampler settings: eta_mode: Input should be 'keep', 'ddim_sigma' or 'fresh'"),
        ({"eta": 1.5}, "eta: Input should be less than or equal to 1"),
        ({"steps": 0}, "steps: Input should be greater than 0"),
        ({"topk_window": "all"}, "topk_window"),
        ({"cfg_t_min": 0.7}, r"cfg_t_min \(0.7\) must not exceed cfg_t_max \(0.6\)"),
        ({"cfg_scale": math.nan}, "cfg_scale"),
    ],
)
def test_settings_refuse(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        SamplerSettings(**fields)
    with pytest.raises(ValueError, match=message):
        SamplerSettings.model_validate(fields)


def test_settings_are_those_of_the_released_run() -> None:
    s = SamplerSettings()
    assert (s.steps, s.schedule, s.temp, s.top_k, s.top_p, s.eta) == (250, "linear", 0.99, 100, 0.8, 0.99)
    assert (s.cfg_scale, s.cfg_t_min, s.cfg_t_max, s.cfg_guidance_clip) == (3.0, 0.2, 0.6, 2.0)
    assert (s.soft_ratio, s.greedy_ratio, s.soft_top_k, s.topk_window) == (0.1, 0.1, 20, 200)
    assert (s.entropy, s.solver_order, s.init_mode, s.eta_mode) == (False, 1, "token1", "keep")
