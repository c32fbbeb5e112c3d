"""The interface of every image tokenizer: images in [-1,1] in, un-normalised latents out, and back."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from latentlab.latents import TokenizerSpec


class Tokenizer(nn.Module, ABC):
    """Maps images to latents and back. Adapters convert the checkpoint's own pixel range and scaling, callers never do.

    Attributes:
        spec: name, release, kind, shapes and normalisation; goes into every store made with this tokenizer.
        overrides: what latents depend on beside the specification and the weights: architecture fields that were asked for, the
            hash of a ``config.json`` beside the file, and the code of a plug-in.
    """

    spec: TokenizerSpec
    overrides: Mapping[str, Any] = MappingProxyType({})

    @abstractmethod
    def encode(self, images: Tensor, sample: bool = False, generator: torch.Generator | None = None) -> Tensor:
        """Return un-normalised latents [n,c,h,w] (or [n,l,c]) of images [n,3,H,W] in [-1,1].

        Args:
            images: float [n,3,H,W] in [-1,1].
            sample: draw from the posterior instead of taking its mode (only tokenizers with a posterior differ).
            generator: source of the noise when sampling.
        """

    @abstractmethod
    def decode(self, latents: Tensor) -> Tensor:
        """Return images [n,3,H,W] in [-1,1] from un-normalised latents."""

    def normalize(self, latents: Tensor) -> Tensor:
        """Return ``(latents - shift) * scale``: the latents the published generators are trained on."""
        shift, scale = self._affine(latents)
        return (latents - shift) * scale

    def denormalize(self, latents: Tensor) -> Tensor:
        """Invert `normalize`."""
        shift, scale = self._affine(latents)
        return latents / scale + shift

    def _affine(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        shape = (1, -1, 1, 1) if latents.ndim == 4 else (1, 1, -1)
        shift, scale = (latents.new_tensor(v).view(shape) for v in (self.spec.shift, self.spec.scale))
        return shift, scale


class DiscreteTokenizer(Tokenizer):
    """A tokenizer whose latents are entries of a codebook."""

    @property
    @abstractmethod
    def codebook(self) -> Tensor:
        """Code vectors [v,c]."""

    @abstractmethod
    def indices(self, images: Tensor) -> Tensor:
        """Return codebook indices, int64 [n,h,w] (or [n,l]), of images [n,3,H,W] in [-1,1]."""

    @abstractmethod
    def codes(self, indices: Tensor) -> Tensor:
        """Return the code vectors of ``indices`` as latents [n,c,h,w] (or [n,l,c])."""

    def decode_indices(self, indices: Tensor) -> Tensor:
        """Return images [n,3,H,W] in [-1,1] from codebook indices."""
        return self.decode(self.codes(indices))
