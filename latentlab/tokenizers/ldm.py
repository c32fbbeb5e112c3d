"""The encoder and decoder of latent diffusion and VQGAN, with the parameter names of the published checkpoints.

Esser et al. 2021 (arXiv 2012.09841) and Rombach et al. 2022 (arXiv 2112.10752). IBQ, VQGAN, MAR's KL-16 and VA-VAE share it.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from latentlab.tokenizers.architecture import LDMConfig

__all__ = ["Decoder", "Encoder", "LDMConfig"]


def _norm(width: int, groups: int) -> nn.GroupNorm:
    return nn.GroupNorm(groups, width, eps=1e-6)


def _conv3(width_in: int, width_out: int) -> nn.Conv2d:
    return nn.Conv2d(width_in, width_out, kernel_size=3, padding=1)


class ResnetBlock(nn.Module):
    """Two 3x3 convolutions, each after normalisation and swish, plus the input: [n,width_in,h,w] -> [n,width_out,h,w]."""

    def __init__(self, width_in: int, width_out: int, groups: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = _norm(width_in, groups), _conv3(width_in, width_out)
        self.norm2, self.conv2 = _norm(width_out, groups), _conv3(width_out, width_out)
        if width_in != width_out:
            self.nin_shortcut = nn.Conv2d(width_in, width_out, kernel_size=1)

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output."""
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h)))
        return h + (self.nin_shortcut(x) if hasattr(self, "nin_shortcut") else x)


class AttnBlock(nn.Module):
    """Self-attention with one head over all cells, plus the input: [n,c,h,w] -> [n,c,h,w]."""

    def __init__(self, width: int, groups: int) -> None:
        super().__init__()
        self.norm = _norm(width, groups)
        self.q, self.k, self.v, self.proj_out = (nn.Conv2d(width, width, kernel_size=1) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output; the scale of the logits is c^-1/2."""
        h = self.norm(x)
        q, k, v = (conv(h).flatten(2).transpose(1, 2) for conv in (self.q, self.k, self.v))  # [n,hw,c]
        mixed = F.scaled_dot_product_attention(q, k, v)
        return x + self.proj_out(mixed.transpose(1, 2).reshape(x.shape))


class Downsample(nn.Module):
    """Halve the side with a strided 3x3 convolution."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, kernel_size=3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """Return [n,c,h/2,w/2]. Zeros are added on the right and at the bottom only: symmetric padding shifts the latent."""
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Double the side by repetition, then a 3x3 convolution."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = _conv3(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Return [n,c,2h,2w]."""
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class Middle(nn.Module):
    """Block, attention, block at the coarsest level."""

    def __init__(self, width: int, groups: int) -> None:
        super().__init__()
        self.block_1, self.block_2 = (ResnetBlock(width, width, groups) for _ in range(2))
        self.attn_1 = AttnBlock(width, groups)

    def forward(self, x: Tensor) -> Tensor:
        """Return [n,c,h,w]."""
        return self.block_2(self.attn_1(self.block_1(x)))


class Level(nn.Module):
    """The blocks of one resolution; with ``attention`` each is followed by self-attention."""

    def __init__(self, width_in: int, width_out: int, blocks: int, attention: bool, groups: int) -> None:
        super().__init__()
        inputs = [width_in, *[width_out] * (blocks - 1)]
        self.block = nn.ModuleList(ResnetBlock(before, width_out, groups) for before in inputs)
        self.attn = nn.ModuleList(AttnBlock(width_out, groups) for _ in range(blocks if attention else 0))

    def forward(self, x: Tensor) -> Tensor:
        """Return [n,width_out,h,w]."""
        for j, block in enumerate(self.block):
            x = block(x)
            if len(self.attn):
                x = self.attn[j](x)
        return x


class EncoderLevel(Level):
    """A level that ends with a halving of the side, unless it is the last."""

    def __init__(self, width_in: int, width_out: int, blocks: int, attention: bool, groups: int, last: bool) -> None:
        super().__init__(width_in, width_out, blocks, attention, groups)
        self.downsample = nn.Identity() if last else Downsample(width_out)

    def forward(self, x: Tensor) -> Tensor:
        """Return [n,width_out,h/2,w/2], or [n,width_out,h,w] from the last level."""
        return self.downsample(super().forward(x))


class DecoderLevel(Level):
    """A level that ends with a doubling of the side, unless it is the finest."""

    def __init__(self, width_in: int, width_out: int, blocks: int, attention: bool, groups: int, finest: bool) -> None:
        super().__init__(width_in, width_out, blocks, attention, groups)
        self.upsample = nn.Identity() if finest else Upsample(width_out)

    def forward(self, x: Tensor) -> Tensor:
        """Return [n,width_out,2h,2w], or [n,width_out,h,w] from the finest level."""
        return self.upsample(super().forward(x))


class Encoder(nn.Module):
    """Images [n,in_channels,H,W] -> [n,z_channels (twice that with double_z),H/f,W/f]."""

    def __init__(self, config: LDMConfig) -> None:
        super().__init__()
        widths, groups, last = config.widths, config.norm_groups, len(config.widths) - 1
        self.conv_in = _conv3(config.in_channels, config.ch)
        self.down = nn.ModuleList()
        for i, width in enumerate(widths):
            before = widths[i - 1] if i else config.ch
            attention = config.encoder_attention(i)
            self.down.append(EncoderLevel(before, width, config.num_res_blocks, attention, groups, last=i == last))
        self.mid = Middle(widths[-1], groups)
        self.norm_out = _norm(widths[-1], groups)
        self.conv_out = _conv3(widths[-1], config.z_channels * (2 if config.double_z else 1))

    def forward(self, images: Tensor) -> Tensor:
        """Return the features that `quant_conv` turns into a latent."""
        h = self.conv_in(images)
        for level in self.down:
            h = level(h)
        return self.conv_out(F.silu(self.norm_out(self.mid(h))))


class Decoder(nn.Module):
    """Features [n,z_channels,h,w] -> images [n,out_ch,f*h,f*w], not clamped. ``up.i`` is level i, so the last one runs first."""

    def __init__(self, config: LDMConfig) -> None:
        super().__init__()
        widths, groups, last = config.decoder_widths, config.norm_groups, len(config.ch_mult) - 1
        self.conv_in = _conv3(config.z_channels, widths[-1])
        self.mid = Middle(widths[-1], groups)
        self.up = nn.ModuleList()
        for i, width in enumerate(widths):
            before = widths[min(i + 1, last)]
            blocks, attention = config.num_res_blocks + 1, config.decoder_attention(i)
            self.up.append(DecoderLevel(before, width, blocks, attention, groups, finest=i == 0))
        self.norm_out = _norm(widths[0], groups)
        self.conv_out = _conv3(widths[0], config.out_ch)

    def forward(self, features: Tensor) -> Tensor:
        """Return the images."""
        h = self.mid(self.conv_in(features))
        for level in reversed(self.up):
            h = level(h)
        return self.conv_out(F.silu(self.norm_out(h)))
