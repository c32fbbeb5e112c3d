"""The forward process x_t = signal(t) z + noise(t) eps and its reversal step. Time: t=1 is data, t=0 is noise.

The released evaluation code of MIND (arXiv 2606.00094) uses signal = K2 sqrt(t) and noise = K1 sqrt(1-t); states are not
brought back to the spheres.
"""

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, TypeVar

import torch
from torch import Tensor

from mind.float64 import as_float64

Kind = Literal["sqrt_t", "cosine", "flow", "ddpm_linear"]
EtaMode = Literal["keep", "ddim_sigma", "fresh"]
Time = TypeVar("Time", float, Tensor)

_DDPM_STEPS = 1000


@dataclass(frozen=True)
class Process:
    """How much of a state is signal and how much is noise at time t.

    Attributes:
        kind: ``sqrt_t`` K2 sqrt(t), K1 sqrt(1-t) (released); ``cosine`` K2 sin(pi t/2), K1 cos(pi t/2); ``flow`` K2 t, K1 (1-t);
            ``ddpm_linear`` K2 sqrt(abar), K1 sqrt(1-abar) with beta from 1e-4 to 2e-2 in 1000 steps, interpolated in log abar.
        noise_factor: K1.
        signal_factor: K2.
    """

    kind: Kind = "sqrt_t"
    noise_factor: float = 0.6
    signal_factor: float = 1.0

    def signal(self, t: Time) -> Time:
        """Return the factor of the embedding at time t (1 is data)."""
        return self.signal_factor * self._unit(t)[0]

    def noise(self, t: Time) -> Time:
        """Return the standard deviation of the noise at time t (1 is data)."""
        return self.noise_factor * self._unit(t)[1]

    def diffuse(self, z: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """Return x_t [b,l,d] of embeddings ``z`` [b,l,d], noise ``eps`` [b,l,d] ~ N(0,I) and times ``t`` [b] (1 is data)."""
        t = t[:, None, None]
        return self.signal(t) * z + self.noise(t) * eps

    def predicted_noise(self, x: Tensor, x0: Tensor, t: float) -> Tensor:
        """Return the noise that would have led from ``x0`` to ``x`` at time t (1 is data)."""
        return (x - self.signal(t) * x0) / (self.noise(t) + 1e-8)

    def flow_time(self, t: Time) -> Time:
        """Return tau = a/(a+b), at which the straight path (1-tau) eps + tau z equals x_t / (a+b); a signal, b noise."""
        signal, noise = self.signal(t), self.noise(t)
        return signal / (signal + noise)

    def time_of_flow(self, tau: float) -> float:
        """Invert `flow_time`; 0 and 1 map to themselves."""
        if tau >= 1:
            return 1.0
        ratio = tau / (1 - tau) * self.noise_factor / self.signal_factor  # of the unit factors
        if self.kind == "cosine":
            return 2 / math.pi * math.atan(ratio)
        if self.kind == "flow":
            return ratio / (1 + ratio)
        share = ratio**2 / (1 + ratio**2)
        return share if self.kind == "sqrt_t" else _ddpm_time(share)

    def _unit(self, t: Time) -> tuple[Time, Time]:
        """Return the two factors for K1 = K2 = 1."""
        if self.kind == "flow":
            return t, 1 - t
        if self.kind == "cosine":
            angle = t * (math.pi / 2)
            return (angle.sin(), angle.cos()) if isinstance(angle, Tensor) else (math.sin(angle), math.cos(angle))
        share = t if self.kind == "sqrt_t" else _ddpm_share(t)
        return share**0.5, (1 - share) ** 0.5


@lru_cache(1)
def _ddpm_log_shares() -> Tensor:
    """Return ln abar after 0 .. 1000 steps, float64."""
    betas = torch.linspace(1e-4, 2e-2, _DDPM_STEPS, dtype=torch.float64)
    return torch.cat([torch.zeros(1, dtype=torch.float64), torch.log1p(-betas).cumsum(0)])


def _ddpm_share(t: Time) -> Time:
    """Return abar at time t (1 is data), linear between the steps in ln abar."""
    time = as_float64(t) if isinstance(t, Tensor) else torch.tensor(t, dtype=torch.float64)
    table = _ddpm_log_shares().to(time.device)
    position = ((1 - time) * _DDPM_STEPS).clamp(0, _DDPM_STEPS)
    low = position.floor().clamp_max(_DDPM_STEPS - 1).long()
    share = torch.lerp(table[low], table[low + 1], position - low).exp()
    return share.to(t) if isinstance(t, Tensor) else float(share)


def _ddpm_time(share: float) -> float:
    """Return the time at which abar is ``share``."""
    if share <= 0:
        return 0.0
    falling = -_ddpm_log_shares()
    wanted = -math.log(share)
    high = int(torch.searchsorted(falling, wanted).clamp(1, _DDPM_STEPS))
    below, above = float(falling[high - 1]), float(falling[high])
    return min(1.0, max(0.0, 1 - (high - 1 + (wanted - below) / (above - below)) / _DDPM_STEPS))


def update(
    process: Process, x: Tensor, x0: Tensor, t: float, u: float, fresh: Tensor, eta: float, mode: EtaMode = "keep"
) -> Tensor:
    """Return the state at time u > t from the state ``x`` at t and the estimate ``x0``; all [b,l,d].

    Every mode keeps the variance of the state given the embedding, noise(u)^2, when x0 is right.

    Args:
        process: the forward process.
        x: state at time t.
        x0: estimated embeddings.
        t: current time (1 is data).
        u: next time.
        fresh: N(0,I).
        eta: in [0,1].
        mode: ``keep`` eta is the share of the predicted noise that is kept, 1 is deterministic (released code); ``fresh`` the
            share that is replaced, 0 is deterministic; ``ddim_sigma`` as in DDIM (arXiv 2010.02502, eq. 16), 0 is deterministic
            and 1 the exact Gaussian posterior.
    """
    predicted, fresh_share = _shares(process, t, u, eta, mode)
    return process.signal(u) * x0 + predicted * process.predicted_noise(x, x0, t) + fresh_share * fresh


def _shares(process: Process, t: float, u: float, eta: float, mode: EtaMode) -> tuple[float, float]:
    """Return the factors of the predicted and of the fresh noise at time u."""
    sigma = process.noise(u)
    if mode == "keep":
        return eta * sigma, math.sqrt(1 - eta**2) * sigma
    if mode == "fresh":
        return math.sqrt(1 - eta**2) * sigma, eta * sigma
    before = process.noise(t)
    if before == 0:  # t = u = 1: schedules in bfloat16 repeat their last time
        return 0.0, 0.0
    left = before**2 - (process.signal(t) / process.signal(u)) ** 2 * sigma**2
    fresh = eta * sigma * math.sqrt(max(left, 0.0)) / before
    return math.sqrt(max(sigma**2 - fresh**2, 0.0)), fresh
