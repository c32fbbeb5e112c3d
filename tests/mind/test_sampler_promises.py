"""What the sampler promises: independence of the batch, counted evaluations, precision, clear refusals."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from latentlab.errors import UserError
from mind import noise
from mind.network import Mind
from mind.sampler import sample
from mind.settings import SamplerSettings

NULL = 3
LABELS = [2, 0, 1]


@pytest.mark.parametrize("eta_mode", ["keep", "fresh", "ddim_sigma"])
@pytest.mark.parametrize("eta", [0.0, 0.6, 0.99, 1.0])
def test_right_estimates_keep_the_variance_of_the_noise(
    monkeypatch: pytest.MonkeyPatch, eta: float, eta_mode: Any, tiny: Any
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


def test_share_of_fresh_noise(monkeypatch: pytest.MonkeyPatch, tiny: Any) -> None:
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
    start = noise.normal(3, "sampler/initial", torch.arange(3), 0, (4, 8))
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


def test_released_run_takes_351_evaluations(monkeypatch: pytest.MonkeyPatch, tiny: Any) -> None:
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


def test_times_are_rounded_like_the_rotary_tables(tiny: Any) -> None:
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
def test_repeated_times_in_bfloat16_do_no_harm(schedule: str, eta_mode: Any, tiny: Any) -> None:
    model = tiny().set_precision("released_bf16")
    settings = SamplerSettings(
        steps=250, schedule=schedule, eta_mode=eta_mode, timestep_dtype="bfloat16", cfg_scale=1.0
    )
    model.logits = lambda x, t, y: -(x @ model.table.vectors().T).square()  # type: ignore[method-assign]
    result = sample(model, LABELS, settings, return_trajectory=True)
    assert result.trajectory is not None
    assert result.trajectory.dtype == torch.bfloat16
    assert result.trajectory.isfinite().all()


def test_autocast_keeps_states_in_float32(tiny: Any) -> None:
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
        ({"schedul": "cosine"}, "sampler settings: unknown key 'schedul'. Did you mean schedule"),
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
