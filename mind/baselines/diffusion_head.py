"""The diffusion loss: a small MLP denoises one continuous token, given what the transformer says about its place.

MAR (arXiv 2406.11838), section 3; eMIGM (arXiv 2503.07197) samples from it with DPM-Solver instead of 100 steps of DDPM. Shapes:
m tokens of all images, d numbers of a token, h width of the transformer, w width of the head.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from mind.baselines.ddpm import STEPS, Schedule
from mind.baselines.ddpm_objective import Gaussian, bound, diffuse, estimate, interpolated_log_variance, posterior
from mind.baselines.dpm_solver import Solver, clipped, solve
from mind.baselines.masked_config import MaskedConfig
from mind.baselines.masked_settings import MaskedSamplerSettings
from mind.layers import sinusoid, zero_linear

_TIME_WIDTH = 256
_LARGEST_BETA = 0.999

Fresh = Callable[[int], Tensor]
"""Number of a draw -> noise [m,d] ~ N(0,I); draw 0 is the first state."""


class Condition(NamedTuple):
    """What the transformer says about the tokens to draw, and what guides them."""

    z: Tensor
    """[m,h]."""
    null: Tensor | None = None
    """The same without class, [m,h]; None where there is no guidance."""
    weight: float = 1.0
    """Guidance scale w: null + w (z - null), of logits or predicted noise."""


class Prediction(NamedTuple):
    """What the head says about a noisy token."""

    eps: Tensor
    """The noise, [m,d]."""
    v: Tensor
    """Where between its bounds the log variance of the step lies, [m,d]; -1 is the lower one, 1 the upper."""


def cosine_schedule(steps: int = STEPS) -> Schedule:
    """Return ``steps`` of the 1000 steps of the cosine schedule (arXiv 2102.09672, eq. 17), evenly spaced, both ends included."""
    times = torch.linspace(0, 1, STEPS + 1, dtype=torch.float64, device="cpu")  # also where models are built on "meta"
    signal = torch.cos((times + 0.008) / 1.008 * math.pi / 2) ** 2
    betas = (1 - signal[1:] / signal[:-1]).clamp(max=_LARGEST_BETA)
    stride = (STEPS - 1) / max(steps - 1, 1)
    numbers = torch.tensor([STEPS - 1 - round(i * stride) for i in reversed(range(steps))], device="cpu")
    return Schedule(numbers, torch.cumprod(1 - betas, 0)[numbers])


class HeadBlock(nn.Module):
    """A residual MLP that is shifted, scaled and gated by the condition; starts as the identity."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, 1e-6)
        self.mlp = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.modulation = zero_linear(width, 3 * width)

    def forward(self, x: Tensor, cond: Tensor) -> Tensor:
        """Map [m,w], given the condition [m,w]."""
        shift, scale, gate = self.modulation(functional.silu(cond)).chunk(3, dim=-1)
        return x + gate * self.mlp(self.norm(x) * (1 + scale) + shift)


class DiffusionHead(nn.Module):
    """Noise and variance of a noisy token, and the loss and the sampler on top of it."""

    def __init__(self, config: MaskedConfig) -> None:
        super().__init__()
        w, d = config.head_width, config.token_width
        self._schedule = cosine_schedule()
        self.time = nn.Sequential(nn.Linear(_TIME_WIDTH, w), nn.SiLU(), nn.Linear(w, w))
        self.condition = nn.Linear(config.width, w)
        self.input = nn.Linear(d, w)
        self.blocks = nn.ModuleList(HeadBlock(w) for _ in range(config.head_depth))
        self.norm = nn.LayerNorm(w, 1e-6, elementwise_affine=False)
        self.modulation = zero_linear(w, 2 * w)
        self.output = zero_linear(w, 2 * d)
        self._initialise()

    def _initialise(self) -> None:
        for name, layer in self.named_modules():
            if isinstance(layer, nn.Linear) and not name.endswith(("modulation", "output")):
                nn.init.xavier_uniform_(layer.weight)
                nn.init.zeros_(layer.bias)
        for layer in self.time.children():
            if isinstance(layer, nn.Linear):
                nn.init.normal_(layer.weight, std=0.02)

    def forward(self, x: Tensor, step: Tensor, z: Tensor) -> Prediction:
        """Return what the head says about noisy tokens.

        Args:
            x: [m,d].
            step: 0 .. 999, nearly clean to nearly noise, fractions too; [m].
            z: what the transformer says, [m,h].
        """
        time = self.time(sinusoid(step, _TIME_WIDTH, period=10000.0).to(x.dtype))
        cond = time + self.condition(z)
        hidden = self.input(x)
        for block in self.blocks:
            hidden = block(hidden, cond)
        shift, scale = self.modulation(functional.silu(cond)).chunk(2, dim=-1)
        eps, v = self.output(self.norm(hidden) * (1 + scale) + shift).to(x.dtype).chunk(2, dim=-1)
        return Prediction(eps, v)

    def losses(self, z: Tensor, target: Tensor, step: Tensor, eps: Tensor) -> tuple[Tensor, Tensor]:
        """Return two terms for each token whose sum is the diffusion loss, [m]: squared error of the noise, and bound.

        The bound, of one step in bits per number, teaches the variance only.

        Args:
            z: what the transformer says, [m,h].
            target: clean tokens, [m,d].
            step: int64 [m].
            eps: noise ~ N(0,I), [m,d].
        """
        schedule = self._schedule
        x = diffuse(schedule, target, eps, step)
        said = self(x, step, z)
        mean = posterior(schedule, estimate(schedule, x, said.eps.detach(), step), x, step).mean
        model = Gaussian(mean, interpolated_log_variance(schedule, said.v, step))
        return (said.eps - eps).square().mean(1), bound(schedule, target, x, model, step)

    def sample(self, given: Condition, settings: MaskedSamplerSettings, fresh: Fresh) -> Tensor:
        """Return tokens [m,d] for the conditions in ``given``; what is random comes from ``fresh``."""
        if settings.head_sampler == "ddpm":
            return self._ancestral(given, settings, fresh)

        def predict(x: Tensor, step: float) -> Tensor:
            return self._guided(x, step, given).eps

        solver = Solver(settings.head_steps, settings.head_order, settings.head_clip)
        return solve(predict, self._schedule.abar, fresh(0), solver)

    def _ancestral(self, given: Condition, settings: MaskedSamplerSettings, fresh: Fresh) -> Tensor:
        """Walk back through evenly spaced steps with the learned variance (arXiv 2102.09672)."""
        schedule, x = cosine_schedule(settings.head_steps), fresh(0)
        for kept in reversed(range(settings.head_steps)):
            said = self._guided(x, float(schedule.numbers[kept]), given)
            here = torch.full((len(x),), kept, device=x.device)
            data = estimate(schedule, x, said.eps, here)
            x = posterior(schedule, clipped(data, settings.head_clip), x, here).mean
            if kept > 0:
                deviation = torch.exp(interpolated_log_variance(schedule, said.v, here) / 2)
                x = x + settings.temperature * deviation * fresh(settings.head_steps - kept)
        return x

    def _guided(self, x: Tensor, step: float, given: Condition) -> Prediction:
        """Return what the head says under guidance; the variance is that of the class."""
        steps = torch.full((len(x),), step, device=x.device)
        if given.null is None:
            said: Prediction = self(x, steps, given.z)
            return said
        both = self(torch.cat([x, x]), torch.cat([steps, steps]), torch.cat([given.z, given.null]))
        (eps, null), v = both.eps.chunk(2), both.v.chunk(2)[0]
        return Prediction(torch.lerp(null, eps, given.weight), v)
