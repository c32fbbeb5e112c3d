"""DC-AE as a tokenizer: a deterministic autoencoder that shrinks images 32 times."""

from dataclasses import replace

import torch
from torch import Tensor

from latentlab.latents import TokenizerSpec
from latentlab.tokenizers.base import Tokenizer
from latentlab.tokenizers.checks import check_images, check_latents
from latentlab.tokenizers.deep_compression_network import Decoder, Encoder
from latentlab.tokenizers.families import LoadRequest
from latentlab.tokenizers.hub_architecture import DCArchitecture
from latentlab.tokenizers.hub_files import hub_architecture, hub_spec, put_weights
from latentlab.weights import read_state_dict


class DeepCompressionAutoencoder(Tokenizer):
    """DC-AE; there is no posterior to sample.

    Attributes:
        architecture: the configuration it was built from.
    """

    def __init__(self, architecture: DCArchitecture, spec: TokenizerSpec) -> None:
        super().__init__()
        self.architecture, self.spec = architecture, spec
        self.encoder, self.decoder = Encoder(architecture), Decoder(architecture)

    @torch.no_grad()
    def encode(self, images: Tensor, sample: bool = False, generator: torch.Generator | None = None) -> Tensor:
        """Return latents [n,c,H/f,W/f] of images [n,3,H,W] in [-1,1].

        Raises:
            UserError: not a float batch [n,3,H,W], or H or W is no multiple of f, 32 in published models.
        """
        check_images(images, self.spec.name, self.architecture.in_channels, self.architecture.downsampling)
        latents: Tensor = self.encoder(images.to(self.decoder.conv_in.weight))
        return latents

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Return images [n,3,H,W] clamped to [-1,1] from latents [n,c,h,w]."""
        check_latents(latents, self.spec.channels)
        images: Tensor = self.decoder(latents.to(self.decoder.conv_in.weight))
        return images.clamp(-1, 1)


def load_deep_compression(request: LoadRequest) -> DeepCompressionAutoencoder:
    """Return the tokenizer; its architecture is the release's, changed by ``config.json`` beside the weights, then the overrides.

    Raises:
        UserError: a file that is missing, unsafe, damaged, or does not fit the architecture; an unknown architecture field.
    """
    architecture = hub_architecture(request, "AutoencoderDC", DCArchitecture)
    state = read_state_dict(request.path)
    spec = replace(hub_spec(request, architecture), scale=(architecture.scaling_factor,))
    return put_weights(lambda: DeepCompressionAutoencoder(architecture, spec), state, request)
