"""SoftVQ (Chen et al. 2024, arXiv 2412.10958): MAETok's networks with soft codes between them."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latentlab.errors import UserError
from latentlab.latents import TokenizerSpec
from latentlab.tokenizers.families import LoadRequest
from latentlab.tokenizers.maetok import MAETok, load_kind
from latentlab.tokenizers.maetok_architecture import SoftVQArchitecture
from latentlab.tokenizers.quantizers import SEARCH_BYTES


class SoftCodebook(nn.Module):
    """Codebooks of unit vectors; each serves an equal number of consecutive tokens. Always in float32, whatever autocast says.

    Attributes:
        embedding: codes before normalisation, [k,v,c].
        tau: temperature.
    """

    def __init__(self, codebooks: int, codes: int, channels: int, tau: float) -> None:
        super().__init__()
        self.embedding = nn.Parameter(torch.zeros(codebooks, codes, channels))
        self.tau = tau

    def forward(self, tokens: Tensor) -> Tensor:
        """Return for tokens [n,l,c] the mean of all codes, weighted by softmax(cos(token, code) / tau): [n,l,c].

        The mean lies inside the unit sphere; it is not normalised again (2412.10958, eqs. 3 to 5).
        """
        with torch.autocast(tokens.device.type, enabled=False):
            codes = self._unit_codes()
            return torch.cat([self._softly(part, codes) for part in self._parts(tokens)])

    def nearest(self, tokens: Tensor) -> Tensor:
        """Return for tokens [n,l,c] the index of the code with the largest weight in their own codebook, int64 [n,l]."""
        with torch.autocast(tokens.device.type, enabled=False):
            codes = self._unit_codes()
            return torch.cat([self._cosines(part, codes).argmax(3).flatten(1) for part in self._parts(tokens)])

    def _softly(self, tokens: Tensor, codes: Tensor) -> Tensor:
        weights = (self._cosines(tokens, codes) / self.tau).softmax(3)
        return torch.einsum("nksv,kvc->nksc", weights, codes).flatten(1, 2).to(tokens.dtype)

    def _cosines(self, tokens: Tensor, codes: Tensor) -> Tensor:
        """Return [n,k,l/k,v] for [n,l,c]."""
        rows = F.normalize(tokens.float(), dim=2).unflatten(1, (len(codes), -1))
        return torch.einsum("nksc,kvc->nksv", rows, codes)

    def _unit_codes(self) -> Tensor:
        return F.normalize(self.embedding.float(), dim=2)

    def _parts(self, tokens: Tensor) -> tuple[Tensor, ...]:
        """Return a few images at a time, so that the scores of all codes stay small."""
        return tokens.split(max(1, SEARCH_BYTES // (4 * tokens.shape[1] * self.embedding.shape[1])))


class SoftVQ(MAETok):
    """A transformer autoencoder whose latents are mixtures of codes: continuous, with an index per token all the same."""

    def __init__(self, architecture: SoftVQArchitecture, spec: TokenizerSpec) -> None:
        super().__init__(architecture, spec)
        self.quantize = SoftCodebook(
            architecture.num_codebooks, architecture.codebook_size, architecture.codebook_embed_dim, architecture.tau
        )

    @torch.no_grad()
    def encode(self, images: Tensor, sample: bool = False, generator: torch.Generator | None = None) -> Tensor:
        """Return the mixtures of codes [n,l,c] of images [n,3,S,S] in [-1,1]; there is no posterior to sample."""
        return self.quantize(self.features(self.checked(images)))

    @torch.no_grad()
    def indices(self, images: Tensor) -> Tensor:
        """Return the code with the largest weight for each token, int64 [n,l], counted within the token's codebook."""
        return self.quantize.nearest(self.features(self.checked(images)))

    @property
    def codebook(self) -> Tensor:
        """There is none that latents are entries of.

        Raises:
            UserError: always.
        """
        raise self._no_codes()

    def codes(self, indices: Tensor) -> Tensor:
        """Latents cannot be had from indices.

        Raises:
            UserError: always.
        """
        raise self._no_codes()

    def _no_codes(self) -> UserError:
        return UserError(
            f"latents of '{self.spec.name}' are mixtures of many codes: its indices name the nearest ones and cannot be decoded; "
            "use encode and decode"
        )


def load_softvq(request: LoadRequest) -> SoftVQ:
    """Return the tokenizer; ``config.json`` beside the weights says what it is.

    Raises:
        UserError: a file that is missing, damaged, or does not fit the architecture; an unknown architecture field.
    """
    return load_kind(request, SoftVQ, SoftVQArchitecture)
