"""The straight path, its training times and the velocity loss, against hand numbers and closed forms."""

import math

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from mind.baselines.flow import FlowLoss, FlowObjective, drawn_times, flow_loss, interpolate
from mind.baselines.transformer import LatentTransformer
from mind.baselines.transformer_config import TransformerConfig


def model_of(**fields: object) -> LatentTransformer:
    torch.manual_seed(0)
    config = {"depth": 1, "width": 16, "heads": 2, "num_classes": 3, "input": (4, 4), "in_channels": 3, **fields}
    model = LatentTransformer(TransformerConfig.model_validate(config))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


def batch(shape: tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    source = torch.Generator().manual_seed(1)
    data, eps = torch.randn(2, *shape, generator=source), torch.randn(2, *shape, generator=source)
    return data, torch.tensor([2, 3]), torch.tensor([0.2, 0.7]), eps


def test_path_goes_from_noise_to_data() -> None:
    data, _, t, eps = batch((3, 4, 4))
    assert torch.equal(interpolate(data, eps, torch.zeros(2)), eps)
    assert torch.equal(interpolate(data, eps, torch.ones(2)), data)
    middle = interpolate(data, eps, t)
    torch.testing.assert_close(middle[1], 0.3 * eps[1] + 0.7 * data[1])


def test_uniform_times_are_the_numbers_themselves() -> None:
    u = torch.rand(5)
    assert torch.equal(drawn_times(u, FlowLoss()), u)


def test_logit_normal_times_have_its_quantiles() -> None:
    """The logit of the time is normal: at the quantiles of 1/2 and Phi(1) it is the mean and mean + std."""
    loss = FlowLoss(times="logit_normal", logit_mean=-0.5, logit_std=2.0)
    u = torch.tensor([0.5, 0.8413447460685429, 1 - 0.9772498680518208])
    expected = [1 / (1 + math.exp(-m)) for m in (-0.5, 1.5, -4.5)]
    torch.testing.assert_close(drawn_times(u, loss), torch.tensor(expected), rtol=1e-5, atol=0)
    ends = drawn_times(torch.tensor([2.0**-24, 1 - 2.0**-24]), FlowLoss(times="logit_normal", logit_std=1.0))
    assert 0 < float(ends[0]) < 0.01 and 0.99 < float(ends[1]) < 1


def test_published_losses() -> None:
    assert flow_loss("sit") == FlowLoss(times="uniform", cosine_weight=0)
    light = flow_loss("lightningdit")
    assert (light.times, light.logit_mean, light.logit_std, light.cosine_weight) == ("logit_normal", 0, 1, 1)
    assert flow_loss("lightningdit", cosine_weight=0.5).cosine_weight == 0.5
    with pytest.raises(ValidationError, match="times"):
        FlowLoss(times="cosine")  # type: ignore[arg-type]


@pytest.mark.parametrize("layout", ["grid", "sequence", "unused channels"])
def test_loss_equals_loops_over_places(layout: str) -> None:
    fields = {"grid": {}, "sequence": {"input": None, "tokens": 4}, "unused channels": {"learn_sigma": True}}[layout]
    model = model_of(**fields)
    data, labels, t, eps = batch(model.config.latent_shape)
    terms = FlowObjective(model, FlowLoss(cosine_weight=0.25))(data, labels, t, eps)
    with torch.no_grad():
        velocity = model(interpolate(data, eps, t), t, labels)
    if layout != "sequence":  # places last, channels before
        data, eps, velocity = (x.movedim(1, -1) for x in (data, eps, velocity))
    squared, cosines = [], []
    for b in range(2):
        for place in (
            torch.cartesian_prod(*(torch.arange(s) for s in data.shape[1:-1])).view(-1, data.ndim - 2).tolist()
        ):
            target = [float(v) for v in (data - eps)[b][tuple(place)]]
            got = [float(v) for v in velocity[b][tuple(place)]][:3]
            squared += [(a - c) ** 2 for a, c in zip(target, got, strict=True)]
            dot = sum(a * c for a, c in zip(target, got, strict=True))
            cosines.append(1 - dot / math.hypot(*target) / math.hypot(*got))
    mse, cosine = sum(squared) / len(squared), sum(cosines) / len(cosines)
    assert float(terms["mse"]) == pytest.approx(mse, rel=1e-5)
    assert float(terms["cosine"]) == pytest.approx(cosine, rel=1e-5)
    assert float(terms["loss"].detach()) == pytest.approx(mse + 0.25 * cosine, rel=1e-5)
    assert terms["loss"].requires_grad and not terms["mse"].requires_grad


def test_cosine_is_absent_without_weight() -> None:
    model = model_of()
    terms = FlowObjective(model, flow_loss("sit"))(*batch((3, 4, 4)))
    assert set(terms) == {"loss", "mse"}


def test_training_lowers_the_loss_towards_the_closed_form() -> None:
    """Data are one constant m: the best velocity at (x, t) is (m - x)/(1 - t), whose loss is 0, while 0 has the loss 1 + m^2."""
    torch.manual_seed(0)
    config = TransformerConfig(depth=1, width=32, heads=2, num_classes=1, input=None, tokens=2, patch=1, in_channels=1)
    model = LatentTransformer(config)
    objective = FlowObjective(model, flow_loss("sit"))
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-2)
    source, values = torch.Generator().manual_seed(2), []
    labels = torch.zeros(64, dtype=torch.int64)
    for _ in range(60):
        t = 0.9 * torch.rand(64, generator=source)
        eps = torch.randn(64, 2, 1, generator=source)
        terms = objective(torch.full((64, 2, 1), 1.5), labels, t, eps)
        optimiser.zero_grad()
        terms["loss"].backward()
        optimiser.step()
        values.append(float(terms["mse"]))
        if len(values) == 1:  # a fresh network answers 0
            assert values[0] == pytest.approx(float((1.5 - eps).square().mean()), rel=1e-5)
    assert sum(values[-5:]) / 5 < 0.25
