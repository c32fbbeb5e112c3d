"""What lies between encoder and decoder: a Gaussian posterior, a codebook searched by one of three rules, or signs."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latentlab.tokenizers.objectives.draws import normal
from latentlab.tokenizers.objectives.rank_means import mean_over_ranks

SEARCH_BYTES = 64 << 20
"""Scores of latent vectors against all codes are computed about this many bytes at a time."""


class DiagonalGaussian:
    """Posterior N(mean, exp(logvar)) of a KL autoencoder (Kingma and Welling 2014, arXiv 1312.6114).

    Attributes:
        mean: [n,c,h,w].
        logvar: [n,c,h,w], clamped to [-30,20] as in the published models.
    """

    def __init__(self, moments: Tensor) -> None:
        """Split ``moments`` [n,2c,h,w] into mean and log-variance, at least in float32."""
        moments = moments.to(torch.promote_types(moments.dtype, torch.float32))
        self.mean, logvar = moments.chunk(2, dim=1)
        self.logvar = logvar.clamp(-30.0, 20.0)

    @property
    def std(self) -> Tensor:
        """Standard deviation [n,c,h,w]."""
        return (0.5 * self.logvar).exp()

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        """Draw one latent per image, [n,c,h,w]; the noise comes from ``generator``, which may live on another device."""
        if generator is None:
            noise = torch.randn(self.mean.shape, device=self.mean.device)
        else:
            noise = normal(self.mean.shape, generator)
        return self.mean + self.std * noise.to(self.mean)

    def kl(self) -> Tensor:
        """Return KL(posterior || N(0,1)) per image in nats, [n], summed over channels and cells (1312.6114, appendix B)."""
        return 0.5 * (self.mean**2 + self.logvar.exp() - 1 - self.logvar).flatten(1).sum(1)


@dataclass(frozen=True)
class Quantized:
    """What a codebook makes of encoder features in training.

    Attributes:
        latents: what the decoder sees, [n,c,h,w]: in value the chosen codes, with the gradient of the quantizer.
        indices: the chosen codes, int64 [n,h,w].
        losses: unweighted loss terms.
    """

    latents: Tensor
    indices: Tensor
    losses: dict[str, Tensor]


class Codebook(nn.Module, ABC):
    """``n_embed`` code vectors of ``embed_dim`` channels; subclasses say which one stands for a latent vector."""

    loss_terms: ClassVar[tuple[str, ...]] = ("commitment", "codebook")
    needed_terms: ClassVar[tuple[str, ...]] = ()

    def __init__(self, n_embed: int, embed_dim: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(n_embed, embed_dim)

    @property
    def vectors(self) -> Tensor:
        """The codes as the decoder sees them, [v,c]."""
        return self.embedding.weight

    @abstractmethod
    def scores(self, rows: Tensor) -> Tensor:
        """Return how well each code stands for each row [r,c]: [r,v], the largest one is chosen."""

    def nearest(self, features: Tensor) -> Tensor:
        """Return the index of the chosen code for every cell of [n,c,h,w], int64 [n,h,w]; the first one among equals.

        Always in float32, whatever autocast says: in bfloat16 many codes tie.
        """
        with torch.no_grad(), torch.autocast(features.device.type, enabled=False):
            rows = _rows(features)
            found = [self.scores(part).argmax(1) for part in self._parts(rows)]
        return torch.cat(found).view(len(features), *features.shape[2:])

    def lookup(self, indices: Tensor) -> Tensor:
        """Return the codes of ``indices`` [n,h,w], channel first: [n,c,h,w]."""
        return self.embedding(indices).movedim(-1, 1)

    def _parts(self, rows: Tensor) -> tuple[Tensor, ...]:
        size = max(1, SEARCH_BYTES // (4 * self.embedding.num_embeddings))
        return rows.split(size)


class StraightThroughCodebook(Codebook):
    """A codebook that the gradient skips (van den Oord et al. 2017, arXiv 1711.00937, eq. 3)."""

    needed_terms = ("codebook",)

    def prepared(self, features: Tensor) -> Tensor:
        """Return [n,c,h,w] as it is compared with the codes."""
        return features

    def forward(self, features: Tensor) -> Quantized:
        """Quantize [n,c,h,w] with the straight-through gradient.

        Losses: ``codebook`` |sg(z)-e|^2 moves codes to features, ``commitment`` |z-sg(e)|^2 features to codes (mean per number).
        """
        features = self.prepared(features.float())
        indices = self.nearest(features)
        codes = self.lookup(indices)
        losses = {
            "commitment": F.mse_loss(features, codes.detach()),
            "codebook": F.mse_loss(codes, features.detach()),
        }
        return Quantized(features + (codes - features).detach(), indices, losses)


class EuclideanCodebook(StraightThroughCodebook):
    """VQ: the nearest code stands for a vector; nothing is normalised (van den Oord et al. 2017, arXiv 1711.00937)."""

    def __init__(self, n_embed: int, embed_dim: int) -> None:
        super().__init__(n_embed, embed_dim)
        nn.init.uniform_(self.embedding.weight, -1 / n_embed, 1 / n_embed)

    def scores(self, rows: Tensor) -> Tensor:
        """Return z.e - |e|^2/2: its largest value is at the smallest distance, because |z|^2 is the same for all codes."""
        codes = self.embedding.weight.float()
        return torch.addmm(codes.square().sum(1), rows, codes.T, beta=-0.5)


class CosineCodebook(StraightThroughCodebook):
    """VQ of directions: vectors and codes have length 1 (Yu et al. 2022, arXiv 2110.04627, section 3.2; LlamaGen, 2406.06525).

    The decoder sees codes of length 1 too.
    """

    def __init__(self, n_embed: int, embed_dim: int) -> None:
        super().__init__(n_embed, embed_dim)
        nn.init.uniform_(self.embedding.weight, -1 / n_embed, 1 / n_embed)

    @property
    def vectors(self) -> Tensor:
        """The codes at length 1, [v,c]."""
        return F.normalize(self.embedding.weight, dim=1)

    def prepared(self, features: Tensor) -> Tensor:
        """Return [n,c,h,w] with the vector of every cell at length 1."""
        return F.normalize(features, dim=1)

    def scores(self, rows: Tensor) -> Tensor:
        """Return the cosines: at length 1 the nearest code has the largest."""
        return F.normalize(rows, dim=1) @ self.vectors.float().T

    def lookup(self, indices: Tensor) -> Tensor:
        """Return the codes of ``indices`` [n,h,w] at length 1, channel first: [n,c,h,w]."""
        return F.normalize(super().lookup(indices), dim=1)


class IBQCodebook(Codebook):
    """IBQ: the code with the largest dot product stands for a vector (Shi et al. 2024, arXiv 2412.02692)."""

    loss_terms = ("commitment", "codebook", "entropy")
    entropy_temperature = 0.01

    def scores(self, rows: Tensor) -> Tensor:
        """Return the logits z.e; neither side is normalised."""
        return rows @ self.embedding.weight.float().T

    def forward(self, features: Tensor) -> Quantized:
        """Quantize [n,c,h,w] with index backpropagation, which sends gradients to every code (2412.02692, eqs. 3 to 5).

        Losses (mean per number): ``codebook`` |sg(z)-e|^2; ``commitment`` |z-sg(e)|^2 + |z-z_q|^2, where z_q carries the
        gradient of the indices (the "double quantization" loss; published weights: 1 for commitment, 0.25 for codebook);
        ``entropy`` as in `entropy_loss`. Memory: one number per cell and code.
        """
        with torch.autocast(features.device.type, enabled=False):
            features = features.float()
            logits = self.scores(_rows(features))
            indices = logits.argmax(1).view(len(features), *features.shape[2:])
            codes = self.lookup(indices)
            latents = codes + self._index_gradient(logits, features.shape)
            losses = {
                "commitment": F.mse_loss(features, codes.detach()) + F.mse_loss(features, latents),
                "codebook": F.mse_loss(codes, features.detach()),
                "entropy": entropy_loss(logits / self.entropy_temperature),
            }
        return Quantized(latents, indices, losses)

    def _index_gradient(self, logits: Tensor, shape: torch.Size) -> Tensor:
        """Return zeros [n,c,h,w] with the gradient of softmax(logits) C.

        With Ind = onehot(argmax) + p - sg(p), Ind C equals the chosen codes plus (p - sg(p)) sg(C): same value, same
        gradient, and no one-hot matrix.
        """
        soft = logits.softmax(1) @ self.embedding.weight.detach().float()
        n, c, *grid = shape
        return (soft - soft.detach()).view(n, *grid, c).movedim(-1, 1)


class LookupFreeQuantizer(nn.Module):
    """LFQ: every channel becomes its sign, and nothing is looked up (Yu et al. 2023, arXiv 2310.05737, section 3.1).

    Bit i of a code's number, counted from the lowest, says whether channel i is positive.
    """

    def __init__(self, bits: int) -> None:
        super().__init__()
        self.bits = bits

    def nearest(self, features: Tensor) -> Tensor:
        """Return the number of the code of every cell of [n,c,h,w], int64 [n,h,w]; zero counts as negative."""
        return ((features > 0) * self._powers(features.device)[:, None, None]).sum(1)

    def lookup(self, indices: Tensor) -> Tensor:
        """Return the codes of ``indices`` [n,h,w], channel first: -1 or 1, float32 [n,c,h,w]."""
        return (indices[:, None] & self._powers(indices.device)[:, None, None]).ne(0).float() * 2 - 1

    def vectors(self, device: torch.device) -> Tensor:
        """Return all codes in the order of their numbers, float32 [2^c,c]: 19 MB for 18 bits."""
        return self.lookup(torch.arange(2**self.bits, device=device).view(1, -1, 1))[0, :, :, 0].T.contiguous()

    def _powers(self, device: torch.device) -> Tensor:
        return 2 ** torch.arange(self.bits, device=device)


def entropy_loss(logits: Tensor) -> Tensor:
    """Return mean entropy of softmax(logits [r,v]) minus entropy of the mean distribution, in nats (2310.05737, eq. 4).

    Low when every vector is sure of its code and all codes are used; at least -log(v).
    """
    log_p = logits.log_softmax(1)
    p = log_p.exp()
    mean = mean_over_ranks(p.mean(0))
    of_each = -(p * log_p).sum(1).mean()
    # Unused codes underflow to 0, where the gradient of the logarithm is infinite.
    of_mean = -(mean * (mean + 1e-5).log()).sum()
    return of_each - of_mean


def _rows(features: Tensor) -> Tensor:
    """Return the vectors of all cells of [n,c,h,w] in the order (n,h,w): float32 [n*h*w,c]."""
    return features.movedim(1, -1).flatten(0, -2).float()
