"""Tokenizers whose encoder and decoder are vision transformers, with any bottleneck of the convolutional ones between them."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from latentlab.files import file_sha256
from latentlab.latents import TokenizerSpec
from latentlab.tokenizers.architecture import read_architecture
from latentlab.tokenizers.autoencoder import Autoencoder, CodebookAutoencoder, KLAutoencoder
from latentlab.tokenizers.checks import check_images
from latentlab.tokenizers.families import LoadRequest
from latentlab.tokenizers.grid_positions import axial_rotation
from latentlab.tokenizers.maetok_network import ToPixel
from latentlab.tokenizers.masking import draw_hidden, hide, new_mask_token
from latentlab.tokenizers.sequence_architecture import TransformerSize
from latentlab.tokenizers.sequence_tokenizer import filled
from latentlab.tokenizers.transformer_autoencoder_architecture import TransformerArchitecture
from latentlab.tokenizers.transformer_initialisation import initialise
from latentlab.tokenizers.vision_transformer import EPSILON, Block, PatchEmbed
from latentlab.tokenizers.weight_metadata import read_weight_metadata
from latentlab.weights import read_state_dict


class GridTransformer(nn.Module):
    """Blocks over the tokens of a grid, and a last norm."""

    def __init__(self, size: TransformerSize) -> None:
        super().__init__()
        self.size = size
        self.blocks = nn.ModuleList(Block(size) for _ in range(size.depth))
        self.norm = nn.LayerNorm(size.width, eps=EPSILON)

    def attend(self, tokens: Tensor, rows: int, columns: int) -> Tensor:
        """Return [n,p,w] of tokens [n,p,w], p = rows*columns, row by row."""
        rotation = axial_rotation(rows, columns, self.size, tokens.device)
        for block in self.blocks:
            tokens = block(tokens, rotation)
        return self.norm(tokens)


class GridEncoder(GridTransformer):
    """Images [n,3,H,W] -> latents, moments, or vectors to be quantized, [n,c,h,w]."""

    def __init__(self, config: TransformerArchitecture) -> None:
        size = config.encoder_transformer
        super().__init__(size)
        self.patch_embed = PatchEmbed(config.downsampling, size.width)
        self.mask_token = new_mask_token(size.width) if config.mask_ratio else None
        self.to_latent = nn.Linear(size.width, (2 if config.double_z else 1) * config.embed_dim)

    def forward(self, images: Tensor, hidden: Tensor | None = None) -> Tensor:
        """Return [n,c,h,w]; patches that are ``hidden``, bool [n,p], have no influence on it."""
        rows, columns = (side // self.patch_embed.proj.stride[0] for side in images.shape[2:])
        patches = self.patch_embed(images)
        if hidden is not None:
            assert self.mask_token is not None
            patches = hide(patches, hidden, self.mask_token)
        latents: Tensor = self.to_latent(self.attend(patches, rows, columns))
        return latents.transpose(1, 2).unflatten(2, (rows, columns))


class GridDecoder(GridTransformer):
    """Latents [n,c,h,w] -> images [n,3,H,W], not clamped."""

    def __init__(self, config: TransformerArchitecture) -> None:
        size = config.decoder_transformer
        super().__init__(size)
        self.from_latent = nn.Linear(config.embed_dim, size.width)
        self.to_pixel = ToPixel(size.width, config.downsampling)

    def forward(self, latents: Tensor) -> Tensor:
        """Return the images."""
        rows, columns = latents.shape[2:]
        tokens = self.attend(self.from_latent(latents.flatten(2).transpose(1, 2)), rows, columns)
        images: Tensor = self.to_pixel(tokens, (rows, columns))
        return images


class TransformerAutoencoder(Autoencoder):
    """The plain one, and the networks of the others.

    Attributes:
        architecture: the configuration it was built from.
    """

    architecture: TransformerArchitecture  # type: ignore[assignment]
    encoder: GridEncoder
    decoder: GridDecoder

    def new_networks(self) -> tuple[Any, Any]:
        """Return encoder and decoder with fresh weights."""
        networks = GridEncoder(self.architecture), GridDecoder(self.architecture)
        for network in networks:
            initialise(network)
        return networks

    def training_features(self, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Return what the encoder says of images of which it does not see a share ``mask_ratio`` of the patches."""
        ratio, patch = self.architecture.mask_ratio, self.architecture.downsampling
        if not ratio:
            return self.features(images)
        check_images(images, self.spec.name, factor=patch)
        patches = (images.shape[2] // patch) * (images.shape[3] // patch)
        hidden = draw_hidden(len(images), patches, (ratio, ratio), generator)
        features: Tensor = self.encoder(images.to(self._like), hidden)
        return features

    @property
    def last_encoder_weight(self) -> Tensor:
        """The parameter at which adaptive weights of losses on the latents are measured."""
        return self.encoder.to_latent.weight

    @property
    def last_decoder_weight(self) -> Tensor:
        """The parameter at which adaptive weights of losses on the images are measured."""
        return self.decoder.to_pixel.model.weight

    @property
    def _like(self) -> Tensor:
        return self.encoder.patch_embed.proj.weight


class KLTransformerAutoencoder(TransformerAutoencoder, KLAutoencoder):
    """With a Gaussian posterior per cell."""


class CodebookTransformerAutoencoder(TransformerAutoencoder, CodebookAutoencoder):
    """With latents that are codes."""


def build_transformer(
    architecture: Mapping[str, Any],
    *,
    name: str = "custom",
    release: str = "custom",
    weights_sha256: str | None = None,
) -> TransformerAutoencoder:
    """Build a tokenizer with fresh weights.

    Args:
        architecture: fields of `TransformerArchitecture`.
        name: recorded in the spec.
        release: recorded in the spec.
        weights_sha256: hash of the file that will be loaded.

    Raises:
        UserError: an unknown field, or a value that cannot be.
    """
    config = read_architecture(architecture, TransformerArchitecture)
    spec = TokenizerSpec(
        name=name,
        release=release,
        kind="lfq" if config.quantizer == "lfq" else "vq" if config.discrete else "continuous",
        layout="grid",
        channels=config.embed_dim,
        downsampling=config.downsampling,
        codebook_size=config.n_embed,
        weights_sha256=weights_sha256,
    )
    return _kind(config)(config, spec)  # type: ignore[arg-type]


def _kind(config: TransformerArchitecture) -> type[TransformerAutoencoder]:
    if config.discrete:
        return CodebookTransformerAutoencoder
    return KLTransformerAutoencoder if config.quantizer == "kl" else TransformerAutoencoder


def load_transformer(request: LoadRequest) -> TransformerAutoencoder:
    """Return the tokenizer of a file that latentlab wrote, or of one with its names and an architecture that is given.

    Raises:
        UserError: a file that is missing, damaged, or does not fit the architecture; an unknown architecture field.
    """
    header = read_weight_metadata(request.path)
    fields = request.architecture if header is None else {**header.architecture, **request.overrides}

    def build() -> TransformerAutoencoder:
        digest = file_sha256(request.path)
        return build_transformer(fields, name=request.name, release=request.release.name, weights_sha256=digest)

    return filled(build, read_state_dict(request.path), request)
