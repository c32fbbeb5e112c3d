"""The interface of tokenizers that can be trained, whatever their networks."""

from abc import abstractmethod
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from latentlab.tokenizers.base import Tokenizer
from latentlab.weight_fit import check_fits
from latentlab.weights import read_state_dict


@dataclass(frozen=True)
class TrainLatents:
    """What the encoding half of a training pass gives.

    Attributes:
        latents: what the decoder is to see, [n,c,h,w] or [n,l,c].
        losses: unweighted terms of the tokenizer itself, as in `TrainOutput`.
        indices: the chosen codes, int64 [n,h,w], or None.
    """

    latents: Tensor
    losses: dict[str, Tensor] = field(default_factory=dict)
    indices: Tensor | None = None


@dataclass(frozen=True)
class TrainOutput:
    """What one training pass gives.

    Attributes:
        reconstruction: images [n,3,H,W], not clamped.
        latents: what the decoder saw, [n,c,h,w] or [n,l,c].
        losses: unweighted terms of the tokenizer itself, which `TrainableTokenizer.loss_terms` names.
        indices: the chosen codes, int64 [n,h,w], or None.
    """

    reconstruction: Tensor
    latents: Tensor
    losses: dict[str, Tensor] = field(default_factory=dict)
    indices: Tensor | None = None


class TrainableTokenizer(Tokenizer):
    """A tokenizer with a training pass."""

    TRAINING_ONLY: ClassVar[tuple[str, ...]] = ()
    """Beginnings of the names of weights that are of no use when training is over."""

    @property
    def loss_terms(self) -> tuple[str, ...]:
        """Names of the terms that a training pass gives, as in `TrainOutput.losses`."""
        return ()

    @property
    def needed_terms(self) -> tuple[str, ...]:
        """Those of them without which a part of the tokenizer would learn nothing."""
        return ()

    @abstractmethod
    def encode_train(self, images: Tensor, generator: torch.Generator | None = None) -> TrainLatents:
        """Encode images as training does, with gradients.

        Args:
            images: float [n,3,H,W] in [-1,1].
            generator: source of all that is random in the pass.
        """

    @abstractmethod
    def reconstruct(self, latents: Tensor) -> Tensor:
        """Return images of latents, with gradients and not clamped."""

    @property
    @abstractmethod
    def last_encoder_weight(self) -> Tensor:
        """The parameter at which adaptive weights of losses on the latents are measured."""

    @property
    @abstractmethod
    def last_decoder_weight(self) -> Tensor:
        """The parameter at which adaptive weights of losses on the images are measured."""

    def released_state(self) -> dict[str, Tensor]:
        """Return the weights that a file of the finished tokenizer holds."""
        return {name: value for name, value in self.state_dict().items() if not name.startswith(self.TRAINING_ONLY)}

    def start_from(self, path: Path) -> None:
        """Take the weights of a file; what is for training only stays fresh.

        Raises:
            UserError: a file that is missing, damaged, or does not fit the architecture.
        """
        state = {
            name: value for name, value in read_state_dict(path).items() if not name.startswith(self.TRAINING_ONLY)
        }
        check_fits(state, self.released_state(), f"{path} does not fit the architecture")
        self.load_state_dict(state, strict=False)

    def before_step(self, step: int) -> None:
        """Hear which step of training comes next, from 0; for most tokenizers all are alike."""
