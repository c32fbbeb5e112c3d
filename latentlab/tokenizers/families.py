"""Families of tokenizers: what the fields of an architecture mean, and who reads the files. Imports no torch."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from latentlab.errors import UserError
from latentlab.tokenizers.architecture import Architecture, MagvitArchitecture, TinyArchitecture, read_architecture
from latentlab.tokenizers.gigatok_architecture import GigaTokArchitecture
from latentlab.tokenizers.hub_architecture import DCArchitecture, RAEArchitecture
from latentlab.tokenizers.maetok_architecture import MAETokArchitecture, SoftVQArchitecture
from latentlab.tokenizers.maetok_training_architecture import MAETokTraining
from latentlab.tokenizers.release import Release
from latentlab.tokenizers.titok_architecture import TiTokArchitecture
from latentlab.tokenizers.transformer_autoencoder_architecture import TransformerArchitecture

if TYPE_CHECKING:
    from latentlab.tokenizers.base import Tokenizer
    from latentlab.tokenizers.trainable import TrainableTokenizer


class Shape(Protocol):
    """What the list of tokenizers says about an architecture. Architectures are pydantic models with these and more."""

    @property
    def quantizer(self) -> str:
        """``none``, ``kl``, ``vq``, ``ibq``, ``lfq``, ..."""

    @property
    def n_embed(self) -> int | None:
        """Number of codes; None for continuous latents."""

    @property
    def resolution(self) -> int:
        """Nominal image side in pixels."""

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """Shape of the latent of one image of that size: (c,h,w), or (l,c) of a sequence."""


@dataclass(frozen=True)
class LoadRequest:
    """What `load_tokenizer` was asked for, once release and file are known.

    Attributes:
        name: of the tokenizer; for the spec.
        release: chosen; the file need not be its own.
        path: of the weight file, or of the folder that holds it.
        overrides: architecture fields that differ from the release's.
        ema: take averaged weights where the file has both.
        own_file: whether ``path`` is the release's own file, not one that the user gave.
        download: fetch further files that are missing.
        companions: where the release's further files are, if ``path`` is its own.
    """

    name: str
    release: Release
    path: Path
    overrides: Mapping[str, Any]
    ema: bool = True
    own_file: bool = True
    download: bool = False
    companions: tuple[Path, ...] = ()

    @property
    def architecture(self) -> dict[str, Any]:
        """Fields of the release, changed by the overrides."""
        return {**(self.release.architecture or {}), **self.overrides}

    def beside(self, filename: str) -> Path:
        """Return where a file that belongs to the weights is: a companion in another cache, else beside them if anywhere."""
        return next((path for path in self.companions if path.name == filename), self.path.parent / filename)


@dataclass(frozen=True)
class Family:
    """One kind of network.

    Attributes:
        loader: ``module:function``, imported when needed; takes a `LoadRequest`, returns a tokenizer ready to use, on the CPU.
        architecture: what the fields of a release are checked against; None where the file alone says what it is.
        builder: ``module:function`` of fresh weights to train; takes fields of the architecture and, by name, ``name``
            and ``release``. None where a family is only loaded.
        trained: what the fields of a tokenizer to be trained are checked against, if they are others.
    """

    loader: str
    architecture: type[Any] | None = None
    builder: str | None = None
    trained: type[Any] | None = None

    def check(self, architecture: Mapping[str, Any]) -> None:
        """Raise `UserError` for fields of a tokenizer to be trained that do not exist, or values that cannot be."""
        shape = self.trained or self.architecture
        if shape is not None:
            read_architecture(architecture, shape)

    def build(self, architecture: Mapping[str, Any], *, name: str, release: str) -> "TrainableTokenizer":
        """Return a tokenizer with fresh weights, to be trained.

        Raises:
            UserError: the family cannot be trained; unknown architecture fields, or values that cannot be.
        """
        if self.builder is None:
            trainable = ", ".join(family for family, known in FAMILIES.items() if known.builder is not None)
            raise UserError(f"tokenizers of this family are only loaded, not trained: choose one of {trainable}")
        tokenizer: TrainableTokenizer = _function(self.builder)(architecture, name=name, release=release)
        return tokenizer

    def load(self, request: LoadRequest) -> "Tokenizer":
        """Read the weights.

        Raises:
            UserError: a file that is missing, unsafe, damaged or does not fit; unknown architecture fields.
        """
        tokenizer: Tokenizer = _function(self.loader)(request)
        return tokenizer


def _function(place: str) -> Callable[..., Any]:
    module, _, function = place.partition(":")
    found: Callable[..., Any] = getattr(import_module(module), function)
    return found


FAMILIES: dict[str, Family] = {
    "ldm": Family(
        "latentlab.tokenizers.autoencoder_files:load_autoencoder",
        Architecture,
        "latentlab.tokenizers.autoencoder:build_tokenizer",
    ),
    "transformer": Family(
        "latentlab.tokenizers.transformer_autoencoder:load_transformer",
        TransformerArchitecture,
        "latentlab.tokenizers.transformer_autoencoder:build_transformer",
    ),
    "open-magvit2": Family("latentlab.tokenizers.magvit:load_magvit", MagvitArchitecture),
    "dc-ae": Family("latentlab.tokenizers.deep_compression:load_deep_compression", DCArchitecture),
    "rae": Family("latentlab.tokenizers.rae:load_rae", RAEArchitecture),
    "taesd": Family("latentlab.tokenizers.taesd:load_tiny", TinyArchitecture),
    "maetok": Family(
        "latentlab.tokenizers.maetok:load_maetok",
        MAETokArchitecture,
        "latentlab.tokenizers.maetok_training:build_maetok",
        MAETokTraining,
    ),
    "softvq": Family("latentlab.tokenizers.softvq:load_softvq", SoftVQArchitecture),
    "titok": Family("latentlab.tokenizers.titok:load_titok", TiTokArchitecture),
    "gigatok": Family("latentlab.tokenizers.gigatok:load_gigatok", GigaTokArchitecture),
    "mind": Family("latentlab.tokenizers.sphere:load_requested"),
    "control": Family("latentlab.tokenizers.controls:load_control"),
}
"""By the name in `Release.family`."""
