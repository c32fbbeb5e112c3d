"""LDM-style tokenizers: plain autoencoder, KL autoencoder, and the discrete ones with a Euclidean or an IBQ codebook."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from latentlab.errors import UserError
from latentlab.latents import TokenizerSpec
from latentlab.tokenizers.architecture import Architecture, read_architecture
from latentlab.tokenizers.base import DiscreteTokenizer, Tokenizer
from latentlab.tokenizers.ldm import Decoder, Encoder
from latentlab.tokenizers.quantizers import Codebook, DiagonalGaussian, EuclideanCodebook, IBQCodebook


@dataclass(frozen=True)
class TrainOutput:
    """What one training pass gives.

    Attributes:
        reconstruction: images [n,3,H,W], not clamped.
        latents: what the decoder saw, [n,c,h,w].
        losses: unweighted terms of the bottleneck: none, or ``kl``, or ``commitment`` and ``codebook`` (IBQ: ``entropy`` too).
        indices: the chosen codes, int64 [n,h,w], or None.
    """

    reconstruction: Tensor
    latents: Tensor
    losses: dict[str, Tensor] = field(default_factory=dict)
    indices: Tensor | None = None


class Autoencoder(Tokenizer):
    """The plain autoencoder, and what the others share. Parameter names are those of the published checkpoints.

    Attributes:
        architecture: the configuration it was built from.
    """

    def __init__(self, architecture: Architecture, spec: TokenizerSpec) -> None:
        super().__init__()
        self.architecture, self.spec = architecture, spec
        self.encoder, self.decoder = Encoder(architecture), Decoder(architecture)
        twice = 2 if architecture.double_z else 1
        self.quant_conv = nn.Conv2d(twice * architecture.z_channels, twice * architecture.embed_dim, kernel_size=1)
        self.post_quant_conv = nn.Conv2d(architecture.embed_dim, architecture.z_channels, kernel_size=1)

    @torch.no_grad()
    def encode(self, images: Tensor, sample: bool = False, generator: torch.Generator | None = None) -> Tensor:
        """Return un-normalised latents [n,c,H/f,W/f] of images [n,3,H,W] in [-1,1] (see `Tokenizer.encode`)."""
        return self.features(images)

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Return images [n,3,H,W] clamped to [-1,1] from un-normalised latents [n,c,h,w]."""
        if latents.ndim != 4 or latents.shape[1] != self.spec.channels:
            raise UserError(f"latents must be [n,{self.spec.channels},h,w], got shape {list(latents.shape)}")
        return self.reconstruct(latents.to(self.post_quant_conv.weight)).clamp(-1, 1)

    def forward_train(self, images: Tensor, generator: torch.Generator | None = None) -> TrainOutput:
        """Encode and decode images [n,3,H,W] in [-1,1] with gradients.

        Args:
            images: float [n,3,H,W] in [-1,1].
            generator: source of the posterior's noise (KL only).
        """
        latents = self.features(images)
        return TrainOutput(self.reconstruct(latents), latents)

    def features(self, images: Tensor) -> Tensor:
        """Return what comes out of `quant_conv`: latent, posterior moments, or vectors to be quantized.

        Raises:
            UserError: not a float batch [n,in_channels,H,W], or H or W is no multiple of the downsampling.
        """
        channels, factor = self.architecture.in_channels, self.architecture.downsampling
        if images.ndim != 4 or images.shape[1] != channels or not images.is_floating_point():
            raise UserError(
                f"images must be a float batch [n,{channels},H,W] in [-1,1], got {images.dtype} {list(images.shape)}"
            )
        height, width = images.shape[2:]
        if height % factor or width % factor or not height or not width:
            raise UserError(
                f"images of {height}x{width} pixels do not fit '{self.spec.name}': sides must be multiples of {factor}"
            )
        return self.quant_conv(self.encoder(images.to(self.quant_conv.weight)))

    def reconstruct(self, latents: Tensor) -> Tensor:
        """Return images of [n,c,h,w], with gradients and not clamped."""
        return self.decoder(self.post_quant_conv(latents))


class KLAutoencoder(Autoencoder):
    """An autoencoder whose encoder gives a Gaussian posterior per cell."""

    def posterior(self, images: Tensor) -> DiagonalGaussian:
        """Return the posterior of images [n,3,H,W] in [-1,1], with gradients."""
        return DiagonalGaussian(self.features(images))

    @torch.no_grad()
    def encode(self, images: Tensor, sample: bool = False, generator: torch.Generator | None = None) -> Tensor:
        """Return the posterior's mean [n,c,h,w], or a sample of it."""
        posterior = self.posterior(images)
        return posterior.sample(generator) if sample else posterior.mean

    def forward_train(self, images: Tensor, generator: torch.Generator | None = None) -> TrainOutput:
        """Decode a sample of the posterior; ``kl`` is in nats per image, averaged over images."""
        posterior = self.posterior(images)
        latents = posterior.sample(generator)
        return TrainOutput(self.reconstruct(latents), latents, {"kl": posterior.kl().mean()})


class CodebookAutoencoder(Autoencoder, DiscreteTokenizer):
    """An autoencoder whose latents are codes: VQ (nearest) or IBQ (largest dot product)."""

    def __init__(self, architecture: Architecture, spec: TokenizerSpec) -> None:
        super().__init__(architecture, spec)
        assert architecture.n_embed is not None
        kind: type[Codebook] = IBQCodebook if architecture.quantizer == "ibq" else EuclideanCodebook
        self.quantize = kind(architecture.n_embed, architecture.embed_dim)

    @property
    def codebook(self) -> Tensor:
        """Code vectors [v,c]."""
        return self.quantize.embedding.weight.detach()

    @torch.no_grad()
    def indices(self, images: Tensor) -> Tensor:
        """Return codebook indices, int64 [n,h,w]."""
        return self.quantize.nearest(self.features(images))

    @torch.no_grad()
    def codes(self, indices: Tensor) -> Tensor:
        """Return the code vectors [n,c,h,w] of ``indices`` [n,h,w].

        Raises:
            UserError: not integers [n,h,w], or an index outside the codebook.
        """
        if indices.ndim != 3 or indices.is_floating_point():
            raise UserError(f"indices must be integers [n,h,w], got {indices.dtype} {list(indices.shape)}")
        size = len(self.codebook)
        if indices.numel() and (indices.min() < 0 or indices.max() >= size):
            raise UserError(f"indices must lie in 0..{size - 1}, got {indices.min()}..{indices.max()}")
        return self.quantize.lookup(indices.to(self.codebook.device, torch.int64))

    @torch.no_grad()
    def encode(self, images: Tensor, sample: bool = False, generator: torch.Generator | None = None) -> Tensor:
        """Return the codes chosen for the images, [n,c,h,w]; there is no posterior to sample."""
        return self.quantize.lookup(self.indices(images))

    def forward_train(self, images: Tensor, generator: torch.Generator | None = None) -> TrainOutput:
        """Decode the chosen codes, with the gradient of the quantizer."""
        quantized = self.quantize(self.features(images))
        return TrainOutput(self.reconstruct(quantized.latents), quantized.latents, quantized.losses, quantized.indices)


_CLASSES: dict[str, type[Autoencoder]] = {
    "none": Autoencoder,
    "kl": KLAutoencoder,
    "vq": CodebookAutoencoder,
    "ibq": CodebookAutoencoder,
}


def build_tokenizer(
    architecture: Mapping[str, Any],
    *,
    name: str = "custom",
    release: str = "custom",
    shift: tuple[float, ...] = (0.0,),
    scale: tuple[float, ...] = (1.0,),
    weights_sha256: str | None = None,
) -> Autoencoder:
    """Build a tokenizer with fresh weights.

    Args:
        architecture: fields of `Architecture`, e.g. ``ch``, ``ch_mult``, ``z_channels``, ``n_embed``, ``quantizer``.
        name: recorded in the spec.
        release: recorded in the spec.
        shift: subtracted by `normalize`; one number, or one per channel.
        scale: multiplied by `normalize`; one number, or one per channel.
        weights_sha256: hash of the file that will be loaded.

    Raises:
        UserError: an unknown field, a value that cannot be, or a normalisation for another number of channels.
    """
    config = read_architecture(architecture, Architecture)
    for label, values in (("shift", shift), ("scale", scale)):
        if len(values) not in (1, config.embed_dim):
            raise UserError(
                f"{label} has {len(values)} numbers, but the latent has {config.embed_dim} channels (embed_dim)"
            )
    spec = TokenizerSpec(
        name=name,
        release=release,
        kind="vq" if config.discrete else "continuous",
        layout="grid",
        channels=config.embed_dim,
        downsampling=config.downsampling,
        codebook_size=config.n_embed,
        shift=tuple(shift),
        scale=tuple(scale),
        weights_sha256=weights_sha256,
    )
    return _CLASSES[config.quantizer](config, spec)
