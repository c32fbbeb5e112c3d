"""What the tokenizers with 1-D latents share: one image size, latents [n,l,c], and how their files are read."""

from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import TypeVar

import torch
from torch import Tensor

from latentlab.errors import UserError
from latentlab.files import file_sha256
from latentlab.latents import TokenizerSpec
from latentlab.tokenizers.base import DiscreteTokenizer, Tokenizer
from latentlab.tokenizers.checks import check_images, check_indices
from latentlab.tokenizers.families import LoadRequest, Shape
from latentlab.tokenizers.published import remedy
from latentlab.tokenizers.quantizers import Codebook
from latentlab.tokenizers.weight_metadata import read_weight_metadata
from latentlab.weight_fit import check_finite, check_fits

T = TypeVar("T", bound=Tokenizer)


class SequenceTokenizer(Tokenizer):
    """A tokenizer with latents [n,l,c] of images of one size; the plain ones, without posterior or codebook.

    Attributes:
        architecture: the configuration it was built from.
    """

    def __init__(self, architecture: Shape, spec: TokenizerSpec) -> None:
        super().__init__()
        self.architecture, self.spec = architecture, spec

    @abstractmethod
    def features(self, images: Tensor) -> Tensor:
        """Return what the encoder says of images [n,3,S,S] in [-1,1]: latents, moments, or vectors to be quantized."""

    @abstractmethod
    def reconstruct(self, latents: Tensor) -> Tensor:
        """Return images [n,3,S,S] in about [-1,1] of latents [n,l,c], not clamped."""

    @torch.no_grad()
    def encode(self, images: Tensor, sample: bool = False, generator: torch.Generator | None = None) -> Tensor:
        """Return un-normalised latents [n,l,c] of images [n,3,S,S] in [-1,1]; there is no posterior to sample.

        Raises:
            UserError: not a float batch of images of the nominal size.
        """
        return self.features(self.checked(images))

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Return images [n,3,S,S] clamped to [-1,1] from un-normalised latents [n,l,c].

        Raises:
            UserError: latents of another shape.
        """
        shape = self.architecture.latent_shape
        if latents.ndim != 3 or tuple(latents.shape[1:]) != shape:
            raise UserError(f"latents must be [n,{shape[0]},{shape[1]}], got shape {list(latents.shape)}")
        return self.reconstruct(latents.to(self._like)).clamp(-1, 1)

    def checked(self, images: Tensor) -> Tensor:
        """Return ``images`` on the device and in the precision of the weights.

        Raises:
            UserError: not a float batch [n,3,S,S] of the nominal size S.
        """
        check_images(images, self.spec.name)
        (height, width), side = images.shape[2:], self.architecture.resolution
        if (height, width) != (side, side):
            raise UserError(
                f"images of {height}x{width} pixels do not fit '{self.spec.name}': its 1-D latents are for {side}x{side} only: "
                f"give --image-size {side}"
            )
        return images.to(self._like)

    @property
    def _like(self) -> Tensor:
        return next(self.parameters())


class DiscreteSequenceTokenizer(SequenceTokenizer, DiscreteTokenizer):
    """A tokenizer whose latents are entries of a codebook, one per token.

    Attributes:
        quantize: the codebook.
    """

    quantize: Codebook

    @property
    def codebook(self) -> Tensor:
        """Code vectors as the decoder sees them, [v,c]."""
        return self.quantize.vectors.detach()

    @torch.no_grad()
    def indices(self, images: Tensor) -> Tensor:
        """Return codebook indices, int64 [n,l], of images [n,3,S,S] in [-1,1]."""
        return self.quantize.nearest(self.features(self.checked(images)).transpose(1, 2))

    @torch.no_grad()
    def codes(self, indices: Tensor) -> Tensor:
        """Return the codes [n,l,c] of ``indices`` [n,l].

        Raises:
            UserError: not integers [n,l], or an index outside the codebook.
        """
        check_indices(indices, self.quantize.embedding.num_embeddings, "sequence")
        return self.quantize.lookup(indices.to(self._like.device, torch.int64)).transpose(1, 2)

    @torch.no_grad()
    def encode(self, images: Tensor, sample: bool = False, generator: torch.Generator | None = None) -> Tensor:
        """Return the codes chosen for the images, [n,l,c]; there is no posterior to sample."""
        return self.codes(self.indices(images))


def sequence_spec(
    request: LoadRequest,
    architecture: Shape,
    *,
    shift: float = 0.0,
    scale: float = 1.0,
    codebook_size: int | None = None,
    raw: bool = False,
) -> TokenizerSpec:
    """Return what a store remembers about a 1-D tokenizer.

    Args:
        request: what was asked for.
        architecture: of the tokenizer.
        shift: subtracted from every number by `normalize`.
        scale: multiplied by `normalize`.
        codebook_size: number of codes of a discrete tokenizer.
        raw: the weights are those that the file has averages of, too; the release's name then ends in ``-raw``.
    """
    return TokenizerSpec(
        name=request.name,
        release=request.release.label(not raw),
        kind="continuous" if codebook_size is None else "vq",
        layout="sequence",
        channels=architecture.latent_shape[1],
        codebook_size=codebook_size,
        shift=(shift,),
        scale=(scale,),
        weights_sha256=file_sha256(request.path),
    )


def filled(
    build: Callable[[], T], state: Mapping[str, Tensor], request: LoadRequest, unused: tuple[str, ...] = ()
) -> T:
    """Return the tokenizer that ``build`` makes with the weights ``state``, ready to use.

    Args:
        build: makes it; called where parameters take no memory.
        state: tensors by published name.
        request: names the file.
        unused: beginnings of the names of what only training needs.

    Raises:
        UserError: anything is missing, left over, of another shape, NaN or infinite.
    """
    with torch.device("meta"):  # no time and memory for random weights that are overwritten
        tokenizer = build()
    tokenizer.to_empty(device="cpu")
    used = {key: tensor for key, tensor in state.items() if not key.startswith(unused)}
    source, config = f"{request.path} for '{request.name}'", request.beside("config.json")
    read = config if config.is_file() and read_weight_metadata(request.path) is None else None
    check_fits(used, tokenizer.state_dict(), f"{source} does not fit the architecture", remedy(read))
    check_finite(used, source)
    tokenizer.load_state_dict(used)
    return tokenizer.eval().requires_grad_(False)
