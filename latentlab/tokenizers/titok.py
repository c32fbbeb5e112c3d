"""TiTok (Yu et al. 2024, arXiv 2406.07550): an image as a short sequence of codes, or of Gaussian vectors."""

import torch
from torch import Tensor, nn

from latentlab.latents import TokenizerSpec
from latentlab.tokenizers.families import LoadRequest
from latentlab.tokenizers.maskgit_vqgan import CODE_CHANNELS, PixelDecoder
from latentlab.tokenizers.quantizers import Codebook, CosineCodebook, DiagonalGaussian, EuclideanCodebook
from latentlab.tokenizers.sequence_architecture import requested_architecture
from latentlab.tokenizers.sequence_tokenizer import DiscreteSequenceTokenizer, SequenceTokenizer, filled, sequence_spec
from latentlab.tokenizers.titok_architecture import TiTokArchitecture
from latentlab.tokenizers.titok_network import Decoder, Encoder
from latentlab.weights import read_state_dict


class TiTok(SequenceTokenizer):
    """What the kinds of TiTok share; images are converted to its [0,1] and back. Parameter names are the published ones."""

    def __init__(self, architecture: TiTokArchitecture, spec: TokenizerSpec) -> None:
        super().__init__(architecture, spec)
        self.encoder, self.decoder = Encoder(architecture), Decoder(architecture)
        self.latent_tokens = nn.Parameter(
            torch.zeros(architecture.num_latent_tokens, architecture.encoder_transformer.width)
        )

    def features(self, images: Tensor) -> Tensor:
        """Return tokens [n,l,c], or moments [n,l,2c], of images [n,3,S,S] in [-1,1]."""
        return self.encoder((images + 1) / 2, self.latent_tokens)

    def reconstruct(self, latents: Tensor) -> Tensor:
        """Return images [n,3,S,S] in about [-1,1] of latents [n,l,c], not clamped."""
        return self.pixels(latents) * 2 - 1

    def pixels(self, latents: Tensor) -> Tensor:
        """Return images [n,3,S,S] in about [0,1]."""
        return self.decoder(latents)


class PosteriorTiTok(TiTok):
    """TiTok with a Gaussian posterior for every token."""

    @torch.no_grad()
    def encode(self, images: Tensor, sample: bool = False, generator: torch.Generator | None = None) -> Tensor:
        """Return the posterior's mean [n,l,c], or a sample of it."""
        posterior = DiagonalGaussian(self.features(self.checked(images)).transpose(1, 2))
        latents = posterior.sample(generator) if sample else posterior.mean
        return latents.transpose(1, 2).contiguous()


class CodebookTiTok(TiTok, DiscreteSequenceTokenizer):
    """TiTok with a codebook."""

    def __init__(self, architecture: TiTokArchitecture, spec: TokenizerSpec) -> None:
        super().__init__(architecture, spec)
        assert architecture.codebook_size is not None
        kind: type[Codebook] = CosineCodebook if architecture.use_l2_norm else EuclideanCodebook
        self.quantize = kind(architecture.codebook_size, architecture.token_size)


class LegacyTiTok(CodebookTiTok):
    """The first models: the decoder predicts the codes of a VQGAN, whose decoder makes the pixels."""

    def __init__(self, architecture: TiTokArchitecture, spec: TokenizerSpec) -> None:
        super().__init__(architecture, spec)
        self.pixel_quantize = EuclideanCodebook(architecture.pixel_codebook_size, CODE_CHANNELS)
        self.pixel_decoder = PixelDecoder(architecture.hidden_channels)

    def pixels(self, latents: Tensor) -> Tensor:
        """Return images [n,3,S,S] in about [0,1]; every cell of the VQGAN gets the mean of its codes, weighted by probability."""
        probabilities = self.decoder(latents).softmax(1)
        return self.pixel_decoder(torch.einsum("nvhw,vc->nchw", probabilities, self.pixel_quantize.vectors))


def load_titok(request: LoadRequest) -> TiTok:
    """Return the tokenizer; ``config.json`` beside the weights says what it is.

    Raises:
        UserError: a file that is missing, damaged, or does not fit the architecture; an unknown architecture field.
    """
    state = read_state_dict(request.path)
    architecture = requested_architecture(request, TiTokArchitecture)
    spec = sequence_spec(request, architecture, codebook_size=architecture.n_embed)
    kind = kind_of(architecture)
    return filled(lambda: kind(architecture, spec), state, request)


def kind_of(architecture: TiTokArchitecture) -> type[TiTok]:
    """Return the class of tokenizers with this architecture."""
    if architecture.quantize_mode == "vae":
        return PosteriorTiTok
    return LegacyTiTok if architecture.is_legacy else CodebookTiTok
