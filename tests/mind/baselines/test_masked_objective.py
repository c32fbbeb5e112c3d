"""The loss of masked generators: against a loop over tokens, and as an exact bound on the likelihood of a known distribution."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from mind.baselines.categorical_head import CategoricalHead
from mind.baselines.masked_config import MaskedConfig, MaskSchedule
from mind.baselines.masked_network import MaskedTransformer
from mind.baselines.masked_objective import MaskedNoise, MaskedObjective, draw_noise

TINY = {"tokens": 4, "num_classes": 2, "width": 16, "depth": 2, "heads": 2, "class_tokens": 1, "t_min": 0.0}
CODES = {**TINY, "vocab_size": 3}
LATENTS = {**TINY, "in_channels": 2, "head_depth": 1, "head_width": 8, "head_copies": 2}
PLACES = torch.arange(6)
LABELS = torch.tensor([0, 1, 2, 0, 1, 2])


def objective(fields: dict[str, Any], **more: Any) -> MaskedObjective:
    torch.manual_seed(0)
    model = MaskedTransformer(MaskedConfig(**{**fields, **more}))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return MaskedObjective(model)


def draw(target: MaskedObjective, seed: int, stream: str, places: Tensor, step: int) -> MaskedNoise:
    return draw_noise(target.model.config, seed, stream, places, step)


def codes() -> Tensor:
    return torch.randint(3, (6, 4), generator=torch.Generator().manual_seed(1))


def weight(schedule: str, t: float) -> float:
    if schedule == "cosine":
        return math.pi / 2 * math.tan(math.pi / 2 * (1 - t))
    return {"linear": 1 / t, "exp": 5 * math.exp(-5 * t) / (1 - math.exp(-5 * t))}[schedule]


def share(schedule: str, t: float) -> float:
    return {"linear": t, "cosine": math.cos(math.pi / 2 * (1 - t)), "exp": 1 - math.exp(-5 * t)}[schedule]


@pytest.mark.parametrize("schedule", ["linear", "cosine", "exp"])
@pytest.mark.parametrize(
    ("masking", "weighting", "average"),
    [("independent", "mdm", "all"), ("independent", "one", "masked"), ("exact", "one", "all")],
)
def test_loss_of_codes_equals_a_loop(schedule: str, masking: str, weighting: str, average: str) -> None:
    fields = {"schedule": schedule, "masking": masking, "weighting": weighting, "average": average}
    target = objective(CODES, **fields)
    drawn, data, total = draw(target, 0, "train", PLACES, 5), codes(), 0.0
    for i in range(6):
        t = float(drawn.t[i])
        if masking == "exact":
            first = sorted(range(4), key=lambda j, i=i: float(drawn.places[i, j]))
            masked = set(first[: math.ceil(4 * share(schedule, t))])
        else:
            masked = {j for j in range(4) if float(drawn.places[i, j]) < share(schedule, t)}
        mask = torch.tensor([[j in masked for j in range(4)]])
        model = target.model
        with torch.no_grad():
            logits = model.head(model(data[i : i + 1], mask, LABELS[i : i + 1]))[0]
        surprise = sum(-float(logits[j].log_softmax(-1)[data[i, j]]) for j in masked)
        part = surprise / (max(len(masked), 1) if average == "masked" else 4)
        total += part * (weight(schedule, t) if weighting == "mdm" else 1) / 6
    terms = target(data, LABELS, drawn)
    assert float(terms["loss"].detach()) == pytest.approx(total, rel=1e-4)
    assert float(terms["ce"]) == pytest.approx(total, rel=1e-4)


JOINT = torch.tensor([[0.30, 0.05, 0.05], [0.02, 0.20, 0.08], [0.10, 0.05, 0.15]], dtype=torch.float64)
"""p(x_0, x_1) of two tokens."""


class Exact(MaskedTransformer):
    """Answers with the conditionals of `JOINT` as hidden states; the head passes them on."""

    def __init__(self) -> None:
        super().__init__(MaskedConfig(**{**CODES, "tokens": 2, "width": 4, "mae": False}))
        self.head = Passing(self.config)

    def forward(self, tokens: Tensor, masked: Tensor, labels: Tensor) -> Tensor:
        rows = JOINT / JOINT.sum(1, keepdim=True)  # p(x_1 | x_0)
        columns = (JOINT / JOINT.sum(0)).T  # p(x_0 | x_1)
        first = torch.where(masked[:, 1:], JOINT.sum(1), columns[tokens[:, 1]])
        second = torch.where(masked[:, :1], JOINT.sum(0), rows[tokens[:, 0]])
        return torch.stack([first, second], dim=1).log()


class Passing(CategoricalHead):
    def forward(self, z: Tensor) -> Tensor:
        return z.float()


GAMMA = {
    "linear": lambda t: t,
    "cosine": lambda t: math.cos(math.pi / 2 * (1 - t)),
    "log_exp": lambda t: math.log(1 + (math.exp(5) - 1) * t) / 5,
}


@pytest.mark.parametrize("schedule", ["linear", "cosine", "log_exp"])
def test_mdm_loss_of_the_exact_model_is_the_entropy(schedule: MaskSchedule) -> None:
    """The weighted integral averages -log p over all orders of revealing, each of which sums to -log p(x_0, x_1).

    Nothing is random here: data in the shares of `JOINT`, all masks with their probabilities, Gauss-Legendre over x, t = x^2.
    """
    model = Exact()
    model.config = model.config.model_copy(update={"schedule": schedule, "weighting": "mdm"})
    pairs = [(a, b) for a in range(3) for b in range(3) for _ in range(round(100 * float(JOINT[a, b])))]
    data, labels, integral = torch.tensor(pairs), torch.zeros(100, dtype=torch.long), 0.0
    for node, width in zip(*np.polynomial.legendre.leggauss(40), strict=True):
        x = (node + 1) / 2
        for mask in ([True, True], [True, False], [False, True]):
            places = torch.where(torch.tensor(mask), 0.0, 1.0).expand(100, 2)
            drawn = MaskedNoise(torch.full((100,), x * x), places, None, None, 0)
            loss = float(MaskedObjective(model)(data, labels, drawn)["loss"])
            gamma = GAMMA[schedule](x * x)
            integral += width / 2 * 2 * x * 2 * loss * (gamma**2 if all(mask) else gamma * (1 - gamma))
    assert integral == pytest.approx(-float((JOINT * JOINT.log()).sum()), rel=1e-5)


def test_diffusion_loss_equals_a_loop() -> None:
    target = objective(LATENTS)
    model = target.model
    data = torch.randn(6, 4, 2, generator=torch.Generator().manual_seed(2))
    drawn = draw(target, 0, "train", PLACES, 0)
    assert drawn.steps is not None and drawn.eps is not None
    masked = drawn.places < (1 - torch.exp(-5 * drawn.t))[:, None]
    z = model(data, masked, LABELS).detach()
    sums = [0.0, 0.0]
    for i, j in masked.nonzero().tolist():
        for k in range(2):
            one = slice(k, k + 1)
            losses = model.head.losses(z[i, j][None], data[i, j][None], drawn.steps[i, j, one], drawn.eps[i, j, one])
            for term in range(2):
                sums[term] += float(losses[term].detach()) / (6 * 4 * 2)
    terms = target(data, LABELS, drawn)
    assert [float(terms["mse"]), float(terms["vlb"])] == pytest.approx(sums, rel=1e-4)
    assert float(terms["loss"].detach()) == pytest.approx(sum(sums), rel=1e-4)


@pytest.mark.parametrize("fields", [CODES, LATENTS])
def test_what_is_drawn_depends_on_the_place_only(fields: dict[str, Any]) -> None:
    target = objective(fields, t_min=0.2)
    whole, part = draw(target, 3, "train", PLACES, 7), draw(target, 3, "train", PLACES[2:4], 7)
    for a, b in zip(whole[:-1], part[:-1], strict=True):
        assert (a is None and b is None) or torch.equal(a[2:4], b)
    assert float(whole.t.min()) >= 0.2
    assert not torch.equal(whole.t, draw(target, 3, "train", PLACES, 8).t)


def test_steps_of_the_head_cover_all_levels() -> None:
    steps = draw(objective(LATENTS), 0, "train", torch.arange(2000), 0).steps
    assert steps is not None
    assert (int(steps.min()), int(steps.max())) == (0, 999)
    assert float(steps.float().mean()) == pytest.approx(499.5, abs=10)


def test_logits_in_parts_give_the_same_loss_and_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    target, data = objective(CODES), codes()
    results = []
    for chunk, recompute in ((8192, "nothing"), (5, "nothing"), (5, "blocks")):
        monkeypatch.setattr("mind.baselines.categorical_head._CHUNK", chunk)
        target.model.recompute = recompute  # type: ignore[assignment]
        target.zero_grad()
        loss = target(data, LABELS, draw(target, 0, "train", PLACES, 0))["loss"]
        loss.backward()
        results.append((loss.detach(), target.model.head.linear.weight.grad.clone()))  # type: ignore[union-attr]
    torch.testing.assert_close(results[0], results[1])
    torch.testing.assert_close(results[1], results[2])


def test_dropout_is_of_the_step_not_of_what_ran_before() -> None:
    target, data = objective(CODES, dropout=0.5), codes()
    drawn = draw(target, 0, "train", PLACES, 0)
    first = target(data, LABELS, drawn)["loss"].detach()
    state = torch.get_rng_state()
    assert torch.equal(first, target(data, LABELS, drawn)["loss"].detach())
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(first, target(data, LABELS, draw(target, 0, "train", PLACES, 1))["loss"].detach())
    target.eval()
    assert not torch.equal(first, target(data, LABELS, drawn)["loss"].detach())


def test_dropout_is_of_the_part_of_a_step() -> None:
    """The one thing that depends on ranks and accumulated parts: its numbers are drawn for all images of a part at once."""
    target = objective(CODES, dropout=0.5)
    whole, first, second = (draw(target, 0, "train", places, 0) for places in (PLACES, PLACES[:3], PLACES[3:]))
    assert whole.dropout_seed == first.dropout_seed != second.dropout_seed


@pytest.mark.parametrize("recompute", ["cheap", "blocks"])
def test_recomputed_blocks_drop_the_same_numbers(recompute: Any) -> None:
    target, data, gradients = objective(CODES, dropout=0.5), codes(), []
    for chosen in ("nothing", recompute):
        target.model.recompute = chosen
        target.zero_grad()
        target(data, LABELS, draw(target, 0, "train", PLACES, 0))["loss"].backward()
        gradients.append([p.grad.clone() for p in target.model.parameters() if p.grad is not None])
    for plain, again in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, again)


def test_an_image_without_masked_tokens_costs_nothing() -> None:
    target = objective(CODES, average="masked")
    drawn = MaskedNoise(torch.full((6,), 1e-6), torch.full((6, 4), 0.5), None, None, 0)
    assert float(target(codes(), LABELS, drawn)["loss"].detach()) == 0
