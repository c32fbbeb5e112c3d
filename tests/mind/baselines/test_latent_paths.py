"""The paths of flows and of DDIM for Gaussian data, which are known, and the frame that makes both the same.

Data N(mu, s^2), noise N(0, 1). In the frame of the straight path y = (1-tau) eps + tau z has variance
V = (1-tau)^2 + tau^2 s^2 and the velocity mu + (tau s^2 - (1-tau))/V (y - tau mu); its path from y_0 at tau = 0 is
tau mu + sqrt(V) y_0.
"""

import math
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from torch import Tensor

from analyses.irreducible import gaussian_length_ratio, integrated_variance, velocity_variance
from analyses.straightness import straightness
from latentlab.errors import UserError
from latentlab.latents import TokenizerSpec
from latentlab.measurement import Measurement
from latentlab.store import LatentStore, StoreWriter
from latentlab.tokenizers import load_tokenizer
from latentlab.trajectories import measure_paths
from mind import noise
from mind.baselines.ddpm_sampler import DdpmSamplerSettings
from mind.baselines.flow_sampler import FlowSamplerSettings
from mind.baselines.latents import Affine
from mind.baselines.paths import DdpmPaths, FlowPaths
from mind.baselines.transformer_config import TransformerConfig
from mind.paths import PathGenerator

BETAS = [1e-4 + (2e-2 - 1e-4) * i / 999 for i in range(1000)]
ABAR = [math.prod(1 - b for b in BETAS[: k + 1]) for k in range(1000)]


class Gaussian:
    """The exact velocity, or DDPM noise, of normal channels; every class has the same data."""

    device = torch.device("cpu")

    def __init__(self, mean: list[float], spread: list[float], kind: str = "sit") -> None:
        self.mean, self.spread = torch.tensor(mean), torch.tensor(spread)
        self.config = TransformerConfig(
            kind=kind, tokens=1, in_channels=len(mean), patch=1, num_classes=3, width=8, heads=1, learn_sigma=False
        )

    def velocity(self, y: Tensor, tau: Tensor) -> Tensor:
        variance = (1 - tau) ** 2 + tau**2 * self.spread**2
        return self.mean + (tau * self.spread**2 - (1 - tau)) / variance * (y - tau * self.mean)

    def __call__(self, x: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        t = t[:, None, None]
        if self.config.kind == "sit":
            return self.velocity(x, t)
        abar = torch.tensor([ABAR[int(step)] for step in t.flatten()]).view(t.shape)
        variance = abar * self.spread**2 + 1 - abar
        return (1 - abar).sqrt() * (x - abar.sqrt() * self.mean) / variance


def starts(n: int, channels: int, seed: int = 0) -> np.ndarray:
    return noise.normal(seed, "sampler/initial", torch.arange(n), 0, (1, channels)).double().numpy()


def states(paths: PathGenerator, n: int, seed: int = 0) -> np.ndarray:
    seen: list[Tensor] = []
    paths.walk(torch.zeros(n, dtype=torch.int64), torch.arange(n), seed, lambda state: seen.append(state.clone()))
    return torch.stack(seen).double().numpy()


def measured(paths: PathGenerator, n: int = 6) -> Measurement:
    return measure_paths(paths, torch.zeros(n, dtype=torch.int64))


def exact(times: np.ndarray, mean: list[float], spread: list[float], n: int) -> np.ndarray:
    t, mu, s = times[:, None, None, None], np.array(mean), np.array(spread)
    return t * mu + np.sqrt((1 - t) ** 2 + t**2 * s**2) * starts(n, len(mean))


def test_centred_data_shrink_and_grow_again_on_a_line() -> None:
    """All channels alike and mean 0: the state is sqrt(V) y_0, smallest at 1/(1+s^2) = 0.8, where the path turns once."""
    found = measured(FlowPaths(Gaussian([0.0] * 3, [0.5] * 3), FlowSamplerSettings(solver="heun", steps=40)))
    assert found.variant == "40 steps, even times, mean over paths"
    assert found.value == pytest.approx(1 - 2 / 39, abs=1e-6)
    smallest = 0.5 / math.sqrt(1.25)
    assert found.companions["efficiency"].value == pytest.approx(0.5 / (1.5 - 2 * smallest), abs=5e-4)
    radius = np.sqrt(np.linspace(1, 0, 41) ** 2 + 0.25 * np.linspace(0, 1, 41) ** 2)
    np.testing.assert_allclose(found.details["length_ratio"], np.abs(np.diff(radius)) * 40 / 0.5, atol=5e-3)


def test_curved_paths_against_the_closed_form() -> None:
    mean, spread = [0.5, -2.0, 1.0], [0.3, 1.7, 0.05]
    settings = FlowSamplerSettings(solver="heun", steps=50, time_shift=0.6)
    paths = FlowPaths(Gaussian(mean, spread), settings)
    times = np.array(paths.times)
    truth = straightness(trajectory=exact(times, mean, spread, 8), times=times)
    found = measured(paths, 8)
    assert truth.companions["efficiency"].value < 0.99  # really curved
    assert 1 - found.value == pytest.approx(1 - truth.value, rel=0.03)
    assert found.companions["efficiency"].value == pytest.approx(truth.companions["efficiency"].value, abs=2e-3)
    np.testing.assert_allclose(found.details["t"], truth.details["t"])
    np.testing.assert_allclose(found.details["length_ratio"], truth.details["length_ratio"], rtol=0.02)


def test_euler_and_heun_come_to_the_same_straightness() -> None:
    """Euler's corners are those of the path it follows; at first order it is off by the size of a step."""
    values = [
        measured(
            FlowPaths(Gaussian([1.0, -1.0], [0.2, 0.8]), FlowSamplerSettings(solver=solver, steps=steps)), 12
        ).value
        for solver, steps in (("heun", 200), ("euler", 200), ("euler", 50))
    ]
    assert values[1] == pytest.approx(values[0], abs=1e-4)
    # corners: angles shrink with the step, so 1 - cos falls with its square
    assert (1 - values[2]) / (1 - values[1]) == pytest.approx(16, rel=0.25)


@pytest.mark.parametrize("steps", [3, 50, 1000])
def test_a_single_datum_is_reached_straight_by_ddim(steps: int) -> None:
    """The noise is known from the beginning: 1 in everything, though the raw states of DDPM turn by a right angle."""
    paths = DdpmPaths(Gaussian([3.0, -2.0], [0.0, 0.0], "dit"), DdpmSamplerSettings(solver="ddim", steps=steps))
    found = measured(paths)
    assert found.value == pytest.approx(1, abs=1e-4)
    assert found.companions["efficiency"].value == pytest.approx(1, abs=1e-4)
    np.testing.assert_allclose(found.details["length_ratio"], 1, atol=0.01)
    scale = math.sqrt(ABAR[999]) + math.sqrt(1 - ABAR[999])
    np.testing.assert_allclose(states(paths, 4)[0], starts(4, 2) / scale, rtol=1e-6)


def test_ddim_is_euler_on_the_flow() -> None:
    mean, spread = [0.5, -2.0], [0.3, 1.7]
    paths = DdpmPaths(Gaussian(mean, spread, "dit"), DdpmSamplerSettings(solver="ddim", steps=30))
    assert len(paths.times) == 31 and paths.times[-1] == 1 and 0.005 < paths.times[0] < 0.007
    got, flow = states(paths, 5), Gaussian(mean, spread)
    y = torch.from_numpy(got[0])
    for i in range(30):
        t, u = (torch.tensor(paths.times[j], dtype=torch.float64) for j in (i, i + 1))
        y = y + (u - t) * flow.velocity(y, t)
        np.testing.assert_allclose(got[i + 1], y.numpy(), atol=2e-5)


@pytest.mark.parametrize("spectrum", [[0.25] * 40, [0.01] * 20 + [0.5] * 20, [4.0] * 20 + [0.3] * 20, [0.02] * 40])
@pytest.mark.parametrize("centre", [0.0, 0.7])
def test_steps_are_short_where_the_velocity_is_ambiguous(spectrum: list[float], centre: float) -> None:
    """E|dx/dt|^2 = E|x_1 - x_0|^2 - I(t) of independent ends, and the length ratios that follow from it."""
    d, lam = len(spectrum), np.array(spectrum)
    paths = FlowPaths(Gaussian([centre] * d, np.sqrt(lam).tolist()), FlowSamplerSettings(solver="heun", steps=60))
    walked, middle = states(paths, 300), (np.arange(60) + 0.5) / 60
    speed = (np.diff(walked, axis=0) * 60).reshape(60, 300, d)
    ambiguous = velocity_variance(lam, middle)
    energy = float(d * centre**2 + lam.sum() + d)
    np.testing.assert_allclose((speed**2).sum(2).mean(1) + ambiguous, energy, rtol=0.03)
    found = measured(paths, 300).details["length_ratio"]
    expected = gaussian_length_ratio(energy, ambiguous, integrated_variance(lam))
    np.testing.assert_allclose(found, expected, rtol=0.04, atol=0.04)
    assert np.corrcoef(found, ambiguous)[0, 1] < -0.9


def test_ddim_is_as_straight_as_the_closed_form() -> None:
    mean, spread = [1.0, -1.0, 0.0], [0.2, 0.8, 0.5]
    paths = DdpmPaths(Gaussian(mean, spread, "dit"), DdpmSamplerSettings(solver="ddim", steps=500))
    times = np.array(paths.times)
    truth = straightness(trajectory=exact(times, mean, spread, 10), times=times)
    found = measured(paths, 10)
    assert 1 - found.value == pytest.approx(1 - truth.value, rel=0.1)
    assert found.companions["efficiency"].value == pytest.approx(truth.companions["efficiency"].value, abs=5e-3)


def test_facts_say_which_sampler_and_where() -> None:
    paths = FlowPaths(Gaussian([0.0], [1.0]), facts={"weights_sha256": "abc"})
    assert paths.facts()["weights_sha256"] == "abc" and paths.facts()["sampler"]["steps"] == 50
    assert (paths.num_classes, paths.device, paths.batch_size) == (3, "cpu", 1 << 15)
    assert DdpmPaths(Gaussian([0.0], [1.0], "dit")).facts()["sampler"]["solver"] == "ddim"


@pytest.mark.parametrize(
    ("kind", "settings", "words"),
    [
        (
            FlowPaths,
            FlowSamplerSettings(solver="sde"),
            "solver=sde draws some on the way. Set solver=euler or solver=heun",
        ),
        (DdpmPaths, DdpmSamplerSettings(), "solver=ancestral, eta=0. Set solver=ddim, eta=0"),
        (DdpmPaths, DdpmSamplerSettings(solver="ddim", eta=0.5), "solver=ddim, eta=0.5. Set solver=ddim, eta=0"),
    ],
)
def test_samplers_that_draw_on_the_way_are_refused(kind: type, settings: object, words: str) -> None:
    with pytest.raises(UserError, match=words):
        kind(Gaussian([0.0], [1.0]), settings)


def store(path: Path, latents: Tensor, layout: Literal["grid", "sequence"]) -> LatentStore:
    spec = TokenizerSpec(name="ae", release="r", kind="continuous", layout=layout, channels=2)
    writer = StoreWriter(path, request={}, spec=spec, dtype="float32")
    writer.append(latents, labels=np.arange(len(latents)) % 2)
    return writer.finish()


def test_latents_are_scaled_as_in_training(tmp_path: Path) -> None:
    latents = torch.randn(6, 5, 2, generator=torch.Generator().manual_seed(0))  # [n,l,c]
    opened = store(tmp_path / "tokens", latents, "sequence")
    model = Gaussian([0.0, 0.0], [1.0, 1.0])
    model.config = model.config.model_copy(update={"tokens": 5})
    scaled = FlowPaths(model, affine=Affine((1.0, -1.0), (0.5, 2.0))).latents(opened)
    expected = (latents - torch.tensor([1.0, -1.0])) / torch.tensor([2.0, 0.5])
    torch.testing.assert_close(scaled.take(np.array([4, 1])), expected[[4, 1]].transpose(1, 2))
    as_they_are = FlowPaths(model).latents(opened)
    assert torch.equal(as_they_are.take(slice(0, 6)), latents.transpose(1, 2))
    assert len({scaled.fingerprint, as_they_are.fingerprint, opened.fingerprint}) == 3
    assert scaled.n == 6 and scaled.labels is not None
    one_for_all = FlowPaths(model, affine=Affine((1.0,), (0.5,))).latents(opened)  # as tokenizers publish them
    torch.testing.assert_close(one_for_all.take(slice(0, 6)), ((latents - 1) / 2).transpose(1, 2))
    with pytest.raises(
        UserError, match=r"was made by 'ae' \(r\), and not by the tokenizer .* encode with 'kl' \(fashion32\)"
    ):
        FlowPaths(model, tokenizer=load_tokenizer("kl", release="fashion32")).latents(opened)
    with pytest.raises(UserError, match=r"holds latents of 2x2x3, the model makes 2x5"):
        FlowPaths(model).latents(store(tmp_path / "grid", torch.zeros(3, 2, 2, 3), "grid"))


def test_guided_paths_are_those_of_the_guided_velocity() -> None:
    """Guidance of a class that moves the mean: Euler by hand, inside the interval only."""

    class Two(Gaussian):
        def __call__(self, x: Tensor, t: Tensor, labels: Tensor) -> Tensor:
            return super().__call__(x, t, labels) + (labels == self.config.null_class).float()[:, None, None]

    model, settings = Two([0.5, -1.0], [0.5, 0.9]), FlowSamplerSettings(steps=10, cfg_scale=3.0, cfg_t_max=0.45)
    got = states(FlowPaths(model, settings), 3)
    y = torch.from_numpy(got[0])
    for i in range(10):
        push = 1 - 3.0 if i < 5 else 0.0  # null + w (given - null) with null = given + 1
        y = y + 0.1 * (model.velocity(y, torch.tensor(i / 10, dtype=torch.float64)) + push)
        np.testing.assert_allclose(got[i + 1], y.numpy(), atol=2e-6)
