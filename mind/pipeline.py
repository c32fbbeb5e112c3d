"""MIND with its sampler and the tokenizer of its tokens: classes in, images out (an `ImageGenerator` of `mind.generate`)."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from latentlab.encoding import default_batch_size, parameters_digest, weights_digest
from latentlab.errors import UserError
from latentlab.runtime import whole_float32
from latentlab.tokenizers.base import DiscreteTokenizer, Tokenizer
from mind.config import MindConfig
from mind.generate import Drawn
from mind.network import Mind
from mind.sampler import sample
from mind.settings import SamplerSettings

_CPU_TOKENS, _GPU_TOKENS = 1 << 10, 1 << 14
"""Tokens sampled at a time."""


class MindGenerator:
    """A MIND model that makes images.

    Attributes:
        model: the denoiser, in the chosen precision.
        tokenizer: decodes its tokens.
        settings: of the sampler.
        grid: how the decoder wants the tokens of an image: (rows, columns), or (l,).
    """

    def __init__(
        self,
        model: Mind,
        tokenizer: Tokenizer,
        settings: SamplerSettings | None = None,
        *,
        precision: str | None = None,
        weights_sha256: str | None = None,
    ) -> None:
        """Put the parts together on the device of the model.

        Args:
            model: put into evaluation mode.
            tokenizer: moved to the model's device.
            settings: default: the released run's.
            precision: a name of `Mind.set_precision`; None leaves the model as it is.
            weights_sha256: names the weights; None names them after the parameters themselves.

        Raises:
            UserError: the tokenizer has no tokens, or its vocabulary or its number of tokens is not the model's.
        """
        self.grid = token_grid(model.config, tokenizer)
        self._weights = weights_sha256
        self.model, self.settings = model.eval(), settings or SamplerSettings()
        if precision is not None:
            model.set_precision(precision)
        self._device = model.table.embedding.device
        assert isinstance(tokenizer, DiscreteTokenizer)  # token_grid has checked it
        self.tokenizer: DiscreteTokenizer = tokenizer.to(self._device).eval()

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return self.model.config.num_classes

    @property
    def device(self) -> str:
        """Where it runs."""
        return str(self._device)

    @property
    def batch_size(self) -> int:
        """Images at a time that suit the device."""
        tokens = _CPU_TOKENS if self._device.type == "cpu" else _GPU_TOKENS
        return max(1, tokens // self.model.config.tokens)

    @property
    def batch_dependent(self) -> bool:
        """Whether one stream of random numbers serves a whole batch, as in the released code."""
        return self.settings.noise == "released"

    def facts(self) -> Mapping[str, Any]:
        """Return what determines the images of a sample number, as JSON values."""
        spec = self.tokenizer.spec
        return {
            "generator": "mind",
            "weights_sha256": self._weights or parameters_digest(self.model),
            "tokenizer": {
                "name": spec.name,
                "release": spec.release,
                "weights_sha256": weights_digest(self.tokenizer),
            },
            "precision": self.model.precision,
            "sampler": self.settings.model_dump(mode="json"),
        }

    def draw(self, labels: Tensor, indices: Tensor, seed: int) -> Drawn:
        """Return images [b,3,H,W] in [-1,1] of classes ``labels`` [b] as the samples ``indices`` [b]."""
        with torch.inference_mode():
            tokens, evaluations = self.sample(labels, indices, seed)
            return Drawn(self.decode(tokens), evaluations)

    def sample(self, labels: Tensor, indices: Tensor, seed: int) -> tuple[Tensor, float]:
        """Return token ids [b,l] and how often the network read each image.

        Where one stream of random numbers serves a batch, its seed is ``seed`` plus the number of the first sample: batches of
        one run must not repeat each other.
        """
        start = seed + int(indices[0]) if self.batch_dependent else seed
        samples = sample(self.model, labels, self.settings, seed=start, indices=indices)
        return samples.indices, samples.evaluations

    def decode(self, tokens: Tensor) -> Tensor:
        """Return the images [b,3,H,W] in [-1,1] of token ids [b,l]."""
        side = math.isqrt(self.model.config.tokens) * (self.tokenizer.spec.downsampling or 16)
        size = default_batch_size(side, self._device)
        with torch.inference_mode(), whole_float32():
            parts = tokens.view(len(tokens), *self.grid).split(size)
            return torch.cat([self.tokenizer.decode_indices(part).float() for part in parts])


def token_grid(config: MindConfig, tokenizer: Tokenizer) -> tuple[int, ...]:
    """Return how the decoder of ``tokenizer`` wants the tokens of one image: (rows, columns), or (l,) for 1-D tokens.

    Raises:
        UserError: the tokenizer is continuous, or its vocabulary or its number of tokens is not the model's.
    """
    spec, name = tokenizer.spec, f"tokenizer '{tokenizer.spec.name}' ({tokenizer.spec.release})"
    if not isinstance(tokenizer, DiscreteTokenizer):
        raise UserError(f"{name} is continuous and has no tokens: MIND needs a discrete one")
    codes = len(tokenizer.codebook)
    if codes != config.vocab_size:
        raise UserError(
            f"{name} has {codes} codes, the model a vocabulary of {config.vocab_size}: give the tokenizer it was trained on"
        )
    if spec.layout == "sequence":
        return (config.tokens,)
    nominal = _nominal_grid(tokenizer)
    if nominal is not None and math.prod(nominal) != config.tokens:
        raise UserError(
            f"{name} has {nominal[0]}x{nominal[1]} tokens per image, the model {config.tokens}: give the tokenizer it was "
            "trained on"
        )
    return config.grid or nominal or _square(config.tokens, name)


def _nominal_grid(tokenizer: Tokenizer) -> tuple[int, int] | None:
    """Return rows and columns at the image size the tokenizer was made for; None where it does not say."""
    shape = getattr(getattr(tokenizer, "architecture", None), "latent_shape", None)
    return None if shape is None else (int(shape[1]), int(shape[2]))


def _square(tokens: int, name: str) -> tuple[int, int]:
    side = math.isqrt(tokens)
    if side**2 != tokens:
        raise UserError(f"{name} decodes grids, and the model's {tokens} tokens are no square: its config needs grid")
    return side, side
