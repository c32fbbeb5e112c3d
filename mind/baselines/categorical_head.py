"""The head for codes: logits over the codebook. Shapes: ... tokens, h width, v codes."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from mind.baselines.diffusion_head import Condition
from mind.baselines.masked_config import MaskedConfig
from mind.recompute import Recompute, run_block
from mind.token_choice import draw_by_inverse_cdf

_CHUNK = 8192
"""Tokens whose logits are computed at a time in training."""


class CategoricalHead(nn.Module):
    """A linear layer to logits."""

    def __init__(self, config: MaskedConfig) -> None:
        super().__init__()
        assert config.vocab_size is not None
        self.linear = nn.Linear(config.width, config.vocab_size)
        nn.init.xavier_uniform_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, z: Tensor) -> Tensor:
        """Return logits, float32 [...,v], of hidden states [...,h]."""
        logits: Tensor = self.linear(z).float()
        return logits

    def losses(self, z: Tensor, codes: Tensor, recompute: Recompute = "nothing") -> Tensor:
        """Return the cross-entropy of each token in nats, [...].

        Long inputs are taken in parts, whose logits are computed again in the backward pass unless ``recompute`` is ``nothing``.
        """
        parts = zip(z.flatten(0, -2).split(_CHUNK), codes.flatten().split(_CHUNK), strict=True)
        again: Recompute = "nothing" if recompute == "nothing" or codes.numel() <= _CHUNK else "blocks"
        return torch.cat([run_block(self._losses, again, *part) for part in parts]).view(codes.shape)

    def _losses(self, z: Tensor, codes: Tensor) -> Tensor:
        return functional.cross_entropy(self(z), codes, reduction="none")

    def sample(self, given: Condition, temperature: float, uniform: Tensor) -> tuple[Tensor, Tensor]:
        """Return codes [m] and their log probabilities [m] without temperature.

        Args:
            given: hidden states [m,h], and guidance, which is of logits.
            temperature: the logits are divided by it; 0 takes the likeliest code.
            uniform: random numbers in (0,1), [m].
        """
        logits = self(given.z)
        if given.null is not None:
            logits = torch.lerp(self(given.null), logits, given.weight)
        if temperature == 0:
            codes = logits.argmax(-1)
        else:
            probabilities = torch.softmax(logits / temperature, -1)
            codes = draw_by_inverse_cdf(probabilities, uniform)
        return codes, torch.log_softmax(logits, -1).gather(-1, codes[:, None])[:, 0]
