"""MAETok (Chen et al. 2025, arXiv 2502.03444): a transformer autoencoder with a sequence of latent tokens."""

from collections.abc import Mapping
from typing import TypeVar

from torch import Tensor, nn

from latentlab.errors import UserError
from latentlab.latents import TokenizerSpec
from latentlab.tokenizers.families import LoadRequest
from latentlab.tokenizers.maetok_architecture import MAETokArchitecture
from latentlab.tokenizers.maetok_network import Decoder, Encoder
from latentlab.tokenizers.sequence_architecture import overrides_of, recorded_fields, requested_architecture
from latentlab.tokenizers.sequence_tokenizer import SequenceTokenizer, filled, sequence_spec
from latentlab.weights import read_state_dict

AUXILIARY = ("decoder_", "post_quant_conv_", "to_pixel_")
"""Beginnings of the names of what predicts further features of images in training: ``hog``, ``dino``, ``clip``."""

UNUSED = (
    *AUXILIARY,
    "encoder.mask_token",  # stands in for patches that training hides
    "decoder.model.patch_embed.",  # the decoder sees no image; some published files lack it
    "quantize.codebook_used",
    "clip_model.",
    "hog_generator.",
    "repa_model.",
    "projection.",
)
"""Beginnings of the names of what published files may hold for training alone."""

STATISTICS = {"vq_mean", "vq_std"}

SIZE = {"embed_dim", "depth", "num_heads"}
"""Fields that no published configuration has."""

CLASS_TOKEN, POSITIONS = "decoder.model.cls_token", "decoder.model.pos_embed"


class MAETok(SequenceTokenizer):
    """A transformer autoencoder without quantisation; parameter names are those of the published files."""

    def __init__(self, architecture: MAETokArchitecture, spec: TokenizerSpec) -> None:
        super().__init__(architecture, spec)
        channels = architecture.codebook_embed_dim
        self.encoder, self.decoder = Encoder(architecture), Decoder(architecture)
        self.quant_conv = nn.Linear(architecture.encoder_transformer.width, channels)
        self.post_quant_conv = nn.Linear(channels, architecture.decoder_transformer.width)

    def features(self, images: Tensor) -> Tensor:
        """Return the latents [n,l,c] of images [n,3,S,S] in [-1,1]."""
        return self.quant_conv(self.encoder(images))

    def reconstruct(self, latents: Tensor) -> Tensor:
        """Return images [n,3,S,S] of latents [n,l,c], not clamped."""
        return self.decoder(latents, self.post_quant_conv(latents))


M = TypeVar("M", bound=MAETok)


def load_maetok(request: LoadRequest) -> MAETok:
    """Return the tokenizer; ``config.json`` beside the weights says what it is.

    Raises:
        UserError: a file that is missing, damaged, or does not fit the architecture; an unknown architecture field.
    """
    return load_kind(request, MAETok, MAETokArchitecture)


def load_kind(request: LoadRequest, kind: type[M], fields: type[MAETokArchitecture]) -> M:
    """Return a tokenizer of this ``kind``, whose architecture has these ``fields``.

    Raises:
        UserError: see `load_maetok`.
    """
    state = read_state_dict(request.path)
    check_statistics(request, fields)
    architecture = with_class_token(requested_architecture(request, fields), state)
    spec = sequence_spec(request, architecture, shift=architecture.vq_mean, scale=1 / architecture.vq_std)
    unused = UNUSED if architecture.use_ape else (*UNUSED, POSITIONS)
    return filled(lambda: kind(architecture, spec), state, request, unused)


def check_statistics(request: LoadRequest, fields: type[MAETokArchitecture]) -> None:
    """Raise `UserError` where nobody says by what mean and deviation the latents of a published network are normalised.

    A ``config.json`` that leaves them out means the authors' defaults, 0 and 1, and so does another size of the network, which
    no published weights have.
    """
    overrides = overrides_of(request, fields)
    known = {**(request.release.architecture or {}), **overrides}
    if known.keys() >= STATISTICS or overrides.keys() & SIZE or recorded_fields(request, fields):
        return
    raise UserError(
        f"{request.beside('config.json')} is missing: it says by what the latents of '{request.name}' are normalised; put it "
        "there, say the --release, or give --architecture vq_mean=... and --architecture vq_std=..."
    )


def with_class_token(architecture: MAETokArchitecture, state: Mapping[str, Tensor]) -> MAETokArchitecture:
    """Return the architecture with a class token in the decoder if the file has one; what it says itself stays."""
    if architecture.dec_cls_token is not None:
        return architecture
    return architecture.model_copy(update={"dec_cls_token": CLASS_TOKEN in state})
