"""Guidance: which time has how much, what it combines, and how often the network is asked."""

from typing import Any

import pytest
import torch
from torch import Tensor

from latentlab.errors import UserError
from mind.baselines.ddpm_sampler import DdpmSamplerSettings
from mind.baselines.flow_sampler import FlowSamplerSettings
from mind.baselines.guidance import GuidanceSettings, Guided
from mind.baselines.transformer_config import TransformerConfig

LABELS = torch.tensor([0, 1])


class Linear:
    """Channel k of the answer is (k+1)(x + t + label) for a class, and k for no class; ``out`` channels."""

    device = torch.device("cpu")

    def __init__(self, out: int = 4, **fields: Any) -> None:
        self.config = TransformerConfig(**{"input": (2, 2), "num_classes": 3, **fields})
        self.seen: list[int] = []
        self.out = out

    def __call__(self, x: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        self.seen.append(len(x))
        axis = 1 if x.ndim == 4 else 2
        rows = []
        for latent, time, label in zip(x, t, labels, strict=True):
            base = latent.select(axis - 1, 0) + time + label
            channels = [torch.full_like(base, k) if label == 3 else (k + 1) * base for k in range(self.out)]
            rows.append(torch.stack(channels, axis - 1))
        return torch.stack(rows)


def test_scale_1_is_the_conditional_pass_alone() -> None:
    model = Linear()
    guided = Guided(model, LABELS, GuidanceSettings(cfg_scale=1))
    x = torch.randn(2, 4, 2, 2)
    assert torch.equal(guided(x, 0.3, 0.3), model(x, torch.tensor([0.3, 0.3]), LABELS))
    assert (model.seen, guided.evaluations) == ([2, 2], 1)


@pytest.mark.parametrize("layout", ["grid", "sequence"])
@pytest.mark.parametrize(("channels", "out"), [(None, 4), (3, 4), (3, 8), (None, 8), (9, 4)])
def test_guided_channels_are_combined_and_the_others_conditional(layout: str, channels: int | None, out: int) -> None:
    fields: dict[str, Any] = {} if layout == "grid" else {"input": None, "tokens": 4, "patch": 1}
    model = Linear(out, **fields)
    guided = Guided(model, LABELS, GuidanceSettings(cfg_scale=2.5, cfg_channels=channels))
    x = torch.randn(2, *model.config.latent_shape)
    answer = guided(x, 0.5, 700.0)
    axis = 1 if layout == "grid" else 2
    given = model(x, torch.tensor([700.0, 700.0]), LABELS)
    assert answer.shape == given.shape
    for k in range(out):
        one = given.select(axis, k)
        expected = k + 2.5 * (one - k) if k < min(channels or 4, 4) else one
        torch.testing.assert_close(answer.select(axis, k), expected)
    assert (model.seen[0], guided.evaluations) == (4, 2)


def test_interval_is_inclusive_and_counts_from_either_end() -> None:
    data = GuidanceSettings(cfg_scale=3, cfg_t_min=0.25, cfg_t_max=0.5)
    assert [data.weight(t) for t in (0.0, 0.24, 0.25, 0.4, 0.5, 0.51, 1.0)] == [1, 1, 3, 3, 3, 1, 1]
    noise = GuidanceSettings(cfg_scale=3, cfg_t_min=0, cfg_t_max=0.75, time_convention="noise")
    assert [noise.weight(t) for t in (0.0, 0.2, 0.25, 1.0)] == [1, 1, 3, 3]


@pytest.mark.parametrize(
    ("settings", "fields", "problem"),
    [
        (FlowSamplerSettings, {"cfg_t_min": 0.6, "cfg_t_max": 0.5}, r"flow .*cfg_t_min \(0.6\) must not exceed"),
        (FlowSamplerSettings, {"cfg_sclae": 2}, "flow sampler settings: unknown key 'cfg_sclae'"),
        (FlowSamplerSettings, {"solver": "dopri5"}, "solver"),
        (FlowSamplerSettings, {"steps": 0}, "steps"),
        (FlowSamplerSettings, {"sde_last_step": 1.0}, "sde_last_step"),
        (DdpmSamplerSettings, {"steps": 1001}, "DDPM sampler settings: steps"),
        (DdpmSamplerSettings, {"eta": 1.5}, "eta"),
        (DdpmSamplerSettings, {"cfg_scale": float("nan")}, "cfg_scale"),
    ],
)
def test_bad_settings_are_named(settings: type[GuidanceSettings], fields: dict[str, Any], problem: str) -> None:
    with pytest.raises(UserError, match=problem):
        settings(**fields)


def test_settings_survive_json() -> None:
    for settings in (FlowSamplerSettings(solver="sde", cfg_channels=3), DdpmSamplerSettings(solver="ddim", eta=0.5)):
        assert type(settings).model_validate_json(settings.model_dump_json()) == settings
