"""Masked diffusion as eMIGM frames it: how many tokens are masked at a time, which ones, and what their loss weighs.

eMIGM (arXiv 2503.07197), which has MaskGIT (arXiv 2202.04200), MAR (arXiv 2406.11838) and masked diffusion models (MDM, arXiv
2406.04329) as special cases. Time: t=1 is fully masked, t=0 is data, the opposite of MIND. Shapes: b batch, l tokens.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from mind.baselines.masked_config import Masking, MaskSchedule
from mind.float64 import as_float64

_RATE = 5.0
"""Rate of the exponential schedules."""
_GROWTH = math.expm1(_RATE)


def _linear_weight(t: Tensor) -> Tensor:
    return 1 / t


def _cosine(t: Tensor) -> Tensor:
    return torch.sin(math.pi / 2 * t)  # cos(pi/2 (1-t)), which rounding would not bring to 0 at t=0


def _cosine_weight(t: Tensor) -> Tensor:
    return math.pi / 2 * torch.tan(math.pi / 2 * (1 - t))


def _exp(t: Tensor) -> Tensor:
    return -torch.expm1(-_RATE * t)


def _exp_weight(t: Tensor) -> Tensor:
    return _RATE / torch.expm1(_RATE * t)  # 5 exp(-5t) / (1 - exp(-5t))


def _log_exp(t: Tensor) -> Tensor:
    return torch.log1p(_GROWTH * t) / _RATE


def _log_exp_weight(t: Tensor) -> Tensor:
    return _GROWTH / ((1 + _GROWTH * t) * torch.log1p(_GROWTH * t))


_SCHEDULES: dict[MaskSchedule, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "linear": (lambda t: t, _linear_weight),
    "cosine": (_cosine, _cosine_weight),
    "exp": (_exp, _exp_weight),
    "log_exp": (_log_exp, _log_exp_weight),
}
"""The masked share gamma(t), and gamma'(t)/gamma(t), which the paper's table prints with a minus sign."""


def masked_share(schedule: MaskSchedule, t: Tensor) -> Tensor:
    """Return gamma(t), the share of tokens that are masked at times ``t`` in [0,1]; float64 (`as_float64`).

    linear: t; cosine: cos(pi/2 (1-t)); exp: 1-exp(-5t), 0.9933 at t=1; log_exp: ln(1+(e^5-1)t)/5.
    """
    return _SCHEDULES[schedule][0](as_float64(t))


def mdm_weight(schedule: MaskSchedule, t: Tensor) -> Tensor:
    """Return gamma'(t)/gamma(t) at times ``t`` in (0,1], with which the loss bounds the likelihood; float64 (`as_float64`)."""
    return _SCHEDULES[schedule][1](as_float64(t))


def masked_count(tokens: int, share: Tensor) -> Tensor:
    """Return ceil(tokens * share), int64: how many tokens exact masking masks."""
    return torch.ceil(tokens * as_float64(share) - 1e-9).long()  # 10 * 0.7 is a little above 7


def draw_mask(masking: Masking, share: Tensor, uniform: Tensor) -> Tensor:
    """Return which tokens are masked, bool [b,l].

    Args:
        masking: ``exact``: `masked_count` tokens, any set of them alike (MaskGIT, MAR); ``independent``: each token by itself
            with probability ``share`` (MDM).
        share: gamma of each image, [b], from `masked_share`.
        uniform: random numbers in (0,1), [b,l].
    """
    if masking == "independent":
        return (as_float64(uniform) < share[:, None]).to(uniform.device)
    return ranks(uniform) < masked_count(uniform.shape[1], share).to(uniform.device)[:, None]


def ranks(values: Tensor) -> Tensor:
    """Return the place 0 .. l-1 of each number among those of its row, smallest first; ties go by position; [b,l]."""
    return values.argsort(dim=1, stable=True).argsort(dim=1)
