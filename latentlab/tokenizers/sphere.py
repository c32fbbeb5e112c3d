"""Tokenizer ``mind``: the codes of another tokenizer at the points on a product of spheres that MIND learned for them.

MIND (arXiv 2606.00094, section 3.2) does not diffuse a tokenizer's own code vectors but embeddings of the ids that it learns
itself; this is that latent space, measurable like any other.
"""

import hashlib
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from latentlab.errors import UserError, unknown_name
from latentlab.files import file_sha256
from latentlab.latents import TokenizerSpec
from latentlab.tokenizers.base import DiscreteTokenizer, Tokenizer
from latentlab.tokenizers.checks import check_indices
from latentlab.tokenizers.families import LoadRequest
from latentlab.tokenizers.quantizers import EuclideanCodebook
from latentlab.tokenizers.zoo import plugins
from latentlab.weights import read_state_dict
from mind.config import MindConfig
from mind.geometry import unit_subvectors
from mind.weight_files import TokenizerRecord, read_header

BASE_WEIGHTS = "base_weights"
"""Architecture override: weight file of the tokenizer whose ids are embedded, where it is not one of the known releases."""

_EMBEDDING = "table.embedding"


class SphereTokenizer(DiscreteTokenizer):
    """Another tokenizer's ids with vectors of their own.

    Attributes:
        base: makes ids of images and images of ids.
    """

    def __init__(self, base: DiscreteTokenizer, vectors: Tensor, spec: TokenizerSpec) -> None:
        """Put the ids of ``base`` at ``vectors`` [v,d]."""
        super().__init__()
        self.base, self.spec = base, spec
        self.quantize = EuclideanCodebook(*vectors.shape)
        self.quantize.embedding.weight = torch.nn.Parameter(vectors.float(), requires_grad=False)

    @property
    def codebook(self) -> Tensor:
        """Embeddings of all ids, [v,d]."""
        return self.quantize.embedding.weight.detach()

    @torch.no_grad()
    def indices(self, images: Tensor) -> Tensor:
        """Return the base tokenizer's ids, int64 [n,h,w] or [n,l], of images [n,3,H,W] in [-1,1]."""
        return self.base.indices(images)

    @torch.no_grad()
    def codes(self, indices: Tensor) -> Tensor:
        """Return the embeddings of ``indices`` [n,h,w] or [n,l] as latents [n,d,h,w] or [n,l,d].

        Raises:
            UserError: not integers of that shape, or an id outside the vocabulary.
        """
        check_indices(indices, len(self.codebook), self.spec.layout)
        return self._channel_first(self.quantize.lookup(indices.to(self.codebook.device, torch.int64)))

    @torch.no_grad()
    def encode(self, images: Tensor, sample: bool = False, generator: torch.Generator | None = None) -> Tensor:
        """Return the embeddings [n,d,h,w] (or [n,l,d]) of the ids of images; there is no posterior to sample."""
        return self.codes(self.indices(images))

    @torch.no_grad()
    def nearest(self, latents: Tensor) -> Tensor:
        """Return the id nearest to each vector of [n,d,h,w] or [n,l,d]; on the spheres, the one with the largest dot product.

        Raises:
            UserError: latents of another shape.
        """
        ndim, channels = (4, 1) if self._grid else (3, 2)
        if latents.ndim != ndim or latents.shape[channels] != self.spec.channels:
            expected = f"[n,{self.spec.channels},h,w]" if self._grid else f"[n,l,{self.spec.channels}]"
            raise UserError(f"latents must be {expected}, got shape {list(latents.shape)}")
        return self.quantize.nearest(self._channel_first(latents))

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Return images [n,3,H,W] in [-1,1] of latents, each vector taken for the id nearest to it."""
        return self.decode_indices(self.nearest(latents))

    @torch.no_grad()
    def decode_indices(self, indices: Tensor) -> Tensor:
        """Return the base tokenizer's images [n,3,H,W] in [-1,1] of ids."""
        return self.base.decode_indices(indices)

    @property
    def _grid(self) -> bool:
        return self.spec.layout == "grid"

    def _channel_first(self, latents: Tensor) -> Tensor:
        """Change between [n,l,d] and [n,d,l]; grids have their channels first already."""
        return latents if self._grid else latents.transpose(1, 2)


def load_requested(request: LoadRequest) -> SphereTokenizer:
    """Return the latent space of a MIND weight file that was asked for by name (see `load_sphere`)."""
    from latentlab.tokenizers.load import load_tokenizer  # late: that module finds this one by name

    own_release = request.release.name if request.own_file else None
    return load_sphere(request.path, partial(load_tokenizer, download=request.download), request.overrides, own_release)


def load_sphere(
    path: Path, load_base: Callable[..., Tokenizer], architecture: Mapping[str, Any], release: str | None = None
) -> SphereTokenizer:
    """Return the latent space of a MIND weight file, with the tokenizer that its header names.

    Args:
        path: written by `mind.save_mind`.
        load_base: `load_tokenizer`, or the like.
        architecture: nothing, or ``base_weights``.
        release: recorded in the spec; None for what the header says.

    Raises:
        UserError: not such a file, one that does not name its tokenizer, or a tokenizer that is missing or another one than
            it was trained on.
    """
    for key in architecture:
        if key != BASE_WEIGHTS:
            raise unknown_name("architecture field of tokenizer 'mind'", key, [BASE_WEIGHTS])
    header = read_header(path)
    if header.tokenizer is None:
        raise UserError(f"{path} does not say which tokenizer made its tokens: its header has no entry 'tokenizer'")
    base = _base(path, header.tokenizer, load_base, architecture.get(BASE_WEIGHTS))
    if len(base.codebook) != header.config.vocab_size:
        raise UserError(
            f"{path} has {header.config.vocab_size} tokens, but its tokenizer '{base.spec.name}' has {len(base.codebook)}"
        )
    vectors = _vectors(path, header.config)
    release = release or header.metadata.get("release", "custom")
    return SphereTokenizer(base, vectors, _spec(base, vectors, release, path)).eval().requires_grad_(False)


def _base(
    path: Path, record: TokenizerRecord, load_base: Callable[..., Tokenizer], weights: str | Path | None
) -> DiscreteTokenizer:
    """Return the tokenizer of the header, after checking that it is the very one."""
    known_by_release = weights is None and record.name not in plugins()
    base = load_base(record.name, weights=weights, release=record.release if known_by_release else None)
    if not isinstance(base, DiscreteTokenizer):
        raise UserError(f"{path} names the tokenizer '{record.name}', which has no tokens: its header is wrong")
    found = _digest(base)
    same = base.spec.release == record.release if record.weights_sha256 is None else found == record.weights_sha256
    if not same:
        raise UserError(
            f"{path} was trained on tokens of '{record.name}' {record.release} (SHA-256 {record.weights_sha256}), not of "
            f"{base.spec.release} ({found}): give that file as architecture={{'{BASE_WEIGHTS}': PATH}}"
        )
    return base


def _vectors(path: Path, config: MindConfig) -> Tensor:
    """Return the embeddings of all ids as MIND uses them, float32 [v,d]."""
    state = read_state_dict(path)
    if _EMBEDDING not in state or state[_EMBEDDING].shape != (config.vocab_size, config.embed_dim):
        raise UserError(f"{path} has no {_EMBEDDING} of shape [{config.vocab_size}, {config.embed_dim}]: get it again")
    rows = state[_EMBEDDING].float()
    return unit_subvectors(rows, config.subvector_size) if config.normalise else rows


def _spec(base: DiscreteTokenizer, vectors: Tensor, release: str, path: Path) -> TokenizerSpec:
    both = f"{file_sha256(path)}{_digest(base)}"  # decoding depends on the base's weights, too
    return TokenizerSpec(
        name="mind",
        release=release,
        kind="vq",
        layout=base.spec.layout,
        channels=vectors.shape[1],
        downsampling=base.spec.downsampling,
        codebook_size=len(vectors),
        weights_sha256=hashlib.sha256(both.encode()).hexdigest(),
    )


def _digest(tokenizer: Tokenizer) -> str:
    """Return what names its weights; imported late, because that module loads tokenizers itself."""
    from latentlab.encoding import weights_digest

    return weights_digest(tokenizer)
