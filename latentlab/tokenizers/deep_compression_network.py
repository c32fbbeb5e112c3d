"""DC-AE (Chen et al. 2024, arXiv 2410.10733): every change of resolution works on the residual of a space-to-channel map.

Parameter names are those of diffusers' ``AutoencoderDC``, in whose layout the weights are published. The attention is the
multi-scale linear attention of EfficientViT (Cai et al. 2023, arXiv 2205.14756).
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latentlab.tokenizers.hub_architecture import DCArchitecture

ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "silu": nn.SiLU}


class ChannelNorm(nn.Module):
    """The vector of every cell divided by its root mean square, then scaled and shifted per channel."""

    eps = 1e-5

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        """Return [n,c,h,w] of [n,c,h,w]."""
        scale = (x.float().square().mean(1, keepdim=True) + self.eps).rsqrt()
        return (x * scale).to(x.dtype) * self.weight[:, None, None] + self.bias[:, None, None]


def _norm(kind: str, width: int) -> nn.Module:
    return nn.BatchNorm2d(width) if kind == "batch_norm" else ChannelNorm(width)


class ResBlock(nn.Module):
    """Two 3x3 convolutions, a norm after the second, plus the input."""

    def __init__(self, width: int, norm: str, activation: str) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, kernel_size=3, padding=1)
        self.conv2 = nn.Conv2d(width, width, kernel_size=3, padding=1, bias=False)
        self.norm, self.activation = _norm(norm, width), ACTIVATIONS[activation]()

    def forward(self, x: Tensor) -> Tensor:
        """Return [n,c,h,w] of [n,c,h,w]."""
        return x + self.norm(self.conv2(self.activation(self.conv1(x))))


class Gathering(nn.Module):
    """Queries, keys and values of one more scale: a depthwise convolution, then a map within each head's channels."""

    def __init__(self, channels: int, heads: int, kernel: int) -> None:
        super().__init__()
        self.proj_in = nn.Conv2d(channels, channels, kernel, padding=kernel // 2, groups=channels, bias=False)
        self.proj_out = nn.Conv2d(channels, channels, kernel_size=1, groups=3 * heads, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return [n,c,h,w] of [n,c,h,w]."""
        return self.proj_out(self.proj_in(x))


class LinearAttention(nn.Module):
    """Attention with ReLU in place of the exponential, so that its cost is linear in the number of cells (2205.14756, eq. 3)."""

    eps = 1e-15

    def __init__(self, width: int, head_width: int, kernels: Sequence[int], norm: str) -> None:
        super().__init__()
        self.head_width, heads = head_width, width // head_width
        inner = heads * head_width
        self.to_q, self.to_k, self.to_v = (nn.Linear(width, inner, bias=False) for _ in range(3))
        self.to_qkv_multiscale = nn.ModuleList(Gathering(3 * inner, heads, kernel) for kernel in kernels)
        self.to_out = nn.Linear(inner * (1 + len(kernels)), width, bias=False)
        self.norm_out = _norm(norm, width)

    def forward(self, x: Tensor) -> Tensor:
        """Return [n,c,h,w] of [n,c,h,w]; the input is added."""
        rows = x.movedim(1, -1)
        qkv = torch.cat([self.to_q(rows), self.to_k(rows), self.to_v(rows)], dim=-1).movedim(-1, 1)
        scales = torch.cat([qkv, *(gather(qkv) for gather in self.to_qkv_multiscale)], dim=1)
        # The published heads are neighbouring channels of (queries, keys, values), cut in three; not those of one map.
        q, k, v = scales.flatten(2).unflatten(1, (-1, 3 * self.head_width)).chunk(3, dim=2)
        mixed = self._attend(q, k, v).to(x.dtype).flatten(1, 2).unflatten(-1, x.shape[2:])
        return x + self.norm_out(self.to_out(mixed.movedim(1, -1)).movedim(-1, 1))

    def _attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Return sum_j v_j (k_j.q_i) / sum_j (k_j.q_i) for every cell i, [n,heads,c,s] of [n,heads,c,s], in float32."""
        with torch.autocast(q.device.type, enabled=False):
            q, k, v = q.float().relu(), k.float().relu(), v.float()
            totals = F.pad(v, (0, 0, 0, 1), value=1.0) @ k.transpose(2, 3) @ q  # the last row sums the weights
            return totals[:, :, :-1] / (totals[:, :, -1:] + self.eps)


class GatedConv(nn.Module):
    """Widen by 1x1, mix neighbours depthwise, gate, narrow by 1x1, norm, plus the input."""

    def __init__(self, width: int) -> None:
        super().__init__()
        inner = 4 * width
        self.conv_inverted = nn.Conv2d(width, 2 * inner, kernel_size=1)
        self.conv_depth = nn.Conv2d(2 * inner, 2 * inner, kernel_size=3, padding=1, groups=2 * inner)
        self.conv_point = nn.Conv2d(inner, width, kernel_size=1, bias=False)
        self.norm = ChannelNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        """Return [n,c,h,w] of [n,c,h,w]."""
        value, gate = self.conv_depth(F.silu(self.conv_inverted(x))).chunk(2, dim=1)
        return x + self.norm(self.conv_point(value * F.silu(gate)))


class EfficientViTBlock(nn.Module):
    """Attention, then a gated convolution."""

    def __init__(self, width: int, head_width: int, kernels: Sequence[int], norm: str) -> None:
        super().__init__()
        self.attn, self.conv_out = LinearAttention(width, head_width, kernels, norm), GatedConv(width)

    def forward(self, x: Tensor) -> Tensor:
        """Return [n,c,h,w] of [n,c,h,w]."""
        return self.conv_out(self.attn(x))


class Down(nn.Module):
    """Halve the side: a convolution, plus the 2x2 cells as channels, averaged in groups (2410.10733, section 3.2)."""

    def __init__(self, width_in: int, width_out: int, unshuffle: bool, shortcut: bool = True) -> None:
        super().__init__()
        self.width_out, self.unshuffle, self.shortcut = width_out, unshuffle, shortcut
        made, stride = (width_out // 4, 1) if unshuffle else (width_out, 2)
        self.conv = nn.Conv2d(width_in, made, kernel_size=3, stride=stride, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Return [n,width_out,h/2,w/2]."""
        out = F.pixel_unshuffle(self.conv(x), 2) if self.unshuffle else self.conv(x)
        return out + channel_mean(F.pixel_unshuffle(x, 2), self.width_out) if self.shortcut else out


class Up(nn.Module):
    """Double the side: a convolution, plus the channels, repeated, as 2x2 cells."""

    def __init__(self, width_in: int, width_out: int, interpolate: bool, shortcut: bool = True) -> None:
        super().__init__()
        self.width_out, self.interpolate, self.shortcut = width_out, interpolate, shortcut
        self.conv = nn.Conv2d(width_in, width_out * (1 if interpolate else 4), kernel_size=3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Return [n,width_out,2h,2w]."""
        if self.interpolate:
            out = self.conv(F.interpolate(x, scale_factor=2, mode="nearest"))
        else:
            out = F.pixel_shuffle(self.conv(x), 2)
        return out + F.pixel_shuffle(channel_repeat(x, 4 * self.width_out), 2) if self.shortcut else out


def channel_mean(x: Tensor, width: int) -> Tensor:
    """Return [n,width,h,w]: means of neighbouring channels of [n,c,h,w]."""
    return x.unflatten(1, (width, -1)).mean(2)


def channel_repeat(x: Tensor, width: int) -> Tensor:
    """Return [n,width,h,w]: every channel of [n,c,h,w] repeated."""
    return x.repeat_interleave(width // x.shape[1], dim=1)


def _each(value: str | tuple[str, ...], levels: int) -> tuple[str, ...]:
    return (value,) * levels if isinstance(value, str) else value


class Encoder(nn.Module):
    """Images [n,3,H,W] -> latents [n,c,H/f,W/f]. A first level without blocks is left out: its halving comes first."""

    def __init__(self, config: DCArchitecture) -> None:
        super().__init__()
        widths, counts = config.encoder_block_out_channels, config.encoder_layers_per_block
        unshuffle = config.downsample_block_type == "pixel_unshuffle"
        kinds = _each(config.encoder_block_types, len(widths))
        self.channels, self.shortcut = config.latent_channels, config.encoder_out_shortcut
        self.conv_in: nn.Module
        if counts[0]:
            self.conv_in = nn.Conv2d(config.in_channels, widths[0], kernel_size=3, padding=1)
        else:
            self.conv_in = Down(config.in_channels, widths[1], unshuffle, shortcut=False)
        self.down_blocks = nn.ModuleList()
        for i, (width, count, kernels) in enumerate(zip(widths, counts, config.encoder_qkv_multiscales, strict=True)):
            level = [_block(kinds[i], width, config, kernels, "rms_norm", "silu") for _ in range(count)]
            if count and i < len(widths) - 1:
                level.append(Down(width, widths[i + 1], unshuffle))
            self.down_blocks.append(nn.Sequential(*level))
        self.conv_out = nn.Conv2d(widths[-1], config.latent_channels, kernel_size=3, padding=1)

    def forward(self, images: Tensor) -> Tensor:
        """Return the latents."""
        h = self.conv_in(images)
        for level in self.down_blocks:
            h = level(h)
        return self.conv_out(h) + channel_mean(h, self.channels) if self.shortcut else self.conv_out(h)


class Decoder(nn.Module):
    """Latents [n,c,h,w] -> images [n,3,f*h,f*w], not clamped. ``up_blocks.i`` is level i, so the last one runs first."""

    def __init__(self, config: DCArchitecture) -> None:
        super().__init__()
        widths, counts = config.decoder_block_out_channels, config.decoder_layers_per_block
        interpolate, levels = config.upsample_block_type == "interpolate", len(widths)
        kinds, norms, activations = (
            _each(value, levels)
            for value in (config.decoder_block_types, config.decoder_norm_types, config.decoder_act_fns)
        )
        self.shortcut = config.decoder_in_shortcut
        self.conv_in = nn.Conv2d(config.latent_channels, widths[-1], kernel_size=3, padding=1)
        self.up_blocks = nn.ModuleList()
        for i, (width, count, kernels) in enumerate(zip(widths, counts, config.decoder_qkv_multiscales, strict=True)):
            level: list[nn.Module] = [Up(widths[i + 1], width, interpolate)] if count and i < levels - 1 else []
            level += [_block(kinds[i], width, config, kernels, norms[i], activations[i]) for _ in range(count)]
            self.up_blocks.append(nn.Sequential(*level))
        last = widths[0] if counts[0] else widths[1]
        self.norm_out, self.activation = ChannelNorm(last), ACTIVATIONS[config.decoder_conv_act_fn]()
        self.conv_out: nn.Module
        if counts[0]:
            self.conv_out = nn.Conv2d(last, config.in_channels, kernel_size=3, padding=1)
        else:
            self.conv_out = Up(last, config.in_channels, interpolate, shortcut=False)

    def forward(self, latents: Tensor) -> Tensor:
        """Return the images."""
        h = self.conv_in(latents)
        if self.shortcut:
            h = h + channel_repeat(latents, h.shape[1])
        for level in reversed(self.up_blocks):
            h = level(h)
        return self.conv_out(self.activation(self.norm_out(h)))


def _block(
    kind: str, width: int, config: DCArchitecture, kernels: Sequence[int], norm: str, activation: str
) -> nn.Module:
    if kind == "ResBlock":
        return ResBlock(width, norm, activation)
    return EfficientViTBlock(width, config.attention_head_dim, kernels, norm)
