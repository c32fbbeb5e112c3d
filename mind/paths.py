"""The paths along which generators go from noise to data, state by state, and in one frame for all of them.

A state that is a z + b eps (a signal, b noise) is given as y = x / (a+b) at the flow time tau = a / (a+b), where it is
(1-tau) eps + tau z: the straight path of flow matching. In this frame an Euler step of a flow, a step of DDIM and a step of MIND
without fresh noise are one and the same, y' = y + (tau' - tau) (z - eps) with the estimates of z and eps at y. A generator that
knows z and eps from the beginning goes straight at constant speed, whatever its own process is.

Where the estimates are the means E[z | y] and E[eps | y], states are distributed as noisy data at every time, and by the law of
total variance E|dy/dtau|^2 = E|z - eps|^2 - I(tau), with I the irreducible variance of the velocity: steps are short where the
velocity is ambiguous, since there they go along the mean of many answers.

Shapes: b batch, l tokens, d embedding width.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from torch import Tensor

from latentlab.errors import UserError
from latentlab.latents import Latents
from latentlab.store import LatentStore
from mind.generate import Placed
from mind.pipeline import MindGenerator
from mind.sampler import sample, step_times
from mind.settings import SamplerSettings
from mind.token_choice import stage
from mind.token_latents import TokenLatents

OnState = Callable[[Tensor], None]
"""Called with every state [b,...] of a path, the noise first."""

ODE_SETTINGS: dict[str, Any] = {
    "steps": 50,
    "schedule": "linear_start0",
    "timestep_dtype": "float32",
    "cfg_scale": 1.0,
    "soft_ratio": 1.0,
    "soft_top_k": 0,
    "soft_stage": "sphere_mean",
    "confidence_scale": 1.0,
    "eta": 1.0,
    "eta_mode": "keep",
    "strategy": "greedy",
    "solver_order": 1,
    "label_dropout": 0.0,
    "noise": "per_sample",
}
"""Sampler settings under which MIND solves the ODE of its process from pure noise, in 50 Euler steps and without guidance as in
arXiv 2606.03578, figure 10: every estimate is E[z | x], the mean over all tokens.

With ``soft_ratio=0`` every estimate is the likeliest token: deterministic too, but not along a mean velocity. Such a path goes as
far at each step as if it knew the answer, and turns where another token becomes the likeliest.
"""


class PathGenerator(Placed, Protocol):
    """A deterministic sampler: the noise of a sample and its class decide its path."""

    @property
    def times(self) -> Sequence[float]:
        """Flow times of the states, rising from about 0 (noise) to 1 (data)."""

    def walk(self, labels: Tensor, indices: Tensor, seed: int, on_state: OnState) -> None:
        """Go along the paths to classes ``labels`` [b] that begin at the noise of the samples ``indices`` [b], int64 both.

        ``on_state`` gets a state for each of ``times``, as the module says, and may keep none of them.
        """

    def latents(self, store: LatentStore) -> Latents:
        """Return the latents of a store as what the paths lead to.

        Raises:
            UserError: the store is of another tokenizer or shape.
        """


def last_of_equal(times: Sequence[float]) -> list[int]:
    """Return the places at which the next time is later: of states at one time (coarse or cut schedules) the last counts."""
    return [i for i, t in enumerate(times) if i == len(times) - 1 or times[i + 1] > t]


class MindPaths:
    """The paths of MIND from noise to embeddings, a `PathGenerator`.

    Attributes:
        times: flow times of the states; the first is that of the schedule's first time.
    """

    def __init__(self, generator: MindGenerator) -> None:
        """Take model and settings of ``generator``.

        Raises:
            UserError: the settings draw random numbers on the way; says which would not.
        """
        refuse_random(generator.settings)
        self._generator, self._settings = generator, generator.settings
        process, times = generator.model.process, step_times(generator.model, generator.settings)
        self._shrink = {i: 1 / (process.signal(times[i]) + process.noise(times[i])) for i in last_of_equal(times)}
        self.times = [process.flow_time(times[i]) for i in self._shrink]

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return self._generator.num_classes

    @property
    def batch_size(self) -> int:
        """Paths at a time that suit the device."""
        return self._generator.batch_size

    @property
    def device(self) -> str:
        """Where it runs."""
        return self._generator.device

    def facts(self) -> Mapping[str, Any]:
        """Return what determines the paths, as JSON values."""
        return self._generator.facts()

    def walk(self, labels: Tensor, indices: Tensor, seed: int, on_state: OnState) -> None:
        """See `PathGenerator`; states are float32 [b,l,d], whatever the model computes in."""

        def give(place: int, state: Tensor) -> None:
            if place in self._shrink:
                on_state(state.float() * self._shrink[place])

        sample(
            self._generator.model,
            labels,
            self._settings,
            seed=seed,
            indices=indices,
            on_start=lambda state: give(0, state),
            on_step=lambda step, state, _: give(step + 1, state),
        )

    def latents(self, store: LatentStore) -> Latents:
        """See `PathGenerator`: the model's own embeddings of the tokens in the store."""
        return TokenLatents(store, self._generator.model, self._generator.tokenizer)


def refuse_random(settings: SamplerSettings) -> None:
    """Raise `UserError` when a path of these settings depends on more than its first state; says what to set instead."""
    quiet: dict[str, Any] = {"eta": 1.0 if settings.eta_mode == "keep" else 0.0}
    quiet |= {"solver_order": 1, "label_dropout": 0.0, "noise": "per_sample"}
    if any(stage(settings, step) == "sampling" for step in range(settings.steps)):
        quiet["strategy"] = "greedy"
    wrong = {name: value for name, value in quiet.items() if getattr(settings, name) != value}
    if wrong:
        found = ", ".join(f"{name}={_shown(getattr(settings, name))}" for name in wrong)
        instead = ", ".join(f"{name}={_shown(value)}" for name, value in wrong.items())
        raise UserError(
            f"straightness is of paths without random numbers, and these sampler settings draw some on the way: {found} with "
            f"eta_mode={settings.eta_mode}. Set {instead}"
        )


def _shown(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
