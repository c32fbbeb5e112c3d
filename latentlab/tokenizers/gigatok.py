"""GigaTok (Xiong et al. 2025, arXiv 2504.08736): convolutions, then a transformer to a sequence of codes; and back."""

from argparse import Namespace

import torch
from torch import Tensor, nn

from latentlab.latents import TokenizerSpec
from latentlab.tokenizers.families import LoadRequest
from latentlab.tokenizers.gigatok_architecture import GigaTokArchitecture
from latentlab.tokenizers.gigatok_cnn import Decoder, Encoder
from latentlab.tokenizers.gigatok_network import GridToSequence, SequenceToGrid
from latentlab.tokenizers.quantizers import CosineCodebook
from latentlab.tokenizers.sequence_architecture import requested_architecture
from latentlab.tokenizers.sequence_tokenizer import DiscreteSequenceTokenizer, filled, sequence_spec
from latentlab.weights import read_state_dict

UNUSED = ("s1to2decoder.distill_mlp.", "quantize.codebook_used")
"""Beginnings of the names of what only training needs: the map to features of another model, and a record of codes."""

AVERAGED, RAW = "ema", ("model", "state_dict")
"""Entries of published files under which the weights may lie."""


class GigaTok(DiscreteSequenceTokenizer):
    """A tokenizer of the GigaTok family; parameter names are those of the published files."""

    def __init__(self, architecture: GigaTokArchitecture, spec: TokenizerSpec) -> None:
        super().__init__(architecture, spec)
        channels, code = architecture.z_channels, architecture.codebook_embed_dim
        self.encoder, self.decoder = Encoder(architecture), Decoder(architecture)
        self.s2to1encoder, self.s1to2decoder = GridToSequence(architecture), SequenceToGrid(architecture)
        self.quantize = CosineCodebook(architecture.codebook_size, code)
        self.quant_conv = nn.Conv2d(channels, code, kernel_size=1)
        self.post_quant_conv = nn.Conv2d(code, channels, kernel_size=1)

    def features(self, images: Tensor) -> Tensor:
        """Return the vectors to be quantized, [n,l,c], of images [n,3,S,S] in [-1,1]."""
        return self.quant_conv(self.s2to1encoder(self.encoder(images))).squeeze(2).transpose(1, 2)

    def reconstruct(self, latents: Tensor) -> Tensor:
        """Return images [n,3,S,S] of codes [n,l,c], not clamped."""
        sequence = self.post_quant_conv(latents.transpose(1, 2).unsqueeze(2))
        return self.decoder(self.s1to2decoder(sequence))


def load_gigatok(request: LoadRequest) -> GigaTok:
    """Return the tokenizer with averaged weights where the file has them, unless the raw ones are asked for.

    Raises:
        UserError: a file that is missing, unsafe, damaged, or does not fit the architecture; an unknown architecture field.
    """
    with torch.serialization.safe_globals([Namespace]):  # the arguments of the training; the class does nothing
        state = read_state_dict(request.path, wrappers=(AVERAGED, *RAW) if request.ema else RAW)
    architecture = requested_architecture(request, GigaTokArchitecture)
    spec = sequence_spec(request, architecture, codebook_size=architecture.codebook_size, raw=not request.ema)
    return filled(lambda: GigaTok(architecture, spec), state, request, UNUSED)
