"""Families of tokenizers: what the fields of an architecture mean, and who reads the files. Imports no torch."""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from latentlab.tokenizers.architecture import Architecture, MagvitArchitecture, TinyArchitecture
from latentlab.tokenizers.gigatok_architecture import GigaTokArchitecture
from latentlab.tokenizers.hub_architecture import DCArchitecture, RAEArchitecture
from latentlab.tokenizers.maetok_architecture import MAETokArchitecture, SoftVQArchitecture
from latentlab.tokenizers.release import Release
from latentlab.tokenizers.titok_architecture import TiTokArchitecture

if TYPE_CHECKING:
    from latentlab.tokenizers.base import Tokenizer


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
    """

    name: str
    release: Release
    path: Path
    overrides: Mapping[str, Any]
    ema: bool = True
    own_file: bool = True
    download: bool = False

    @property
    def architecture(self) -> dict[str, Any]:
        """Fields of the release, changed by the overrides."""
        return {**(self.release.architecture or {}), **self.overrides}


@dataclass(frozen=True)
class Family:
    """One kind of network.

    Attributes:
        loader: ``module:function``, imported when needed; takes a `LoadRequest`, returns a tokenizer ready to use, on the CPU.
        architecture: what the fields of a release are checked against; None where the file alone says what it is.
    """

    loader: str
    architecture: type[Any] | None = None

    def load(self, request: LoadRequest) -> "Tokenizer":
        """Read the weights.

        Raises:
            UserError: a file that is missing, unsafe, damaged or does not fit; unknown architecture fields.
        """
        module, _, function = self.loader.partition(":")
        tokenizer: Tokenizer = getattr(import_module(module), function)(request)
        return tokenizer


FAMILIES: dict[str, Family] = {
    "ldm": Family("latentlab.tokenizers.autoencoder_files:load_autoencoder", Architecture),
    "open-magvit2": Family("latentlab.tokenizers.magvit:load_magvit", MagvitArchitecture),
    "dc-ae": Family("latentlab.tokenizers.deep_compression:load_deep_compression", DCArchitecture),
    "rae": Family("latentlab.tokenizers.rae:load_rae", RAEArchitecture),
    "taesd": Family("latentlab.tokenizers.taesd:load_tiny", TinyArchitecture),
    "maetok": Family("latentlab.tokenizers.maetok:load_maetok", MAETokArchitecture),
    "softvq": Family("latentlab.tokenizers.softvq:load_softvq", SoftVQArchitecture),
    "titok": Family("latentlab.tokenizers.titok:load_titok", TiTokArchitecture),
    "gigatok": Family("latentlab.tokenizers.gigatok:load_gigatok", GigaTokArchitecture),
    "mind": Family("latentlab.tokenizers.sphere:load_requested"),
}
"""By the name in `Release.family`."""
