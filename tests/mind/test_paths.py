"""MIND's paths: the frame of the straight path, which settings make an ODE, and what the paths lead to."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from analyses.irreducible import velocity_variance
from latentlab.encoding import weights_digest
from latentlab.errors import UserError
from latentlab.latents import TokenizerSpec
from latentlab.store import LatentStore, StoreWriter
from latentlab.tokenizers import load_tokenizer
from latentlab.tokenizers.base import DiscreteTokenizer
from latentlab.trajectories import measure_paths
from mind import noise_source
from mind.config import sized
from mind.network import Mind
from mind.paths import ODE_SETTINGS, MindPaths, last_of_equal
from mind.pipeline import MindGenerator
from mind.sampler import sample
from mind.settings import SamplerSettings

TINY = {"hidden_size": 32, "num_heads": 2, "num_blocks": 1, "cond_dim": 16, "mapper_width": 32}


@pytest.fixture(scope="module")
def tokenizer() -> DiscreteTokenizer:
    found = load_tokenizer("ibq", release="fashion32")
    assert isinstance(found, DiscreteTokenizer)
    return found


def network(**fields: Any) -> Mind:
    torch.manual_seed(0)
    model = Mind(sized("mind-fashion", **{**TINY, **fields})).eval()
    for parameter in model.parameters():  # fresh blocks are the identity and answer alike to every label
        torch.nn.init.normal_(parameter, std=0.25)
    return model


def paths(tokenizer: DiscreteTokenizer, model: Mind | None = None, **settings: Any) -> MindPaths:
    chosen = SamplerSettings(**{**ODE_SETTINGS, "steps": 6, **settings})
    return MindPaths(MindGenerator(model or network(), tokenizer, chosen, weights_sha256="0"))


def states(of: MindPaths, n: int = 3, seed: int = 0) -> Tensor:
    seen: list[Tensor] = []
    of.walk(torch.arange(n), torch.arange(n), seed, lambda state: seen.append(state.clone()))
    return torch.stack(seen)


@pytest.mark.parametrize("process", ["sqrt_t", "cosine", "flow", "ddpm_linear"])
@pytest.mark.parametrize("settings", [{}, {"schedule": "late_dense", "soft_ratio": 0.0}])
def test_who_knows_the_answer_goes_straight_at_constant_speed(
    tokenizer: DiscreteTokenizer, process: str, settings: dict[str, Any]
) -> None:
    torch.manual_seed(0)
    model = Mind(sized("mind-fashion", **TINY, noise_process=process, noise_factor=0.7, signal_factor=1.3)).eval()
    fixed = torch.randint(512, (64,))

    def logits(hidden: Tensor, cond: Tensor) -> Tensor:
        return 50 * torch.nn.functional.one_hot(fixed, 512).float().expand(len(hidden), -1, -1)

    model.head.forward = logits  # type: ignore[method-assign]
    walked = paths(tokenizer, model, steps=20, **settings)
    found = measure_paths(walked, torch.arange(4))
    assert found.value == pytest.approx(1, abs=1e-5)
    assert found.companions["efficiency"].value == pytest.approx(1, abs=1e-5)
    np.testing.assert_allclose(found.details["length_ratio"], 1, atol=1e-3)
    torch.testing.assert_close(states(walked)[-1], model.embed(fixed).expand(3, -1, -1), atol=1e-5, rtol=0)


def test_states_are_the_samplers_own_in_the_frame(tokenizer: DiscreteTokenizer) -> None:
    model = network()
    walked = paths(tokenizer, model, steps=8, cfg_scale=1.5)
    settings = SamplerSettings(**{**ODE_SETTINGS, "steps": 8, "cfg_scale": 1.5})
    begun: list[Tensor] = []
    out = sample(model, torch.arange(3), settings, seed=5, return_trajectory=True, on_start=begun.append)
    assert out.trajectory is not None and len(begun) == 1
    raw = torch.cat([begun[0][None], out.trajectory])
    t = out.times
    signal, noise = t.sqrt(), 0.6 * (1 - t).sqrt()
    expected = raw / (signal + noise).float().view(-1, 1, 1, 1)
    torch.testing.assert_close(states(walked, seed=5), expected)
    np.testing.assert_allclose(walked.times, signal / (signal + noise))
    assert walked.times[0] == 0 and walked.times[-1] == 1
    torch.testing.assert_close(states(walked, seed=5)[0], begun[0] / 0.6)  # pure noise, of variance 1
    assert walked.facts()["sampler"]["eta"] == 1.0 and walked.num_classes == 10 and walked.device == "cpu"


def test_of_states_at_one_time_the_last_counts(tokenizer: DiscreteTokenizer) -> None:
    assert last_of_equal([0.1, 0.1, 0.1, 0.2, 0.3, 0.3]) == [2, 3, 5]
    walked = paths(tokenizer, steps=120, schedule="cosine")  # cut to its first time
    assert len(walked.times) < 121 and (np.diff(walked.times) > 0).all() and len(states(walked, 1)) == len(walked.times)
    coarse = paths(tokenizer, steps=250, schedule="linear", timestep_dtype="bfloat16")
    assert len(coarse.times) == 251 - 20 and (np.diff(coarse.times) > 0).all()


class BestGuess(Mind):
    """Knows how tokens are drawn, each by itself and all alike likely: its logits are log p(token | x)."""

    def logits(self, x: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        t, z = t[:, None, None], self.table.vectors()
        signal, noise = self.process.signal(t), self.process.noise(t)
        return (x @ z.T * signal - signal**2 * z.square().sum(1) / 2) / noise**2


def posterior_mean(z: Tensor, y: Tensor, tau: float) -> tuple[Tensor, Tensor]:
    """E[z | y] [...,d] of codes that are alike likely and the variance of z about it, at y = (1-tau) eps + tau z."""
    share = torch.softmax((tau * y @ z.T - tau**2 * z.square().sum(1) / 2) / (1 - tau) ** 2, -1)
    mean = share @ z
    return mean, share @ z.square().sum(1) - mean.square().sum(-1)


def test_minds_steps_are_those_of_the_flow_and_short_where_the_token_is_open(tokenizer: DiscreteTokenizer) -> None:
    """Euler on the flow with E[z | y] of the codebook gives the same states, whatever MIND's own times and scales are, and
    E|dy/dtau|^2 + I(tau) = E|z - eps|^2. The I(tau) of Gaussians of the same covariance stays high where tokens are known.
    """
    torch.manual_seed(1)
    model = BestGuess(sized("mind-fashion", **TINY, noise_factor=0.7, signal_factor=1.3)).eval()
    walked = paths(tokenizer, model, steps=60)
    got, times = states(walked, 10), walked.times
    z, y, left, speeds = model.table.vectors().detach(), got[0], [], []
    for i, (tau, later) in enumerate(pairwise(times)):
        mean, variance = posterior_mean(z, y, tau)
        velocity = (mean - y) / (1 - tau)
        left.append(float(variance.sum(1).mean()) / (1 - tau) ** 2)
        speeds.append(float(velocity.square().sum((1, 2)).mean()))
        y = y + (later - tau) * velocity
        torch.testing.assert_close(got[i + 1], y, atol=2e-4, rtol=0)
    energy = 64 * (4 + 16)  # |z|^2 = d/g, |eps|^2 = d
    np.testing.assert_allclose(np.add(speeds, left), energy, rtol=0.04)
    lengths = measure_paths(walked, torch.arange(10)).details["length_ratio"]
    assert np.corrcoef(lengths, left)[0, 1] < -0.99
    covariance = np.cov(z.numpy().T, ddof=0)
    gaussian = velocity_variance(np.linalg.eigvalsh(covariance), walked.times[:-1])
    assert np.corrcoef(lengths, gaussian)[0, 1] > 0.3
    assert (64 * gaussian > np.array(left) * 0.98).all()  # an upper bound


QUIET = [
    {},
    {"eta_mode": "fresh", "eta": 0.0},
    {"eta_mode": "ddim_sigma", "eta": 0.0},
    {"soft_ratio": 0.5},
    {"strategy": "nucleus", "soft_stage": "raw_embedding", "soft_top_k": 20},
    {"strategy": "topk_topp", "soft_ratio": 0.0, "greedy_ratio": 1.0},
    {"cfg_scale": 3.0, "cfg_t_min": 0.0, "cfg_t_max": 1.0},
]
RANDOM = [
    ({"eta": 0.99}, "eta=0.99 with eta_mode=keep. Set eta=1$"),
    ({"eta_mode": "ddim_sigma"}, "eta=1 with eta_mode=ddim_sigma. Set eta=0$"),
    ({"eta_mode": "fresh"}, "eta=1 with eta_mode=fresh. Set eta=0$"),
    ({"strategy": "topk_topp", "soft_ratio": 0.0, "eta": 0.5}, "Set eta=1, strategy=greedy$"),
    ({"strategy": "nucleus", "soft_ratio": 0.4}, "Set strategy=greedy$"),
    ({"solver_order": 2}, "Set solver_order=1$"),
    ({"label_dropout": 0.3}, "label_dropout=0.3.* Set label_dropout=0$"),
    ({"noise": "released"}, "noise=released.* Set noise=per_sample$"),
]


class Shouting(noise_source.PerSampleNoise):
    """Other numbers than the sampler's own, after the first state."""

    def fresh(self, shape: tuple[int, int], step: int, evaluation: int) -> Tensor:
        return 3 * super().fresh(shape, step + 1000, evaluation)

    def ranks(self, probabilities: Tensor, step: int, evaluation: int) -> Tensor:
        return super().ranks(probabilities, step + 1000, evaluation)

    def labels(self, step: int) -> Tensor:
        return super().labels(step + 1000)


def ends(model: Mind, settings: dict[str, Any]) -> Tensor:
    out = sample(
        model, torch.arange(3), SamplerSettings(**{**ODE_SETTINGS, "steps": 6, **settings}), return_trajectory=True
    )
    assert out.trajectory is not None
    return out.trajectory


@pytest.mark.parametrize("settings", QUIET)
def test_these_settings_use_no_random_number_after_the_first_state(
    tokenizer: DiscreteTokenizer, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = network()
    paths(tokenizer, model, **settings)
    before = ends(model, settings)
    monkeypatch.setattr("mind.sampler.PerSampleNoise", Shouting)
    assert torch.equal(ends(model, settings), before)


@pytest.mark.parametrize(("settings", "words"), RANDOM)
def test_these_do_and_are_refused(
    tokenizer: DiscreteTokenizer, settings: dict[str, Any], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = network()
    with pytest.raises(UserError, match=words):
        paths(tokenizer, model, **settings)
    if "noise" not in settings:  # one stream for a batch is refused because a path then depends on its batch
        before = ends(model, settings)
        monkeypatch.setattr("mind.sampler.PerSampleNoise", Shouting)
        assert not torch.equal(ends(model, settings), before)


def store(path: Path, codes: Tensor, tokenizer: DiscreteTokenizer | None, **fields: Any) -> LatentStore:
    spec = (
        TokenizerSpec("ibq", "fashion32", "vq", "grid", 4, codebook_size=512) if tokenizer is None else tokenizer.spec
    )
    request = {} if tokenizer is None else {"weights": weights_digest(tokenizer)}
    writer = StoreWriter(path, request={**request, **fields}, spec=spec, dtype="float32")
    latents = torch.zeros(len(codes), 4, *codes.shape[1:])
    writer.append(latents, labels=np.arange(len(codes)) % 10, codes=codes)
    return writer.finish()


def test_paths_lead_to_the_models_own_embeddings(tmp_path: Path, tokenizer: DiscreteTokenizer) -> None:
    codes = torch.randint(512, (12, 8, 8), generator=torch.Generator().manual_seed(0))
    model = network()
    latents = paths(tokenizer, model).latents(store(tmp_path / "s", codes, tokenizer))
    assert (latents.n, latents.shape, latents.channels, latents.cells) == (12, (16, 64), 16, 64)
    assert latents.labels is not None and latents.labels.tolist() == [i % 10 for i in range(12)]
    chosen = np.array([7, 2])
    torch.testing.assert_close(latents.take(chosen), model.embed(codes[chosen].flatten(1)).transpose(1, 2))
    assert float(latents.take(slice(0, 12)).square().sum(1).mean()) == pytest.approx(4, abs=1e-3)  # d/g sub-vectors
    other = paths(tokenizer, network(embed_dim=8)).latents(store(tmp_path / "s2", codes, tokenizer))
    assert other.fingerprint != latents.fingerprint


def test_stores_that_do_not_fit_are_refused(tmp_path: Path, tokenizer: DiscreteTokenizer) -> None:
    walked = paths(tokenizer)
    codes = torch.zeros(12, 8, 8, dtype=torch.int64)
    with pytest.raises(UserError, match=r"has tokens 0 \.\. 600, the model a vocabulary of 512"):
        walked.latents(store(tmp_path / "v", codes + 600 * (torch.arange(12) == 3)[:, None, None], None)).take(
            slice(0, 12)
        )
    with pytest.raises(UserError, match="has 16 tokens per image, the model 64"):
        walked.latents(store(tmp_path / "l", codes[:, :4, :4], tokenizer))
    with pytest.raises(UserError, match=r"was made by 'ibq'.*not by the tokenizer of the model with its weights"):
        walked.latents(store(tmp_path / "w", codes, tokenizer, weights="0" * 64))
    spec = TokenizerSpec("ae", "fashion32", "continuous", "grid", 4)
    writer = StoreWriter(tmp_path / "c", request={}, spec=spec, dtype="float32")
    writer.append(torch.zeros(3, 4, 8, 8), labels=np.zeros(3, dtype=np.int64))
    with pytest.raises(UserError, match="has no tokens, and MIND makes nothing else: encode with 'ibq'"):
        walked.latents(writer.finish())
