"""The convolutional encoder and decoder of GigaTok (Xiong et al. 2025, arXiv 2504.08736), with the published names.

LlamaGen's (Sun et al. 2024, arXiv 2406.06525) without attention; the decoder takes two parts from MAGVIT-v2 (2310.05737,
section 3.2).
"""

import torch.nn.functional as F
from torch import Tensor, nn

from latentlab.tokenizers.gigatok_architecture import GigaTokArchitecture
from latentlab.tokenizers.ldm import Downsample, ResnetBlock
from latentlab.tokenizers.magvit import AdaptiveGroupNorm, Upsampler

GROUPS = 32
"""Of every GroupNorm."""

RES_BLOCKS = 2
"""Residual blocks of a level of the encoder; levels of the decoder have one more."""


def _norm(width: int) -> nn.GroupNorm:
    return nn.GroupNorm(GROUPS, width, eps=1e-6)


def _conv3(width_in: int, width_out: int) -> nn.Conv2d:
    return nn.Conv2d(width_in, width_out, kernel_size=3, padding=1)


def _blocks(width_in: int, width_out: int, count: int) -> nn.ModuleList:
    return nn.ModuleList(ResnetBlock(before, width_out, GROUPS) for before in (width_in, *[width_out] * (count - 1)))


class EncoderLevel(nn.Module):
    """The blocks of one resolution, then a halving of the side unless it is the coarsest."""

    def __init__(self, width_in: int, width_out: int, coarsest: bool) -> None:
        super().__init__()
        self.res = _blocks(width_in, width_out, RES_BLOCKS)
        self.downsample = nn.Identity() if coarsest else Downsample(width_out)

    def forward(self, x: Tensor) -> Tensor:
        """Return [n,width_out,h/2,w/2], or [n,width_out,h,w] from the coarsest level."""
        for block in self.res:
            x = block(x)
        return self.downsample(x)


class Encoder(nn.Module):
    """Images [n,3,S,S] in [-1,1] -> features [n,z,h,w]."""

    def __init__(self, config: GigaTokArchitecture) -> None:
        super().__init__()
        widths = [config.ch * multiple for multiple in config.encoder_ch_mult]
        inputs = [config.ch, *widths[:-1]]
        self.conv_in = _conv3(3, config.ch)
        self.conv_blocks = nn.ModuleList(
            EncoderLevel(before, width, coarsest=i == len(widths) - 1)
            for i, (before, width) in enumerate(zip(inputs, widths, strict=True))
        )
        self.mid = _blocks(widths[-1], widths[-1], 2)
        self.norm_out, self.conv_out = _norm(widths[-1]), _conv3(widths[-1], config.z_channels)

    def forward(self, images: Tensor) -> Tensor:
        """Return the features."""
        h = self.conv_in(images)
        for layer in (*self.conv_blocks, *self.mid):
            h = layer(h)
        return self.conv_out(F.silu(self.norm_out(h)))


class DecoderLevel(nn.Module):
    """The blocks of one resolution, then a doubling of the side unless it is the finest."""

    def __init__(self, width_in: int, width_out: int, finest: bool) -> None:
        super().__init__()
        self.res = _blocks(width_in, width_out, RES_BLOCKS + 1)
        self.upsample = nn.Identity() if finest else Upsampler(width_out)

    def forward(self, x: Tensor) -> Tensor:
        """Return [n,width_out,2h,2w], or [n,width_out,h,w] from the finest level."""
        for block in self.res:
            x = block(x)
        return self.upsample(x)


class Decoder(nn.Module):
    """Features [n,z,h,w] -> images [n,3,S,S], not clamped. ``conv_blocks`` and ``adaptive`` are in the order they run."""

    def __init__(self, config: GigaTokArchitecture) -> None:
        super().__init__()
        widths = [config.ch * multiple for multiple in reversed(config.decoder_ch_mult)]
        inputs = [widths[0], *widths[:-1]]
        self.conv_in = _conv3(config.z_channels, widths[0])
        self.mid = _blocks(widths[0], widths[0], 2)
        self.adaptive = nn.ModuleList(AdaptiveGroupNorm(config.z_channels, before, GROUPS) for before in inputs)
        self.conv_blocks = nn.ModuleList(
            DecoderLevel(before, width, finest=i == len(widths) - 1)
            for i, (before, width) in enumerate(zip(inputs, widths, strict=True))
        )
        self.norm_out, self.conv_out = _norm(widths[-1]), _conv3(widths[-1], 3)

    def forward(self, features: Tensor) -> Tensor:
        """Return the images."""
        h = self.conv_in(features)
        for block in self.mid:
            h = block(h)
        for norm, level in zip(self.adaptive, self.conv_blocks, strict=True):
            h = level(norm(h, features))
        return self.conv_out(F.silu(self.norm_out(h)))
