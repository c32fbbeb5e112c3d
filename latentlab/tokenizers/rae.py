"""RAE as a tokenizer (Zheng et al. 2025, arXiv 2510.11690): a frozen DINOv2 encoder, and a decoder trained for it."""

import torch
import torch.nn.functional as F
from torch import Tensor

from latentlab.errors import UserError
from latentlab.latents import TokenizerSpec
from latentlab.tokenizers.base import Tokenizer
from latentlab.tokenizers.checks import check_images
from latentlab.tokenizers.families import LoadRequest
from latentlab.tokenizers.hub_architecture import RAEArchitecture
from latentlab.tokenizers.hub_files import hub_architecture, hub_spec, put_weights
from latentlab.tokenizers.rae_network import Decoder, Encoder
from latentlab.weights import read_state_dict

STATISTICS = ("_latents_mean", "_latents_std")
"""Published beside the weights, per channel or per channel and cell."""

UNUSED = ("decoder.decoder_pos_embed",)
"""Positions that older files hold; they are computed."""


class RepresentationAutoencoder(Tokenizer):
    """RAE; there is no posterior to sample.

    Its latents are normalised by the published statistics, which may differ from cell to cell, inside `encode`: they are what the
    authors' generators are trained on, and `normalize` changes nothing.

    Attributes:
        architecture: the configuration it was built from.
    """

    encoder_mean: Tensor
    encoder_std: Tensor
    _latents_mean: Tensor
    _latents_std: Tensor

    def __init__(self, architecture: RAEArchitecture, spec: TokenizerSpec, statistics: torch.Size) -> None:
        """Build it with fresh weights; ``statistics`` is the shape of mean and standard deviation of the latents."""
        super().__init__()
        self.architecture, self.spec = architecture, spec
        self.encoder, self.decoder = Encoder(architecture), Decoder(architecture)
        for name in ("encoder_mean", "encoder_std"):
            self.register_buffer(name, torch.zeros(1, 3, 1, 1))
        for name in STATISTICS:
            self.register_buffer(name, torch.zeros(statistics))

    @torch.no_grad()
    def encode(self, images: Tensor, sample: bool = False, generator: torch.Generator | None = None) -> Tensor:
        """Return latents [n,c,h,w] of images [n,3,S,S] in [-1,1]; a size other than the encoder's is resized to it.

        Raises:
            UserError: not a float batch [n,3,S,S], or neither of the two sizes that belong to the model.
        """
        check_images(images, self.spec.name)
        config, size = self.architecture, tuple(images.shape[2:])
        inner = config.encoder_input_size
        if size not in ((config.resolution, config.resolution), (inner, inner)):
            raise UserError(
                f"images of {size[0]}x{size[1]} pixels do not fit '{self.spec.name}': it takes "
                f"{config.resolution}x{config.resolution}; give --image-size {config.resolution}"
            )
        pixels = (images.to(self.encoder_mean) + 1) / 2
        if size != (inner, inner):
            pixels = F.interpolate(pixels, size=(inner, inner), mode="bicubic", align_corners=False)
        tokens = self.encoder((pixels - self.encoder_mean) / self.encoder_std)
        latents = tokens.transpose(1, 2).unflatten(2, (config.latent_side, config.latent_side))
        return (latents - self._latents_mean) / self._spread * config.scaling_factor

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Return images [n,3,S,S] clamped to [-1,1] from latents [n,c,h,w] as `encode` gives them.

        Raises:
            UserError: latents of another shape.
        """
        if tuple(latents.shape[1:]) != self.architecture.latent_shape:
            channels, side, _ = self.architecture.latent_shape
            raise UserError(f"latents must be [n,{channels},{side},{side}], got shape {list(latents.shape)}")
        raw = latents.to(self.encoder_mean) / self.architecture.scaling_factor * self._spread + self._latents_mean
        pixels = self.decoder(raw.flatten(2).transpose(1, 2)) * self.encoder_std + self.encoder_mean
        return (pixels * 2 - 1).clamp(-1, 1)

    @property
    def _spread(self) -> Tensor:
        return self._latents_std + 1e-5


def load_rae(request: LoadRequest) -> RepresentationAutoencoder:
    """Return the tokenizer; its architecture is the release's, changed by ``config.json`` beside the weights, then the overrides.

    Raises:
        UserError: a file that is missing, unsafe, damaged, or does not fit the architecture; an unknown architecture field.
    """
    architecture = hub_architecture(request, "AutoencoderRAE", RAEArchitecture)
    state = {key: tensor for key, tensor in read_state_dict(request.path).items() if key not in UNUSED}
    statistics = state[STATISTICS[0]].shape if STATISTICS[0] in state else torch.Size([1])
    spec = hub_spec(request, architecture)
    return put_weights(lambda: RepresentationAutoencoder(architecture, spec, statistics), state, request)
