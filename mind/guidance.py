"""Classifier-free guidance: how strong at which step, and on logits or on hidden states.

MIND (arXiv 2606.00094) guides raw logits in an interval of the steps; the limit on the difference is the released evaluation
code's. Shapes: b batch, l tokens, d embedding width, v vocabulary.
"""

import math

import torch
from torch import Tensor

from mind.network import Mind
from mind.settings import SamplerSettings


def guidance_weight(settings: SamplerSettings, step: int, t: float) -> float:
    """Return the guidance scale w of a step; 1 means that the unconditional pass is not needed.

    Args:
        settings: scale, interval and its axis, smooth or not.
        step: 0 .. settings.steps-1.
        t: time of the step (1 is data); matters with ``interval_axis: t`` only.
    """
    low, high = settings.cfg_t_min, settings.cfg_t_max
    if settings.interval_axis == "progress":
        position = step / settings.steps
    else:
        position = t if settings.time_convention == "data" else 1 - t
    if not low <= position <= high:
        return 1.0
    if not settings.smooth_cfg:
        return settings.cfg_scale
    phase = (position - low) / (high - low) if high > low else 0.0
    weight = 1 + (settings.cfg_scale - 1) * math.sin(math.pi * phase)
    return 1.0 if math.isclose(weight, 1.0, rel_tol=1e-12) else weight  # sin(pi) is not quite 0


def guided_logits(
    model: Mind, x: Tensor, t: Tensor, labels: Tensor, weight: float, settings: SamplerSettings
) -> Tensor:
    """Return the guided logits [b,l,v], in the precision of ``x``.

    Args:
        model: the denoiser.
        x: states [b,l,d].
        t: times [b], 1 is data.
        labels: class ids [b].
        weight: w of the step.
        settings: space of guidance and limit of the difference.
    """
    if weight == 1:
        return model.logits(x, t, labels).to(x.dtype)
    both_labels = torch.cat([labels, torch.full_like(labels, model.config.null_class)])
    both_x, both_t = torch.cat([x, x]), torch.cat([t, t])
    if settings.guidance_space == "feature":
        last_block = 1 if settings.feature_point == "before_last_block" else 0
        return _from_guided_features(model, both_x, both_t, both_labels, weight, last_block).to(x.dtype)
    given, null = model.logits(both_x, both_t, both_labels).to(x.dtype).chunk(2)
    return torch.add(null, limited(given - null, settings.cfg_guidance_clip), alpha=weight)


def _from_guided_features(model: Mind, x: Tensor, t: Tensor, labels: Tensor, weight: float, left: int) -> Tensor:
    """Return logits [b,l,v] of a doubled batch whose halves are combined when ``left`` blocks are still to run."""
    split = len(model.blocks) - left
    cond = model.condition(t, labels)
    given, null = model.run_blocks(model.read(x), cond, 0, split).chunk(2)
    hidden, cond = null + weight * (given - null), cond.chunk(2)[0]
    return model.output(model.run_blocks(hidden, cond, split), cond)


def limited(difference: Tensor, clip: float) -> Tensor:
    """Return ``difference`` [...,v] with the root mean square of each token scaled down to at most ``clip``; 0 is no limit."""
    if clip == 0:
        return difference
    size = torch.linalg.vector_norm(difference, dim=-1, keepdim=True, dtype=torch.float32) / difference.shape[-1] ** 0.5
    return difference * (clip / (size + 1e-6)).clamp_max(1.0).to(difference.dtype)
