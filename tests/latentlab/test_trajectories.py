"""Paths measured batch after batch: equal for any batch size, in little memory, resumed, and beside the irreducible variance."""

import gc
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from analyses.irreducible import velocity_variance
from analyses.straightness import straightness
from latentlab.errors import UserError
from latentlab.finished import FinishedSteps
from latentlab.latents import ArrayLatents, Latents, TokenizerSpec
from latentlab.measurement import Measurement
from latentlab.path_variance import Overlay, irreducible_variance, with_variance
from latentlab.ranks import Ranks
from latentlab.store import LatentStore
from latentlab.tokenizers import load_tokenizer
from latentlab.trajectories import measure_paths, study_trajectories
from mind import noise
from mind.config import sized
from mind.network import Mind
from mind.paths import ODE_SETTINGS, MindPaths, OnState
from mind.pipeline import MindGenerator
from mind.settings import SamplerSettings

MEAN, S = 0.4, 0.6


class GaussianPaths:
    """The closed-form ODE paths t mean + sqrt((1-t)^2 + t^2 s^2) x_0 of normal data, whose mean grows with the class."""

    num_classes, batch_size, device = 4, 5, "cpu"

    def __init__(self, steps: int = 20, width: int = 6, bend: float = 1.0, count_alive: bool = False) -> None:
        self.times = (np.linspace(0, 1, steps + 1) ** bend).tolist()
        self.width, self.walks = width, 0
        self.sizes: list[int] = []
        self.count_alive, self.most_alive = count_alive, 0

    def facts(self) -> Mapping[str, Any]:
        return {"generator": "gaussian", "steps": len(self.times) - 1}

    def exact(self, labels: Tensor, start: Tensor, t: float) -> Tensor:
        return t * MEAN * labels[:, None] + ((1 - t) ** 2 + (t * S) ** 2) ** 0.5 * start

    def walk(self, labels: Tensor, indices: Tensor, seed: int, on_state: OnState) -> None:
        self.walks += 1
        self.sizes.append(len(labels))
        start = noise.normal(seed, "sampler/initial", indices, 0, (self.width,)).double()
        for t in self.times:
            on_state(self.exact(labels, start, t))
            if self.count_alive and t == 1:  # what were kept would still be there
                alive = sum(type(one) is Tensor and one.numel() >= self.width for one in gc.get_objects())
                self.most_alive = max(self.most_alive, alive)

    def latents(self, store: LatentStore) -> Latents:
        return store


def numbers(measured: Measurement) -> list[float]:
    companions = [measured.companions[name].value for name in ("efficiency", "mean length ratio")]
    return [measured.value, *companions, *measured.details["length_ratio"]]


def whole(paths: GaussianPaths, n: int, seed: int = 0) -> Measurement:
    """The definitions on all states at once."""
    start = noise.normal(seed, "sampler/initial", torch.arange(n), 0, (paths.width,)).double()
    states = torch.stack([paths.exact(torch.arange(n) % 4, start, t) for t in paths.times])
    return straightness(trajectory=states, times=paths.times, seed=seed)


@pytest.mark.parametrize("size", [1, 3, 4, 11, 100])
def test_any_batch_size_gives_the_measurement_of_all_states_at_once(size: int) -> None:
    paths = GaussianPaths(bend=1.5)
    found = measure_paths(paths, torch.arange(11) % 4, seed=3, batch_size=size)
    truth = whole(paths, 11, seed=3)
    np.testing.assert_allclose(numbers(found), numbers(truth), rtol=1e-12)
    assert (found.interval, found.n, found.variant) == (pytest.approx(truth.interval), 11, truth.variant)
    assert all(filled % 4 == 0 for filled in paths.sizes)  # rows left over would be rounded otherwise on a CPU
    assert paths.walks == -(-11 // size) and found.parameters["times"] == pytest.approx(paths.times)


def test_speed_of_the_gaussian_flow_is_known() -> None:
    """|dx/dt| = |mean + d sqrt(V)/dt x_0| at the middle of a step, over the distance of the ends."""
    paths = GaussianPaths(steps=200)
    found = measure_paths(paths, torch.full((7,), 2), seed=1)
    start = noise.normal(1, "sampler/initial", torch.arange(7), 0, (6,)).double().numpy()
    t = found.details["t"][:, None, None]
    slope = (t * S**2 - (1 - t)) / np.sqrt((1 - t) ** 2 + (t * S) ** 2)
    speed = np.linalg.norm(2 * MEAN + slope * start, axis=2)
    distance = np.linalg.norm(2 * MEAN + (S - 1) * start, axis=1)
    np.testing.assert_allclose(found.details["length_ratio"], (speed / distance).mean(1), rtol=1e-3)
    assert found.companions["efficiency"].value == pytest.approx((distance / speed.mean(0)).mean(), rel=1e-3)
    assert found.variant == "200 steps, even times, mean over paths"


def test_memory_does_not_grow_with_the_number_of_paths_or_steps() -> None:
    few, many = (GaussianPaths(steps=steps, width=1000, count_alive=True) for steps in (5, 40))
    measure_paths(few, torch.zeros(5, dtype=torch.int64))
    measure_paths(many, torch.zeros(60, dtype=torch.int64))
    assert many.walks == 12 and 0 < many.most_alive <= few.most_alive + 1


@pytest.fixture(scope="module")
def mind_paths() -> MindPaths:
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "num_heads": 2, "num_blocks": 1, "cond_dim": 16, "mapper_width": 32}
    model = Mind(sized("mind-fashion", **shape))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.25)
    settings = SamplerSettings(**{**ODE_SETTINGS, "steps": 8, "cfg_scale": 1.5})
    return MindPaths(MindGenerator(model, load_tokenizer("ibq", release="fashion32"), settings))


@pytest.mark.parametrize("size", [1, 4, 6])
def test_minds_paths_do_not_depend_on_the_batch_size(mind_paths: MindPaths, size: int) -> None:
    labels = torch.arange(9)
    one = measure_paths(mind_paths, labels, seed=2, batch_size=9)
    np.testing.assert_allclose(
        numbers(measure_paths(mind_paths, labels, seed=2, batch_size=size)), numbers(one), rtol=1e-6
    )
    assert 0 < one.value < 1
    assert abs(measure_paths(mind_paths, labels, seed=3, batch_size=9).value - one.value) > 1e-6


class Interrupted(GaussianPaths):
    def walk(self, labels: Tensor, indices: Tensor, seed: int, on_state: OnState) -> None:
        if self.walks == 2:
            raise KeyboardInterrupt
        super().walk(labels, indices, seed, on_state)


def test_an_interrupted_run_continues(tmp_path: Path) -> None:
    labels, kept = torch.arange(18) % 4, FinishedSteps(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        measure_paths(Interrupted(), labels, finished=kept)
    paths = GaussianPaths()
    done: list[int] = []
    found = measure_paths(paths, labels, finished=kept, advance=done.append)
    assert paths.walks == 2 and done == [5, 5, 5, 3]
    assert numbers(found) == numbers(measure_paths(GaussianPaths(), labels))


@pytest.mark.parametrize(
    "changed", [{"seed": 1}, {"labels": torch.arange(18).flip(0) % 4}, {"generator": GaussianPaths(steps=19)}]
)
def test_another_request_is_walked_anew(tmp_path: Path, changed: dict[str, Any]) -> None:
    first: dict[str, Any] = {
        "generator": GaussianPaths(),
        "labels": torch.arange(18) % 4,
        "finished": FinishedSteps(tmp_path),
    }
    measure_paths(**first)
    other = {**first, "generator": GaussianPaths(), **changed}
    measure_paths(**other)
    assert other["generator"].walks == 4


def test_paths_without_an_angle_survive_being_kept(tmp_path: Path) -> None:
    class Halting(GaussianPaths):
        def exact(self, labels: Tensor, start: Tensor, t: float) -> Tensor:
            return torch.where(labels[:, None] == 0, start + float(t > 0.6), super().exact(labels, start, t))

    first = measure_paths(Halting(), torch.arange(8) % 4, finished=FinishedSteps(tmp_path))
    again = Halting()
    second = measure_paths(again, torch.arange(8) % 4, finished=FinishedSteps(tmp_path))
    assert again.walks == 0 and numbers(first) == numbers(second) and first.warnings == second.warnings
    assert "2 of 8 paths have no angle" in first.warnings[1]


def normal_latents(n: int = 4000, side: int = 3) -> ArrayLatents:
    """White latents [n,2,3,3] of spread S about a mean per class."""
    rng = np.random.default_rng(0)
    labels = np.arange(n) % 4
    return ArrayLatents(S * rng.standard_normal((n, 2, side, side)) + MEAN * labels[:, None, None, None], labels)


def test_irreducible_variance_is_taken_in_the_middle_of_the_steps() -> None:
    paths = GaussianPaths(bend=1.5, width=18)
    found = with_variance(
        measure_paths(paths, torch.arange(12) % 4),
        irreducible_variance(paths, Overlay(normal_latents(), Path("store"))),
    )
    middle = (np.array(paths.times[1:]) + np.array(paths.times[:-1])) / 2
    np.testing.assert_allclose(found.details["t"], middle)
    truth = np.array([velocity_variance(np.full(18, S**2), t) for t in middle]) / 18
    np.testing.assert_allclose(found.details["irreducible_variance"], truth, rtol=0.03)
    expected = np.corrcoef(found.details["length_ratio"], truth)[0, 1]
    assert found.companions["correlation with irreducible variance"].value == pytest.approx(expected, abs=0.02)
    json.dumps(found.to_dict(), allow_nan=False)


def test_variance_that_is_the_same_everywhere_has_no_correlation() -> None:
    class Straight(GaussianPaths):
        def exact(self, labels: Tensor, start: Tensor, t: float) -> Tensor:
            return (1 - t) * start

    latents = ArrayLatents(np.zeros((80, 2, 3, 3)), np.arange(80) % 4)  # all at 0: the flow is straight
    variance = irreducible_variance(Straight(steps=2), Overlay(latents, Path("store")))
    found = with_variance(measure_paths(Straight(steps=2), torch.arange(4)), variance)
    assert len(found.companions) == 2 and not found.warnings
    np.testing.assert_allclose(found.details["gaussian_length_ratio"], found.details["length_ratio"])


def test_lengths_are_those_of_gaussians_with_the_covariance_and_means_of_the_latents() -> None:
    """Paths are exact ones of the distribution that the latents are drawn from; classes count alike however many they are."""
    paths = GaussianPaths(steps=30, width=72)
    every = normal_latents(side=6)
    assert every.labels is not None
    kept = np.flatnonzero((every.labels == 3) | (np.arange(every.n) < 2000))
    latents = ArrayLatents(every.take(kept), every.labels[kept])
    variance = irreducible_variance(paths, Overlay(latents, Path("store")))
    found = with_variance(measure_paths(paths, torch.arange(400) % 4), variance)
    assert found.companions["correlation with irreducible variance"].value < -0.95
    np.testing.assert_allclose(
        found.details["gaussian_length_ratio"], found.details["length_ratio"], rtol=0.05, atol=0.05
    )


def test_variance_of_codes_carries_a_warning() -> None:
    latents = normal_latents(400)
    latents.spec = TokenizerSpec("ibq", "fashion32", "vq", "grid", 2, codebook_size=512)
    variance = irreducible_variance(GaussianPaths(width=18), Overlay(latents, Path("store")))
    found = with_variance(measure_paths(GaussianPaths(width=18), torch.arange(8) % 4), variance)
    assert "entries of a codebook, and eq. 4 takes them as Gaussian" in found.warnings[-1]


def test_study_writes_everything(tmp_path: Path) -> None:
    out = tmp_path / "a run"
    overlay = Overlay(normal_latents(), Path("some/store"))
    study_trajectories(GaussianPaths(), out, name="gauss", n=10, overlay=overlay, seed=4, command="latentlab ...")
    results = json.loads((out / "results.json").read_text())
    assert [one["name"] for one in results["measurements"]] == ["straightness", "viv"]
    assert (results["n"], results["seed"], results["schema_version"]) == (10, 4, 2)
    assert results["latents"] == {
        "path": "some/store", "fingerprint": overlay.latents.fingerprint, "n": 4000, "shape": [2, 3, 3]
    }  # fmt: skip
    assert results["flow_times"] == pytest.approx(np.linspace(0, 1, 21).tolist())
    first = Measurement.from_dict(results["measurements"][0])
    assert first.provenance["generator"] == {"generator": "gaussian", "steps": 20}
    assert len(first.details["gaussian_length_ratio"]) == 20
    assert results["figures"] == ["figures/length_ratio.png", "figures/length_ratio.svg"]
    assert all((out / file).stat().st_size > 1000 for file in results["figures"])
    summary = (out / "summary.md").read_text()
    assert "Sampling paths of gauss: 10 paths of 20 steps, seed 4" in summary and "efficiency" in summary
    assert "4,000 latents in some/store" in summary and "![length_ratio](figures/length_ratio.png)" in summary

    again = GaussianPaths()
    study_trajectories(again, out, name="gauss", n=10, seed=4)  # without the overlay, from what is kept
    assert again.walks == 0
    results = json.loads((out / "results.json").read_text())
    assert results["latents"] is None and len(results["measurements"]) == 1
    assert numbers(Measurement.from_dict(results["measurements"][0])) == numbers(first)


class Pair(Ranks):
    """One of two ranks in one process: the other one's share is handed over."""

    def gather(self, value: Any) -> list[Any]:
        shares.append(value)
        return shares if self.first else []


shares: list[Any] = []


def test_ranks_share_the_batches(tmp_path: Path) -> None:
    shares.clear()
    walked = [GaussianPaths(bend=1.5) for _ in range(3)]
    study_trajectories(walked[0], tmp_path / "one", name="gauss", n=23)
    assert study_trajectories(walked[1], tmp_path / "two", name="gauss", n=23, ranks=Pair(1, 2)) == {}
    study_trajectories(walked[2], tmp_path / "two", name="gauss", n=23, ranks=Pair(0, 2))
    assert [paths.walks for paths in walked] == [5, 2, 3]
    one, two = (json.loads((tmp_path / out / "results.json").read_text())["measurements"] for out in ("one", "two"))
    assert one == two
    assert (tmp_path / "one/figures/length_ratio.png").read_bytes() == (
        tmp_path / "two/figures/length_ratio.png"
    ).read_bytes()


def test_earlier_studies_stand_beside(tmp_path: Path) -> None:
    overlay = Overlay(normal_latents(), Path("some/store"))
    overlay.latents.spec = TokenizerSpec("ibq", "fashion32", "vq", "grid", 2, codebook_size=512)
    earlier = study_trajectories(GaussianPaths(), tmp_path / "a b", name="SiT", n=6, overlay=overlay)
    found = study_trajectories(GaussianPaths(bend=2), tmp_path / "c", name="MIND", n=5, beside=[tmp_path / "a b"])
    assert found["beside"][0]["measurements"] == earlier["measurements"] and len(found["measurements"]) == 1
    summary = (tmp_path / "c" / "summary.md").read_text()
    assert "| straightness of MIND |" in summary and "| viv of SiT |" in summary
    assert "* straightness of SiT: the latents are entries of a codebook" in summary
    same = study_trajectories(GaussianPaths(bend=2), tmp_path / "d", name="MIND", n=5, beside=[tmp_path / "c"])
    drawn = (tmp_path / "d" / "figures" / "length_ratio.svg").read_text()
    assert len(same["beside"]) == 1 and drawn.count("MIND: 20 steps, 5 paths") == 2
    with pytest.raises(UserError, match=r"nowhere.results\.json does not exist"):
        study_trajectories(GaussianPaths(), tmp_path / "e", name="x", beside=[tmp_path / "nowhere"])
    (tmp_path / "results.json").write_text('{"schema_version": 2}')
    with pytest.raises(UserError, match="holds no results of this version's `latentlab trajectories`"):
        study_trajectories(GaussianPaths(), tmp_path / "e", name="x", beside=[tmp_path])


def test_mistakes(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="at least 2 steps in time, and these settings have 1"):
        measure_paths(GaussianPaths(steps=1), torch.zeros(3, dtype=torch.int64))
    with pytest.raises(UserError, match="1 path at a time, got 3 and 0"):
        measure_paths(GaussianPaths(), torch.zeros(3, dtype=torch.int64), batch_size=0)
    with pytest.raises(UserError, match="at least 1 path"):
        measure_paths(GaussianPaths(), torch.zeros(0, dtype=torch.int64))
    with pytest.raises(UserError, match="there has no labels: the irreducible variance is that given the class"):
        irreducible_variance(GaussianPaths(), Overlay(ArrayLatents(np.zeros((4, 2, 3, 3))), Path("there")))
    few = Overlay(ArrayLatents(np.random.default_rng(0).standard_normal((6, 2, 8, 8)), np.arange(6) % 3), Path("there"))
    with pytest.raises(UserError, match="irreducible variance of there: class 0"):
        study_trajectories(GaussianPaths(), tmp_path / "out", name="gauss", overlay=few)
