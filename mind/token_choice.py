"""From logits to tokens: the soft, the sampling and the greedy stage of MIND (arXiv 2606.00094, section 3.2).

What each stage does in detail is the released evaluation code's. Selection takes one `torch.topk` and then works on a few hundred
candidates of each token, best first: rank 0 is the likeliest. Shapes: b batch, l tokens, d embedding width, v vocabulary,
r candidates.
"""

from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from mind.geometry import Norm, TokenTable, project
from mind.settings import SamplerSettings

Stage = Literal["soft", "sampling", "greedy"]
DrawRanks = Callable[[Tensor], Tensor]
"""Probabilities [b,l,r] -> drawn ranks [b,l]."""

_SOFT_NORMS: dict[str, Norm] = {
    "sphere_subvector": "subvector",
    "sphere_full": "full_radius",
    "sphere_mean": "none",
}


class Choice(NamedTuple):
    """Tokens of one evaluation and the embeddings they stand for."""

    indices: Tensor  # [b,l]
    x0: Tensor  # [b,l,d]


def stage(settings: SamplerSettings, step: int) -> Stage:
    """Return the stage of a step, 0 .. settings.steps-1."""
    # In this arithmetic: int(250 * (1 - 0.9)) is 24, not 25.
    if step < int(settings.steps * settings.soft_ratio):
        return "soft"
    return "greedy" if step >= int(settings.steps * (1 - settings.greedy_ratio)) else "sampling"


def choose(
    logits: Tensor, table: TokenTable, at: Stage, settings: SamplerSettings, draw: DrawRanks, second: bool = False
) -> Choice:
    """Choose tokens and the estimate of the embeddings.

    Args:
        logits: guided logits [b,l,v].
        table: token embeddings.
        at: stage of the step.
        settings: how to choose.
        draw: how ranks are drawn in the sampling stage.
        second: whether this is the second evaluation of a step of order 2: its soft stage uses the temperature and top-k of the
            sampling stage.
    """
    logits = _calmed(logits, settings)
    if at == "soft":
        k = settings.top_k if second else settings.soft_top_k
        scaled = logits / (temperature(logits, settings) + 1e-10) if second else logits
        return Choice(logits.argmax(-1), soft_mean(scaled.to(logits.dtype), table, k, settings))
    if at == "greedy" or settings.strategy == "greedy":
        indices = logits.argmax(-1)
    else:
        probabilities, candidates = kept_candidates(logits, temperature(logits, settings), settings)
        indices = candidates.gather(-1, draw(probabilities).unsqueeze(-1)).squeeze(-1)
    return Choice(indices, table(indices))


def soft_mean(logits: Tensor, table: TokenTable, k: int, settings: SamplerSettings) -> Tensor:
    """Return the mean embedding [b,l,d] under the softmax of the k largest logits, ties with the last one included; 0 for all."""
    if 0 < k < logits.shape[-1]:
        smallest = logits.topk(k, dim=-1).values[..., -1:]
        logits = logits.masked_fill(logits < smallest, -torch.inf)
    probabilities = torch.softmax(logits, dim=-1)
    if settings.soft_stage == "raw_embedding":
        return probabilities @ table.embedding
    norm = _SOFT_NORMS[settings.soft_stage] if table.normalise else "none"
    return project(probabilities @ table.vectors(), norm, table.size)


def temperature(logits: Tensor, settings: SamplerSettings) -> Tensor:
    """Return the temperature of each token, float32: [b,l,1], or one number [] without entropy.

    Only the factor of the entropy has the precision of the logits, as in the released run.
    """
    base = torch.tensor(settings.temp, dtype=torch.float32, device=logits.device)
    if not settings.entropy:
        return base
    if settings.entropy_after_filter:
        probabilities, _ = kept_candidates(logits, torch.ones_like(base), settings)
    else:
        probabilities = torch.softmax(logits, dim=-1)
    return base * entropy_factor(entropy(probabilities)).to(logits.dtype).float()


def entropy(probabilities: Tensor) -> Tensor:
    """Return -sum p ln p of ``probabilities`` [...,v] in nats, [...,1]."""
    return -(probabilities * torch.log(probabilities + 1e-12)).sum(-1, keepdim=True)


def entropy_factor(nats: Tensor) -> Tensor:
    """Return what the temperature is multiplied by at an entropy; colder where it is high (arXiv 2510.09012)."""
    return 2.5 * torch.exp(-nats / 3) + 0.6


def kept_candidates(logits: Tensor, divisor: Tensor, settings: SamplerSettings) -> tuple[Tensor, Tensor]:
    """Return the probabilities that top-k and top-p leave and the tokens they belong to, both [b,l,r], best first.

    Removed candidates have probability 0. Probabilities are float32 whatever the logits are.

    Args:
        logits: [b,l,v].
        divisor: temperature, broadcast over [b,l,1].
        settings: strategy, window, top-k and top-p.
    """
    values, candidates = logits.topk(_candidate_count(settings, logits.shape[-1]), dim=-1)
    values = values.float() / (divisor.float() + 1e-10)
    nucleus = settings.strategy == "nucleus"
    if not nucleus:
        values[..., settings.top_k :] = -torch.inf
    probabilities = torch.softmax(values, dim=-1)
    total_before = probabilities.cumsum(-1)[..., :-1]  # of ranks 1 and up
    over = total_before >= settings.top_p if nucleus else total_before > settings.top_p
    probabilities[..., 1:].masked_fill_(over, 0.0)  # rank 0 and the one that crosses top-p stay
    return probabilities / (probabilities.sum(-1, keepdim=True) + 1e-10), candidates


def _candidate_count(settings: SamplerSettings, vocabulary: int) -> int:
    if settings.strategy == "nucleus":
        return vocabulary
    window = vocabulary if settings.topk_window == "full" else min(settings.topk_window, vocabulary)
    # Ranks beyond top-k have probability 0, but Gumbel-max takes a number for each of the window.
    return min(window, settings.top_k) if settings.noise == "per_sample" else window


def draw_by_inverse_cdf(probabilities: Tensor, uniform: Tensor) -> Tensor:
    """Return the ranks [b,l] at which the running total of ``probabilities`` [b,l,r] reaches ``uniform`` [b,l] in (0,1)."""
    total = probabilities.cumsum(-1)
    # The goal is a share of the computed total, so the rank found always has a probability above 0.
    return torch.searchsorted(total, uniform.unsqueeze(-1) * total[..., -1:]).squeeze(-1)


def draw_by_gumbel(probabilities: Tensor, uniform: Tensor) -> Tensor:
    """Return ranks [b,l] by the Gumbel-max trick with ``uniform`` [b,l,r] in [0,1).

    Removed candidates keep ln(1e-10) = -23.03, as in the released evaluation code.
    """
    gumbel = -torch.log(-torch.log(uniform + 1e-10) + 1e-10)
    return (torch.log(probabilities + 1e-10) + gumbel).argmax(-1)


def _calmed(logits: Tensor, settings: SamplerSettings) -> Tensor:
    """Return ``logits`` with those of confident tokens divided."""
    if settings.confidence_scale == 1 or settings.confidence_threshold >= 1:
        return logits
    confident = torch.softmax(logits, dim=-1).amax(-1, keepdim=True) > settings.confidence_threshold
    return torch.where(confident, logits / settings.confidence_scale, logits)
