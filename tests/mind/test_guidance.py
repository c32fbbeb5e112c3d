"""Guidance against two separate passes of the network: weights of the steps, the limit of the difference, hidden states."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from mind.config import MindConfig
from mind.guidance import guidance_weight, guided_logits, limited
from mind.network import Mind
from mind.settings import SamplerSettings

NULL = 3


@pytest.fixture(scope="module")
def model() -> Mind:
    torch.manual_seed(0)
    config = MindConfig(
        vocab_size=32, embed_dim=8, subvector_size=2, hidden_size=32, num_heads=2, num_blocks=2, cond_dim=16, num_classes=3,
        tokens=4,
    )  # fmt: skip
    model = Mind(config).eval()
    for parameter in model.parameters():  # fresh blocks are the identity and answer alike to every label
        torch.nn.init.normal_(parameter, std=0.3)
    return model


@pytest.fixture
def inputs() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(3, 4, 8, generator=generator), torch.tensor([0.1, 0.5, 0.9]), torch.tensor([2, 0, 1])


@contextmanager
def rows_read(model: Mind) -> Iterator[list[list[int]]]:
    """Collect the labels of every batch that the network reads."""
    seen: list[list[int]] = []
    hook = model.classes.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0].tolist()))
    yield seen
    hook.remove()


def weights(**fields: Any) -> list[float]:
    settings = SamplerSettings(**fields)
    return [guidance_weight(settings, i, 0.001 + 0.999 * i / settings.steps) for i in range(settings.steps)]


def test_released_interval_is_steps_50_to_150() -> None:
    guided = [i for i, w in enumerate(weights()) if w != 1]
    assert guided == list(range(50, 151))
    assert set(weights()) == {1.0, 3.0}


def test_interval_of_times() -> None:
    # Times are 0.001 + 0.0999 i: 0.1009, 0.2008, .. 0.6004, 0.7003; progress would give 2 .. 6.
    guided = [i for i, w in enumerate(weights(steps=10, interval_axis="t")) if w != 1]
    assert guided == [2, 3, 4, 5]
    # Noise times 0.999, 0.8991, ..: inside are 0.5994 (i=4), 0.4995, 0.3996, 0.2997; 0.1998 (i=8) is not.
    guided = [i for i, w in enumerate(weights(steps=10, interval_axis="t", time_convention="noise")) if w != 1]
    assert guided == [4, 5, 6, 7]


def test_smooth_weight_is_half_a_sine() -> None:
    smooth = weights(steps=100, smooth_cfg=True, cfg_t_min=0.2, cfg_t_max=0.6, cfg_scale=5.0)
    assert smooth[20] == smooth[60] == smooth[10] == 1.0
    assert smooth[40] == pytest.approx(5.0)
    assert [smooth[30], smooth[50]] == pytest.approx([1 + 4 * 0.5**0.5] * 2)
    assert weights(steps=4, smooth_cfg=True, cfg_t_min=0.5, cfg_t_max=0.5) == [1.0] * 4


def test_difference_is_limited_for_each_token() -> None:
    difference = (
        torch.randn(5, 4, 100, generator=torch.Generator().manual_seed(0)) * torch.linspace(0.5, 8, 5)[:, None, None]
    )
    size = difference.square().mean(-1).sqrt()
    cut = limited(difference, 2.0)
    small = size < 1.99
    assert small.any()
    assert (~small).any()
    assert torch.equal(cut[small], difference[small])
    assert (cut.square().mean(-1).sqrt() <= 2.0 + 1e-6).all()
    assert torch.allclose(cut.square().mean(-1).sqrt()[~small], torch.tensor(2.0), atol=1e-5)
    assert torch.allclose(torch.nn.functional.cosine_similarity(cut, difference, dim=-1), torch.tensor(1.0), atol=1e-6)
    assert limited(difference, 0.0) is difference


def test_limit_of_bfloat16_is_computed_in_float32() -> None:
    difference = torch.full((1, 1, 4096), 3.0, dtype=torch.bfloat16)
    assert torch.equal(limited(difference, 1.5), torch.full((1, 1, 4096), 1.5, dtype=torch.bfloat16))


@torch.no_grad()
def test_weight_1_is_the_conditional_pass_alone(model: Mind, inputs: tuple[Tensor, Tensor, Tensor]) -> None:
    with rows_read(model) as seen:
        logits = guided_logits(model, *inputs, 1.0, SamplerSettings())
    assert seen == [[2, 0, 1]]
    assert torch.equal(logits, model.logits(*inputs))


@torch.no_grad()
@pytest.mark.parametrize("clip", [0.0, 0.7, 2.0])
def test_logits_guidance(model: Mind, inputs: tuple[Tensor, Tensor, Tensor], clip: float) -> None:
    x, t, labels = inputs
    with rows_read(model) as seen:
        logits = guided_logits(model, x, t, labels, 2.5, SamplerSettings(cfg_guidance_clip=clip))
    assert seen == [[2, 0, 1, NULL, NULL, NULL]]
    given, null = model.logits(x, t, labels), model.logits(x, t, torch.full((3,), NULL))
    expected = null.clone()
    shrunk = 0
    for b in range(3):
        for i in range(4):
            difference = (given - null)[b, i]
            rms = float(difference.square().mean().sqrt())
            factor = min(1.0, clip / (rms + 1e-6)) if clip else 1.0
            shrunk += factor < 1
            expected[b, i] += 2.5 * factor * difference
    assert shrunk == {0.0: 0, 0.7: 12}.get(clip, shrunk)
    assert torch.allclose(logits, expected, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("point", ["before_last_block", "after_last_block"])
def test_feature_guidance(model: Mind, inputs: tuple[Tensor, Tensor, Tensor], point: str) -> None:
    x, t, labels = inputs
    settings = SamplerSettings(guidance_space="feature", feature_point=point)
    states: list[Tensor] = []
    watched = model.blocks[0 if point == "before_last_block" else 1]
    hook = watched.register_forward_hook(lambda _, arguments, output: states.append(output))
    _, cond = model(x, t, labels)
    model(x, t, torch.full((3,), NULL))
    hook.remove()
    given, null = states
    hidden = null + 2.5 * (given - null)
    if point == "before_last_block":
        hidden = model.run_blocks(hidden, cond, first=1)
    logits = guided_logits(model, x, t, labels, 2.5, settings)
    assert torch.allclose(logits, model.output(hidden, cond), atol=1e-4)
    assert not torch.allclose(logits, guided_logits(model, x, t, labels, 2.5, SamplerSettings()), atol=0.1)
