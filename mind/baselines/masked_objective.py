"""What masked generators are trained on: the loss of the masked tokens at a random time, weighted by w(t).

eMIGM (arXiv 2503.07197): the integral over t of w(t) E[sum over masked i of -log p(x_i | visible tokens)], where -log p is a
cross-entropy of codes or the diffusion loss of continuous tokens. Shapes: b batch, l tokens, d numbers of a token, k steps of the
head.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from mind import noise
from mind.baselines.categorical_head import CategoricalHead
from mind.baselines.ddpm_objective import drawn_steps
from mind.baselines.masked import draw_mask, masked_share, mdm_weight
from mind.baselines.masked_config import MaskedConfig
from mind.baselines.masked_network import MaskedTransformer
from mind.float64 import as_float64


class MaskedNoise(NamedTuple):
    """All that is random about the loss of a batch."""

    t: Tensor
    """Times [b]; 1 is fully masked."""
    places: Tensor
    """Uniform in (0,1), [b,l]; decides which tokens are masked."""
    steps: Tensor | None
    """Steps of the diffusion head, int64 [b,l,k]; None for codes."""
    eps: Tensor | None
    """Noise of the diffusion head ~ N(0,I), [b,l,k,d]; None for codes."""
    dropout_seed: int
    """Of the generator that dropout takes its numbers from. It is that of the first place, and the numbers are drawn for all
    places at once: ranks and accumulated parts, which begin at other places, make other numbers."""


def draw_noise(config: MaskedConfig, seed: int, stream: str, places: Tensor, step: int) -> MaskedNoise:
    """Return the random part of a batch, a function of the arguments alone; of each place by itself, dropout aside.

    Args:
        config: of the model.
        seed: of the run.
        stream: ``train``, ``validation``.
        places: of the images in the whole batch of a step, int64 [b]; their device is that of the result.
        step: of training.
    """
    length, k = config.length, config.head_copies
    t = config.t_min + (1 - config.t_min) * noise.uniform(seed, f"{stream}/time", places, step, ())
    masks = noise.uniform(seed, f"{stream}/mask", places, step, (length,))
    steps = eps = None
    if config.vocab_size is None:
        steps = drawn_steps(noise.uniform(seed, f"{stream}/head step", places, step, (length, k)))
        eps = noise.normal(seed, f"{stream}/head noise", places, step, (length, k, config.token_width))
    dropout_seed = hash((seed, step, int(places[0]))) if config.dropout else 0
    return MaskedNoise(t, masks, steps, eps, dropout_seed)


class MaskedObjective(nn.Module):
    """The loss of a model on latents, as one module, so that data-parallel wrappers see a single forward pass."""

    def __init__(self, model: MaskedTransformer) -> None:
        """Wrap ``model``; its configuration says what the loss is."""
        super().__init__()
        self.model = model

    def forward(self, latents: Tensor, labels: Tensor, drawn: MaskedNoise) -> dict[str, Tensor]:
        """Return ``loss`` (with gradient) and its terms, means over images: ``ce``, or ``mse`` and ``vlb``.

        Args:
            latents: normalised latents [b,c,h,w] or [b,m,c], or codes [b,...].
            labels: class ids [b], `MaskedConfig.null_class` where the class is dropped.
            drawn: from `draw_noise`.
        """
        model = self.model
        tokens = model.to_tokens(latents)
        share = masked_share(model.config.schedule, drawn.t)
        masked = draw_mask(model.config.masking, share, drawn.places)
        with self._dropout(drawn.dropout_seed), model.autocast():
            terms = self._token_losses(model(tokens, masked, labels), tokens, drawn)
        weights = self._weights(drawn.t, masked)
        means = {name: (weights * loss.float()).sum(1).mean() for name, loss in terms.items()}
        return {
            "loss": torch.stack(list(means.values())).sum(),
            **{name: mean.detach() for name, mean in means.items()},
        }

    def _token_losses(self, z: Tensor, tokens: Tensor, drawn: MaskedNoise) -> dict[str, Tensor]:
        """Return the terms of -log p of every token, [b,l] each."""
        head = self.model.head
        if isinstance(head, CategoricalHead):
            return {"ce": head.losses(z, tokens, self.model.recompute)}
        assert drawn.steps is not None and drawn.eps is not None
        copies = drawn.steps.shape  # [b,l,k]
        z, target = (x[:, :, None].expand(*copies, -1).flatten(0, 2) for x in (z, tokens))
        losses = head.losses(z, target, drawn.steps.flatten(), drawn.eps.flatten(0, 2))
        return {name: loss.view(copies).mean(2) for name, loss in zip(("mse", "vlb"), losses, strict=True)}

    def _weights(self, t: Tensor, masked: Tensor) -> Tensor:
        """Return the weight of each token in the loss of its image, float32 [b,l]."""
        config = self.model.config
        total = masked.sum(1, keepdim=True).clamp_min(1) if config.average == "masked" else masked.shape[1]
        weights = masked / total
        if config.weighting == "mdm":
            weights = as_float64(weights) * mdm_weight(config.schedule, t)[:, None]
        return weights.to(masked.device, torch.float32)

    @contextmanager
    def _dropout(self, seed: int) -> Iterator[None]:
        """Give dropout a generator of its own, so that a resumed run goes on as if it had not stopped."""
        model = self.model
        if not (model.training and model.config.dropout):
            yield
            return
        devices = [model.device] if model.device.type == "cuda" else []
        with torch.random.fork_rng(devices):
            torch.manual_seed(seed)
            yield
