"""LDM-style tokenizers: plain autoencoder, KL autoencoders, and the discrete ones with one of five kinds of codes."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from latentlab.errors import UserError
from latentlab.latents import TokenizerSpec
from latentlab.tokenizers.architecture import Architecture, read_architecture
from latentlab.tokenizers.base import DiscreteTokenizer
from latentlab.tokenizers.checks import check_images, check_indices, check_latents
from latentlab.tokenizers.ldm import Decoder, Encoder
from latentlab.tokenizers.patch_statistics import PatchStatistics
from latentlab.tokenizers.quantizers import Codebook, CosineCodebook, DiagonalGaussian, EuclideanCodebook, IBQCodebook
from latentlab.tokenizers.scalar_quantizers import FiniteScalarCodebook, Quantizer, SignCodebook
from latentlab.tokenizers.trainable import TrainableTokenizer, TrainLatents

CODEBOOKS: dict[str, type[Codebook]] = {"vq": EuclideanCodebook, "vq-cosine": CosineCodebook, "ibq": IBQCodebook}
"""By the name in `Architecture.quantizer`."""


class Autoencoder(TrainableTokenizer):
    """The plain autoencoder, and what the others share. Parameter names are those of the published checkpoints.

    Attributes:
        architecture: the configuration it was built from.
    """

    def __init__(self, architecture: Architecture, spec: TokenizerSpec) -> None:
        super().__init__()
        self.architecture, self.spec = architecture, spec
        self.encoder, self.decoder = self.new_networks()
        twice, inner, outer = 2 if architecture.double_z else 1, architecture.z_channels, architecture.embed_dim
        self.quant_conv = _conv1(twice * inner, twice * outer) if architecture.use_quant_conv else nn.Identity()
        self.post_quant_conv = _conv1(outer, inner) if architecture.use_post_quant_conv else nn.Identity()

    @torch.no_grad()
    def encode(self, images: Tensor, sample: bool = False, generator: torch.Generator | None = None) -> Tensor:
        """Return un-normalised latents [n,c,H/f,W/f] of images [n,3,H,W] in [-1,1] (see `Tokenizer.encode`)."""
        return self.features(images)

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Return images [n,3,H,W] clamped to [-1,1] from un-normalised latents [n,c,h,w]."""
        check_latents(latents, self.spec.channels)
        return self.reconstruct(latents.to(self._like)).clamp(-1, 1)

    def encode_train(self, images: Tensor, generator: torch.Generator | None = None) -> TrainLatents:
        """Encode images [n,3,H,W] in [-1,1] with gradients.

        Args:
            images: float [n,3,H,W] in [-1,1].
            generator: source of the posterior's noise (KL only).
        """
        return TrainLatents(self.training_features(images, generator))

    def new_networks(self) -> tuple[Any, Any]:
        """Return encoder and decoder with fresh weights."""
        return Encoder(self.architecture), Decoder(self.architecture)

    def training_features(self, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Return `features` as training sees them: here, the same."""
        return self.features(images)

    def features(self, images: Tensor) -> Tensor:
        """Return what comes out of `quant_conv`: latent, posterior moments, or vectors to be quantized.

        Raises:
            UserError: not a float batch [n,in_channels,H,W], or H or W is no multiple of the downsampling.
        """
        check_images(images, self.spec.name, self.architecture.in_channels, self.architecture.downsampling)
        return self.quant_conv(self.encoder(images.to(self._like)))

    def reconstruct(self, latents: Tensor) -> Tensor:
        """Return images of [n,c,h,w], with gradients and not clamped."""
        return self.decoder(self.post_quant_conv(latents))

    @property
    def last_encoder_weight(self) -> Tensor:
        """The parameter at which adaptive weights of losses on the latents are measured."""
        return self.encoder.conv_out.weight

    @property
    def last_decoder_weight(self) -> Tensor:
        """The parameter at which adaptive weights of losses on the images are measured."""
        return self.decoder.conv_out.weight

    @property
    def _like(self) -> Tensor:
        return self.encoder.conv_in.weight


class KLAutoencoder(Autoencoder):
    """An autoencoder whose encoder gives a Gaussian posterior per cell."""

    @property
    def loss_terms(self) -> tuple[str, ...]:
        """The divergence of the posterior."""
        return ("kl",)

    def posterior(self, images: Tensor) -> DiagonalGaussian:
        """Return the posterior of images [n,3,H,W] in [-1,1], with gradients."""
        return DiagonalGaussian(self.features(images))

    @torch.no_grad()
    def encode(self, images: Tensor, sample: bool = False, generator: torch.Generator | None = None) -> Tensor:
        """Return the posterior's mean [n,c,h,w], or a sample of it."""
        posterior = self.posterior(images)
        return posterior.sample(generator) if sample else posterior.mean

    def encode_train(self, images: Tensor, generator: torch.Generator | None = None) -> TrainLatents:
        """Return a sample of the posterior; ``kl`` is in nats per image, averaged over images."""
        posterior = DiagonalGaussian(self.training_features(images, generator))
        return TrainLatents(posterior.sample(generator), {"kl": posterior.kl().mean()})


class PatchNormalisedAutoencoder(KLAutoencoder):
    """A KL autoencoder whose latents are normalised by patches of cells: FLUX.2 (the formula is in `PatchStatistics`).

    `encode` and `decode` speak of the plain latents [n,c,h,w]; `normalize` gives what the published generators are trained on,
    [n,c*p*p,h/p,w/p], and `denormalize` takes that. Shift and scale in the spec are the same statistics pooled over the cells of
    a patch, for whoever normalises stored latents per channel.
    """

    def __init__(self, architecture: Architecture, spec: TokenizerSpec) -> None:
        super().__init__(architecture, spec)
        self.bn = PatchStatistics(architecture.embed_dim, architecture.patch_size, architecture.batch_norm_eps)

    def normalize(self, latents: Tensor) -> Tensor:
        """Return [n,c*p*p,h/p,w/p] of latents [n,c,h,w]."""
        return self.bn.normalize(latents)

    def denormalize(self, latents: Tensor) -> Tensor:
        """Invert `normalize`: [n,c,h,w] of [n,c*p*p,h/p,w/p]."""
        return self.bn.denormalize(latents)


class CodebookAutoencoder(Autoencoder, DiscreteTokenizer):
    """An autoencoder whose latents are codes: of a codebook (VQ, cosine VQ, IBQ), signs (LFQ) or levels per channel (FSQ)."""

    def __init__(self, architecture: Architecture, spec: TokenizerSpec) -> None:
        super().__init__(architecture, spec)
        self.quantize = _quantizer(architecture)

    @property
    def loss_terms(self) -> tuple[str, ...]:
        """Those of the quantizer."""
        return self.quantize.loss_terms

    @property
    def needed_terms(self) -> tuple[str, ...]:
        """Those of the quantizer."""
        return self.quantize.needed_terms

    @property
    def codebook(self) -> Tensor:
        """Code vectors [v,c], as they appear in latents."""
        return self.quantize.vectors.detach()

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
        check_indices(indices, self.architecture.n_embed or 0)
        return self.quantize.lookup(indices.to(self._like.device, torch.int64))

    @torch.no_grad()
    def encode(self, images: Tensor, sample: bool = False, generator: torch.Generator | None = None) -> Tensor:
        """Return the codes chosen for the images, [n,c,h,w]; there is no posterior to sample."""
        return self.quantize.lookup(self.indices(images))

    def encode_train(self, images: Tensor, generator: torch.Generator | None = None) -> TrainLatents:
        """Return the chosen codes, with the gradient of the quantizer."""
        quantized = self.quantize(self.training_features(images, generator))
        return TrainLatents(quantized.latents, quantized.losses, quantized.indices)


def _conv1(channels_in: int, channels_out: int) -> nn.Conv2d:
    return nn.Conv2d(channels_in, channels_out, kernel_size=1)


def _quantizer(architecture: Architecture) -> Quantizer:
    if architecture.quantizer == "lfq":
        return SignCodebook(architecture.embed_dim)
    if architecture.quantizer == "fsq":
        assert architecture.levels is not None
        return FiniteScalarCodebook(architecture.levels)
    assert architecture.n_embed is not None
    return CODEBOOKS[architecture.quantizer](architecture.n_embed, architecture.embed_dim)


def _kind(config: Architecture) -> type[Autoencoder]:
    if config.discrete:
        return CodebookAutoencoder
    if config.patch_size > 1:
        return PatchNormalisedAutoencoder
    return KLAutoencoder if config.quantizer == "kl" else Autoencoder


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
        kind="lfq" if config.quantizer == "lfq" else "vq" if config.discrete else "continuous",
        layout="grid",
        channels=config.embed_dim,
        downsampling=config.downsampling,
        codebook_size=config.n_embed,
        shift=tuple(shift),
        scale=tuple(scale),
        weights_sha256=weights_sha256,
    )
    return _kind(config)(config, spec)
