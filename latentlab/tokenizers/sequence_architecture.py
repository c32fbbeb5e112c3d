"""What the architectures of 1-D tokenizers share, and where their published fields come from. Imports no torch."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from pydantic import BaseModel, ConfigDict, model_validator

from latentlab.tokenizers.architecture import read_architecture
from latentlab.tokenizers.published_config import read_config
from latentlab.tokenizers.weight_metadata import read_weight_metadata

if TYPE_CHECKING:
    from latentlab.tokenizers.families import LoadRequest

HEAD_WIDTH = 64
"""Channels of one attention head in every published model."""

SYNONYMS = {"width": "embed_dim", "hidden_size": "embed_dim", "num_layers": "depth"}
"""What published modules and configurations of transformers call the fields that change a size."""

PerHalf = int | tuple[int, int] | None
"""One number for encoder and decoder, or one for each; None for the published one."""


@dataclass(frozen=True)
class TransformerSize:
    """Width in channels, number of blocks, and heads of attention."""

    width: int
    depth: int
    heads: int


class SequenceArchitecture(BaseModel, ABC):
    """Fields that change the size of a published transformer, for narrow models.

    Attributes:
        embed_dim: width in channels.
        depth: number of blocks.
        num_heads: heads of attention; left out, one per 64 channels when ``embed_dim`` is given.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    WITHOUT_EFFECT: ClassVar[frozenset[str]] = frozenset()
    """Published fields that only training reads, or nobody."""

    embed_dim: PerHalf = None
    depth: PerHalf = None
    num_heads: PerHalf = None

    @classmethod
    def flat(cls, config: Mapping[str, Any]) -> dict[str, Any]:
        """Return the fields of a published configuration, which may have sections, in one level."""
        return dict(config)

    @property
    @abstractmethod
    def published_sizes(self) -> tuple[TransformerSize, TransformerSize]:
        """Sizes of encoder and decoder that the published names stand for."""

    @property
    def encoder_transformer(self) -> TransformerSize:
        """Size of the encoder's transformer."""
        return self._resized(0)

    @property
    def decoder_transformer(self) -> TransformerSize:
        """Size of the decoder's transformer."""
        return self._resized(1)

    def _resized(self, half: int) -> TransformerSize:
        published = self.published_sizes[half]
        width, depth, heads = (
            value[half] if isinstance(value, tuple) else value for value in (self.embed_dim, self.depth, self.num_heads)
        )
        if heads is None:
            heads = published.heads if width is None else max(1, width // HEAD_WIDTH)
        return TransformerSize(width or published.width, depth or published.depth, heads)

    @model_validator(mode="after")
    def _whole_heads(self) -> "SequenceArchitecture":
        for size in (self.encoder_transformer, self.decoder_transformer):
            if min(size.width, size.depth, size.heads) < 1 or size.width % (2 * size.heads):
                raise ValueError(
                    f"embed_dim {size.width} must be a positive multiple of twice num_heads {size.heads}, depth at least 1"
                )
        return self


A = TypeVar("A", bound=SequenceArchitecture)


def requested_architecture(request: "LoadRequest", model: type[A]) -> A:
    """Return what a tokenizer is built from: what latentlab wrote into the file or ``config.json`` beside it says, else the
    release's fields, then the overrides.

    Of file and ``config.json`` only the fields of ``model`` are read. A ``config.json`` without any of them describes something
    else and is left aside.

    Raises:
        UserError: a damaged ``config.json``; an unknown override, or a value that cannot be.
    """
    beside = recorded_fields(request, model)
    kept = {name: value for name, value in overrides_of(request, model).items() if name not in model.WITHOUT_EFFECT}
    return read_architecture({**(beside or request.release.architecture or {}), **kept}, model)


def recorded_fields(request: "LoadRequest", model: type[A]) -> dict[str, Any]:
    """Return the fields of ``model`` that latentlab wrote into the file, or else ``config.json`` holds.

    Raises:
        UserError: damaged.
    """
    header = read_weight_metadata(request.path)
    said = read_config(request.beside("config.json")) if header is None else header.architecture
    return {name: value for name, value in model.flat(said).items() if name in model.model_fields}


def overrides_of(request: "LoadRequest", model: type[A]) -> dict[str, Any]:
    """Return the overrides under our names."""
    return {SYNONYMS.get(name, name): value for name, value in model.flat(request.overrides).items()}
