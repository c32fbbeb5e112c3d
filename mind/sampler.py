"""The sampler of MIND (arXiv 2606.00094): from noise to token ids in steps of logits, an estimate on the sphere, and new noise.

Each step guides the logits, turns them into an estimate x0 of the embeddings (softly at first, by drawing tokens, greedily at the
end), and goes to the state at the next time that x0 and the noise predicted with it stand for. Time: t=1 is data, t=0 is noise.
Shapes: n samples, l tokens, d embedding width.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from latentlab.errors import UserError
from mind.guidance import guidance_weight, guided_logits
from mind.labels import checked_labels, checked_numbers
from mind.network import Mind
from mind.noise_source import NoiseSource, PerSampleNoise, ReleasedNoise
from mind.process import update
from mind.schedules import timesteps
from mind.settings import SamplerSettings
from mind.token_choice import Choice, choose, stage

OnStep = Callable[[int, Tensor, Tensor], None]
"""Called after every step with its number, the state [n,l,d] and the tokens [n,l]."""

OnStart = Callable[[Tensor], None]
"""Called before the first step with the first state [n,l,d]."""

ANCHOR_TOKEN = 1
"""Token whose embedding is the faint signal of the first state in the released run."""


@dataclass(frozen=True)
class Samples:
    """What `sample` returns.

    Attributes:
        indices: token ids of the last step, int64 [n,l].
        trajectory: states after every step, [steps,n,l,d], or None if not asked for; the last is the last estimate x0, unless the
            schedule ends before time 1 (``_end0995``).
        evaluations: how often the network read each sample; a guided step counts 2.
        times: of the first state and after every step, float64 [steps+1], in the settings' ``time_convention``.
    """

    indices: Tensor
    trajectory: Tensor | None
    evaluations: int
    times: Tensor


@torch.no_grad()
def sample(
    model: Mind,
    labels: Tensor | Sequence[int],
    settings: SamplerSettings | None = None,
    noise: Tensor | None = None,
    seed: int = 0,
    first_index: int = 0,
    indices: Tensor | None = None,
    return_trajectory: bool = False,
    on_step: OnStep | None = None,
    generator: torch.Generator | None = None,
    on_start: OnStart | None = None,
) -> Samples:
    """Sample token ids, all labels as one batch, on the model's device.

    With ``noise: per_sample`` sample i depends on (seed, i, its label) only, up to rounding in the network: split the labels
    among batches and ranks at will and say with ``first_index`` or ``indices`` which samples they are.

    Args:
        model: the denoiser.
        labels: class ids [n]; `MindConfig.null_class` for no class.
        settings: default: the released run's.
        noise: of the first state, [n,l,d] ~ N(0,I), instead of drawn.
        seed: of all random numbers.
        first_index: number of the first sample; the others follow it.
        indices: numbers of the samples, int64 [n], instead of consecutive ones.
        return_trajectory: keep the states.
        on_step: called after every step.
        generator: for ``noise: released``, goes on from where it is, instead of a new one from ``seed``.
        on_start: called before the first step.

    Raises:
        UserError: labels that are not classes of the model, or ``noise`` or ``indices`` of another shape.
    """
    settings = settings or SamplerSettings()
    device, dtype = model.table.embedding.device, model.table.embedding.dtype
    classes = checked_labels(labels, model.config.null_class).to(device)
    numbers = checked_numbers(indices, first_index, len(classes)).to(device)
    source: NoiseSource
    if settings.noise == "per_sample":
        source = PerSampleNoise(seed, numbers, dtype)
    else:
        source = ReleasedNoise(generator or torch.Generator(device).manual_seed(seed), len(classes), dtype)
    times = step_times(model, settings)
    x = _first_state(model, settings, times[0], _checked_noise(model, noise, len(classes)), source)
    if on_start is not None:
        on_start(x)
    walk = _Walk(model, settings, source, times)
    states = []
    for step in range(settings.steps):
        x, tokens = walk.advance(x, classes, step)
        if return_trajectory:
            states.append(x)
        if on_step is not None:
            on_step(step, x, tokens)
    told = torch.tensor(times, dtype=torch.float64)
    return Samples(
        indices=tokens,
        trajectory=torch.stack(states) if return_trajectory else None,
        evaluations=walk.evaluations,
        times=told if settings.time_convention == "data" else 1 - told,
    )


def step_times(model: Mind, settings: SamplerSettings) -> list[float]:
    """Return the steps+1 times (1 is data), computed in the precision the settings ask for."""
    name = model.config.rope_dtype if settings.timestep_dtype == "auto" else settings.timestep_dtype
    dtype = torch.bfloat16 if name == "bfloat16" else torch.float32
    times: list[float] = timesteps(
        settings.schedule, settings.steps, strict_released_bugs=settings.strict_released_bugs, dtype=dtype
    ).tolist()
    return times


class _Walk:
    """The steps of one batch, and how many network evaluations they took."""

    def __init__(self, model: Mind, settings: SamplerSettings, source: NoiseSource, times: list[float]) -> None:
        self.model, self.settings, self.source, self.times = model, settings, source, times
        self.evaluations = 0

    def advance(self, x: Tensor, labels: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """Return the state after a step and the tokens of its first evaluation."""
        process, settings, t, u = self.model.process, self.settings, self.times[step], self.times[step + 1]
        shape = (x.shape[1], x.shape[2])
        labels = self._some_dropped(labels, step)
        weight = guidance_weight(settings, step, t)
        first = self._estimate(x, t, labels, weight, step, evaluation=1)
        fresh = self.source.fresh(shape, step, 1)
        after = update(process, x, first.x0, t, u, fresh, settings.eta, settings.eta_mode)
        if settings.solver_order == 2 and step < settings.steps - 1:
            second = self._estimate(after, u, labels, weight, step, evaluation=2)
            fresh = self.source.fresh(shape, step, 2)
            after = update(process, x, (first.x0 + second.x0) / 2, t, u, fresh, eta=0.0, mode="keep")
        return after, first.indices

    def _estimate(self, x: Tensor, t: float, labels: Tensor, weight: float, step: int, evaluation: int) -> Choice:
        settings = self.settings
        logits = guided_logits(self.model, x, torch.full((len(x),), t, device=x.device), labels, weight, settings)
        self.evaluations += 1 if weight == 1 else 2
        return choose(
            logits,
            self.model.table,
            stage(settings, step),
            settings,
            draw=lambda probabilities: self.source.ranks(probabilities, step, evaluation),
            second=evaluation == 2,
        )

    def _some_dropped(self, labels: Tensor, step: int) -> Tensor:
        """Return the labels of a step: some are "no class" if label dropout is on."""
        progress, end = step / self.settings.steps, self.settings.label_dropout_end
        if self.settings.label_dropout == 0 or progress > end:
            return labels
        probability = self.settings.label_dropout * (1 - progress / end)
        return labels.masked_fill(self.source.labels(step) < probability, self.model.config.null_class)


def _first_state(model: Mind, settings: SamplerSettings, t: float, noise: Tensor | None, source: NoiseSource) -> Tensor:
    """Return the state [n,l,d] at the first time."""
    process = model.process
    if noise is None:
        noise = source.initial((model.config.tokens, model.config.embed_dim))
    if settings.init_mode == "pure_noise":
        return process.noise_factor * noise
    faint = process.noise(t) * noise
    if settings.init_mode == "zero_anchor":
        return faint
    return process.signal(t) * model.embed(torch.tensor(ANCHOR_TOKEN, device=noise.device)) + faint


def _checked_noise(model: Mind, noise: Tensor | None, count: int) -> Tensor | None:
    if noise is None:
        return None
    expected = (count, model.config.tokens, model.config.embed_dim)
    if noise.shape != expected:
        raise UserError(f"noise must have shape {list(expected)}, got {list(noise.shape)}")
    return noise.to(model.table.embedding)
