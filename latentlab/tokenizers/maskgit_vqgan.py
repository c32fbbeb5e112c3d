"""The decoder of MaskGIT's VQGAN (Chang et al. 2022, arXiv 2202.04200), which makes the pixels of the first TiTok models."""

import torch.nn.functional as F
from torch import Tensor, nn

CH_MULT = (1, 1, 2, 2, 4)
"""Width of each level as a multiple of the first one's, finest level first."""

CODE_CHANNELS = 256
"""Channels of its codes."""

RES_BLOCKS = 2
"""Residual blocks at every level, and between them and the codes."""


def _norm(width: int) -> nn.GroupNorm:
    return nn.GroupNorm(32, width, eps=1e-6)


def _conv3(width_in: int, width_out: int, bias: bool = True) -> nn.Conv2d:
    return nn.Conv2d(width_in, width_out, kernel_size=3, padding=1, bias=bias)


class ResnetBlock(nn.Module):
    """Two 3x3 convolutions without bias, each after normalisation and swish: [n,width_in,h,w] -> [n,width_out,h,w]."""

    def __init__(self, width_in: int, width_out: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = _norm(width_in), _conv3(width_in, width_out, bias=False)
        self.norm2, self.conv2 = _norm(width_out), _conv3(width_out, width_out, bias=False)
        if width_in != width_out:
            self.nin_shortcut = nn.Conv2d(width_out, width_out, kernel_size=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output.

        Where the width changes, nothing of the input is added: the "shortcut" of the published model reads the second
        convolution's output, and its weights were trained so.
        """
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h)))
        return h + (self.nin_shortcut(h) if hasattr(self, "nin_shortcut") else x)


class Level(nn.Module):
    """The blocks of one resolution, then a doubling of the side unless it is the finest."""

    def __init__(self, width_in: int, width_out: int, finest: bool) -> None:
        super().__init__()
        inputs = [width_in, *[width_out] * (RES_BLOCKS - 1)]
        self.block = nn.ModuleList(ResnetBlock(before, width_out) for before in inputs)
        self.upsample_conv = None if finest else _conv3(width_out, width_out)

    def forward(self, x: Tensor) -> Tensor:
        """Return [n,width_out,2h,2w], or [n,width_out,h,w] from the finest level."""
        for block in self.block:
            x = block(x)
        return (
            x if self.upsample_conv is None else self.upsample_conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
        )


class PixelDecoder(nn.Module):
    """Codes [n,c,h,w] -> images [n,3,16h,16w] in about [0,1]. ``up.i`` is level i, so the last one runs first."""

    def __init__(self, hidden_channels: int) -> None:
        """Make a decoder whose finest level has ``hidden_channels``, a multiple of 32."""
        super().__init__()
        widths = [hidden_channels * multiple for multiple in CH_MULT]
        inputs = [*widths[1:], widths[-1]]
        self.conv_in = _conv3(CODE_CHANNELS, widths[-1])
        self.mid = nn.ModuleList(ResnetBlock(widths[-1], widths[-1]) for _ in range(RES_BLOCKS))
        self.up = nn.ModuleList(
            Level(before, width, finest=i == 0) for i, (before, width) in enumerate(zip(inputs, widths, strict=True))
        )
        self.norm_out, self.conv_out = _norm(widths[0]), _conv3(widths[0], 3)

    def forward(self, codes: Tensor) -> Tensor:
        """Return the images."""
        h = self.conv_in(codes)
        for layer in (*self.mid, *reversed(self.up)):
            h = layer(h)
        return self.conv_out(F.silu(self.norm_out(h)))
