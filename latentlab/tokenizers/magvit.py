"""Open-MAGVIT2 (Luo et al. 2024, arXiv 2409.04410): convolutions only, one bit per channel, a decoder that the code modulates.

Parameter names are those of the published checkpoints (TencentARC/SEED-Voken, Apache-2.0).
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latentlab.files import file_sha256
from latentlab.latents import TokenizerSpec
from latentlab.tokenizers.architecture import MagvitArchitecture, read_architecture
from latentlab.tokenizers.base import DiscreteTokenizer
from latentlab.tokenizers.checks import check_images, check_indices, check_latents
from latentlab.tokenizers.families import LoadRequest
from latentlab.tokenizers.published import has_averages, load_published
from latentlab.tokenizers.published_config import without_section
from latentlab.tokenizers.quantizers import LookupFreeQuantizer
from latentlab.weights import read_state_dict


def _norm(width: int, groups: int) -> nn.GroupNorm:
    return nn.GroupNorm(groups, width, eps=1e-6)


class ResBlock(nn.Module):
    """Two 3x3 convolutions without bias, each after normalisation and swish, plus the input."""

    def __init__(self, width_in: int, width_out: int, groups: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = _norm(width_in, groups), _norm(width_out, groups)
        self.conv1 = nn.Conv2d(width_in, width_out, kernel_size=3, padding=1, bias=False)
        self.conv2 = nn.Conv2d(width_out, width_out, kernel_size=3, padding=1, bias=False)
        if width_in != width_out:
            self.nin_shortcut = nn.Conv2d(width_in, width_out, kernel_size=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return [n,width_out,h,w] of [n,width_in,h,w]."""
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h)))
        return h + (self.nin_shortcut(x) if hasattr(self, "nin_shortcut") else x)


def _blocks(width_in: int, width_out: int, count: int, groups: int) -> nn.ModuleList:
    inputs = [width_in, *[width_out] * (count - 1)]
    return nn.ModuleList(ResBlock(before, width_out, groups) for before in inputs)


class EncoderLevel(nn.Module):
    """Blocks of one resolution, then a halving of the side, unless the level is the last."""

    def __init__(self, width_in: int, width_out: int, count: int, groups: int, last: bool) -> None:
        super().__init__()
        self.block = _blocks(width_in, width_out, count, groups)
        # Zeros on all four sides, unlike latent diffusion's: window (i,j) starts at (2i-1,2j-1).
        strided = nn.Conv2d(width_out, width_out, kernel_size=3, stride=2, padding=1)
        self.downsample = nn.Identity() if last else strided

    def forward(self, x: Tensor) -> Tensor:
        """Return [n,width_out,h/2,w/2], or [n,width_out,h,w] from the last level."""
        for block in self.block:
            x = block(x)
        return self.downsample(x)


class Upsampler(nn.Module):
    """Double the side: a 3x3 convolution makes four times the channels, which become 2x2 cells."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, 4 * width, kernel_size=3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Return [n,c,2h,2w] of [n,c,h,w]."""
        return depth_to_space(self.conv1(x))


def depth_to_space(x: Tensor) -> Tensor:
    """Return [n,c,2h,2w] of [n,4c,h,w]: the place in the 2x2 cell counts slowest ("DCR"), unlike in `F.pixel_shuffle`."""
    n, channels, h, w = x.shape
    return x.view(n, 2, 2, channels // 4, h, w).permute(0, 3, 4, 1, 5, 2).reshape(n, channels // 4, 2 * h, 2 * w)


class AdaptiveGroupNorm(nn.Module):
    """A group norm whose scale and shift come from the code: from spread and mean of each of its channels over all cells."""

    eps = 1e-6

    def __init__(self, bits: int, width: int, groups: int) -> None:
        super().__init__()
        self.gn = nn.GroupNorm(groups, width, eps=self.eps, affine=False)
        self.gamma, self.beta = nn.Linear(bits, width), nn.Linear(bits, width)

    def forward(self, x: Tensor, code: Tensor) -> Tensor:
        """Return [n,width,h,w] of features [n,width,h,w] and code [n,bits,h',w']; the variance has ddof 1."""
        cells = code.flatten(2)
        scale, shift = self.gamma((cells.var(2) + self.eps).sqrt()), self.beta(cells.mean(2))
        return scale[:, :, None, None] * self.gn(x) + shift[:, :, None, None]


class DecoderLevel(nn.Module):
    """Blocks of one resolution, then a doubling of the side, unless the level is the finest."""

    def __init__(self, width_in: int, width_out: int, count: int, groups: int, finest: bool) -> None:
        super().__init__()
        self.block = _blocks(width_in, width_out, count, groups)
        self.upsample = nn.Identity() if finest else Upsampler(width_out)

    def forward(self, x: Tensor) -> Tensor:
        """Return [n,width_out,2h,2w], or [n,width_out,h,w] from the finest level."""
        for block in self.block:
            x = block(x)
        return self.upsample(x)


class Encoder(nn.Module):
    """Images [n,in_channels,H,W] -> [n,z_channels,H/f,W/f]."""

    def __init__(self, config: MagvitArchitecture) -> None:
        super().__init__()
        widths, groups, count = config.widths, config.norm_groups, config.num_res_blocks
        last = len(widths) - 1
        self.conv_in = nn.Conv2d(config.in_channels, config.ch, kernel_size=3, padding=1, bias=False)
        self.down = nn.ModuleList(
            EncoderLevel(widths[i - 1] if i else config.ch, width, count, groups, last=i == last)
            for i, width in enumerate(widths)
        )
        self.mid_block = _blocks(widths[-1], widths[-1], count, groups)
        self.norm_out = _norm(widths[-1], groups)
        self.conv_out = nn.Conv2d(widths[-1], config.z_channels, kernel_size=1)

    def forward(self, images: Tensor) -> Tensor:
        """Return the features whose signs are the code."""
        h = self.conv_in(images)
        for stage in (*self.down, *self.mid_block):
            h = stage(h)
        return self.conv_out(F.silu(self.norm_out(h)))


class Decoder(nn.Module):
    """Codes [n,z_channels,h,w] -> images [n,out_ch,f*h,f*w], not clamped. ``up.i`` is level i, so the last one runs first."""

    def __init__(self, config: MagvitArchitecture) -> None:
        super().__init__()
        widths, groups, count = config.widths, config.norm_groups, config.num_res_blocks
        inputs = (*widths[1:], widths[-1])
        self.conv_in = nn.Conv2d(config.z_channels, widths[-1], kernel_size=3, padding=1)
        self.mid_block = _blocks(widths[-1], widths[-1], count, groups)
        self.up = nn.ModuleList(
            DecoderLevel(before, width, count, groups, finest=i == 0)
            for i, (before, width) in enumerate(zip(inputs, widths, strict=True))
        )
        self.adaptive = nn.ModuleList(AdaptiveGroupNorm(config.z_channels, before, groups) for before in inputs)
        self.norm_out = _norm(widths[0], groups)
        self.conv_out = nn.Conv2d(widths[0], config.out_ch, kernel_size=3, padding=1)

    def forward(self, code: Tensor) -> Tensor:
        """Return the images."""
        h = self.conv_in(code)
        for block in self.mid_block:
            h = block(h)
        for norm, level in reversed(list(zip(self.adaptive, self.up, strict=True))):
            h = level(norm(h, code))
        return self.conv_out(F.silu(self.norm_out(h)))


class MagvitTokenizer(DiscreteTokenizer):
    """Open-MAGVIT2: latents are signs.

    Attributes:
        architecture: the configuration it was built from.
    """

    def __init__(self, architecture: MagvitArchitecture, spec: TokenizerSpec) -> None:
        super().__init__()
        self.architecture, self.spec = architecture, spec
        self.encoder, self.decoder = Encoder(architecture), Decoder(architecture)
        self.quantize = LookupFreeQuantizer(architecture.z_channels)

    @property
    def codebook(self) -> Tensor:
        """All codes, -1 or 1, [v,c]; computed when asked for (19 MB for 18 bits)."""
        return self.quantize.vectors(self._like.device)

    def features(self, images: Tensor) -> Tensor:
        """Return what the signs are taken of, [n,c,H/f,W/f].

        Raises:
            UserError: not a float batch [n,in_channels,H,W], or H or W is no multiple of the downsampling.
        """
        check_images(images, self.spec.name, self.architecture.in_channels, self.architecture.downsampling)
        return self.encoder(images.to(self._like))

    @torch.no_grad()
    def indices(self, images: Tensor) -> Tensor:
        """Return codebook indices, int64 [n,h,w]."""
        return self.quantize.nearest(self.features(images))

    @torch.no_grad()
    def codes(self, indices: Tensor) -> Tensor:
        """Return the codes [n,c,h,w] of ``indices`` [n,h,w].

        Raises:
            UserError: not integers [n,h,w], or an index outside the codebook.
        """
        check_indices(indices, self.architecture.n_embed)
        return self.quantize.lookup(indices.to(self._like.device, torch.int64))

    @torch.no_grad()
    def encode(self, images: Tensor, sample: bool = False, generator: torch.Generator | None = None) -> Tensor:
        """Return the codes of the images, -1 or 1, [n,c,h,w]; there is no posterior to sample."""
        return self.quantize.lookup(self.indices(images))

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Return images [n,3,H,W] clamped to [-1,1] from codes [n,c,h,w]."""
        check_latents(latents, self.spec.channels)
        return self.decoder(latents.to(self._like)).clamp(-1, 1)

    @property
    def _like(self) -> Tensor:
        return self.encoder.conv_in.weight


def load_magvit(request: LoadRequest) -> MagvitTokenizer:
    """Return the tokenizer; with raw weights, asked for or because the file has no others, its release's name ends in ``-raw``.

    Raises:
        UserError: a file that is missing, unsafe, damaged, or does not fit the architecture; an unknown architecture field.
    """
    config = read_architecture(
        {**(request.release.architecture or {}), **without_section(request.overrides)}, MagvitArchitecture
    )
    state = read_state_dict(request.path, wrappers=("state_dict",))
    spec = TokenizerSpec(
        name=request.name,
        release=request.release.label(request.ema and (has_averages(state) or not request.release.averaged)),
        kind="lfq",
        layout="grid",
        channels=config.z_channels,
        downsampling=config.downsampling,
        codebook_size=config.n_embed,
        weights_sha256=file_sha256(request.path),
    )
    with torch.device("meta"):  # no time and memory for random weights that are overwritten
        tokenizer = MagvitTokenizer(config, spec)
    tokenizer.to_empty(device="cpu")
    load_published(tokenizer, state, ema=request.ema, source=f"{request.path} for '{request.name}'")
    return tokenizer.eval().requires_grad_(False)
