"""The TAESD family (Ollin Boer Bohan, github.com/madebyollin/taesd, MIT): tiny autoencoders distilled from large ones.

A file holds the state dict of one plain `nn.Sequential`, so that layer numbers are the published names; encoder and decoder
lie in two files, ``NAME_encoder.pth`` and ``NAME_decoder.pth``.
"""

import hashlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from latentlab.errors import UserError
from latentlab.files import file_sha256
from latentlab.latents import TokenizerSpec
from latentlab.tokenizers.architecture import TinyArchitecture, read_architecture
from latentlab.tokenizers.base import Tokenizer
from latentlab.tokenizers.families import LoadRequest
from latentlab.tokenizers.published import load_published
from latentlab.weights import read_state_dict

HALVES = ("encoder", "decoder")

_SUFFIXES = (".pth", ".safetensors")
_POOL_GROUPS, _POOL_WIDTH = 4, 4


def _conv(width_in: int, width_out: int, **options: Any) -> nn.Conv2d:
    return nn.Conv2d(width_in, width_out, kernel_size=3, padding=1, **options)


class Block(nn.Module):
    """Three convolutions around a skip; a pooled one first adds what a normalised 1x1 bottleneck sees."""

    def __init__(self, width: int, pooled: bool = False) -> None:
        super().__init__()
        self.conv = nn.Sequential(_conv(width, width), nn.ReLU(), _conv(width, width), nn.ReLU(), _conv(width, width))
        self.pool = _pool(width) if pooled else None

    def forward(self, x: Tensor) -> Tensor:
        """Return [n,c,h,w] of [n,c,h,w]."""
        if self.pool is not None:
            x = x + self.pool(x)
        return torch.relu(self.conv(x) + x)


def _pool(width: int) -> nn.Sequential:
    wide = _POOL_WIDTH * width
    return nn.Sequential(
        nn.Conv2d(width, wide, 1, bias=False),
        nn.GroupNorm(_POOL_GROUPS, wide),
        nn.ReLU(),
        nn.Conv2d(wide, width, 1, bias=False),
    )


class Clamp(nn.Module):
    """Soft limit of latents to (-3, 3)."""

    def forward(self, x: Tensor) -> Tensor:
        """Return ``3 tanh(x / 3)``."""
        return torch.tanh(x / 3) * 3


def build_encoder(config: TinyArchitecture) -> nn.Sequential:
    """Return the encoder: images [n,3,H,W] in [0,1] -> latents [n,c,H/8,W/8]."""
    width = config.width
    layers: list[nn.Module] = [_conv(3, width), Block(width)]
    for pooled in (False, False, config.pooled):  # at 1/2, 1/4 and 1/8 of the resolution
        layers += [_conv(width, width, stride=2, bias=False), *(Block(width, pooled) for _ in range(3))]
    return nn.Sequential(*layers, _conv(width, config.latent_channels))


def build_decoder(config: TinyArchitecture) -> nn.Sequential:
    """Return the decoder: latents [n,c,h,w] -> images [n,3,8h,8w] in about [0,1]."""
    width = config.width
    layers: list[nn.Module] = [Clamp(), _conv(config.latent_channels, width), nn.ReLU()]
    for pooled in (config.pooled, False, False):  # from 1/8 of the resolution to 1/2
        layers += [*(Block(width, pooled) for _ in range(3)), nn.Upsample(scale_factor=2)]
        layers += [_conv(width, width, bias=False)]
    return nn.Sequential(*layers, Block(width), _conv(width, 3))


class TinyAutoencoder(Tokenizer):
    """A tokenizer of the TAESD family; images are converted to its [0,1] and back.

    Its latents are those of the model it was distilled from, as they are: the ``z / 6 + 0.5`` of the published helpers is for
    storing them as pictures.

    Attributes:
        architecture: the configuration it was built from.
    """

    def __init__(self, architecture: TinyArchitecture, spec: TokenizerSpec) -> None:
        super().__init__()
        self.architecture, self.spec = architecture, spec
        self.encoder, self.decoder = build_encoder(architecture), build_decoder(architecture)

    @torch.no_grad()
    def encode(self, images: Tensor, sample: bool = False, generator: torch.Generator | None = None) -> Tensor:
        """Return latents [n,c,H/8,W/8] of images [n,3,H,W] in [-1,1]; there is no posterior to sample.

        Raises:
            UserError: not a float batch [n,3,H,W], or H or W is no multiple of 8.
        """
        if images.ndim != 4 or images.shape[1] != 3 or not images.is_floating_point():
            raise UserError(
                f"images must be a float batch [n,3,H,W] in [-1,1], got {images.dtype} {list(images.shape)}"
            )
        factor, (height, width) = self.architecture.downsampling, images.shape[2:]
        if height % factor or width % factor or not height or not width:
            raise UserError(
                f"images of {height}x{width} pixels do not fit '{self.spec.name}': sides must be multiples of {factor}"
            )
        return self.encoder((images.to(self._like) + 1) / 2)

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Return images [n,3,H,W] clamped to [-1,1] from latents [n,c,h,w]."""
        if latents.ndim != 4 or latents.shape[1] != self.spec.channels:
            raise UserError(f"latents must be [n,{self.spec.channels},h,w], got shape {list(latents.shape)}")
        return self.decoder(latents.to(self._like)).clamp(0, 1) * 2 - 1

    @property
    def _like(self) -> Tensor:
        return self.encoder[0].weight  # type: ignore[return-value]


def load_tiny(request: LoadRequest) -> TinyAutoencoder:
    """Return the tokenizer whose two files ``request.path`` names: their folder, or either of them.

    Raises:
        UserError: a file is missing, unsafe, damaged, or does not fit the architecture.
    """
    config = read_architecture(request.architecture, TinyArchitecture)
    files = both_files(request.name, request.path)
    spec = TokenizerSpec(
        name=request.name,
        release=request.release.name,
        kind="continuous",
        layout="grid",
        channels=config.latent_channels,
        downsampling=config.downsampling,
        weights_sha256=hashlib.sha256("".join(map(file_sha256, files)).encode()).hexdigest(),
    )
    states = zip(HALVES, map(read_state_dict, files), strict=True)
    state = {f"{half}.{key}": tensor for half, content in states for key, tensor in content.items()}
    with torch.device("meta"):  # no time for random weights that are overwritten
        tokenizer = TinyAutoencoder(config, spec)
    tokenizer.to_empty(device="cpu")
    load_published(tokenizer, state, ema=False, source=f"{files[0]} with {files[1].name}")
    return tokenizer.eval().requires_grad_(False)


def both_files(name: str, path: Path) -> tuple[Path, Path]:
    """Return encoder and decoder file of the tokenizer ``name``, given their folder or one of them.

    Raises:
        UserError: nothing there, a name without ``encoder`` or ``decoder``, or the other file is missing.
    """
    if not path.exists():
        raise UserError(f"{path} does not exist: give the folder of {name}_encoder.pth and {name}_decoder.pth")
    if path.is_dir():
        candidates = [path / f"{name}_encoder{suffix}" for suffix in _SUFFIXES]
        first = next((file for file in candidates if file.is_file()), None)
        if first is None:
            raise UserError(
                f"{path} has no {name}_encoder.pth: give the folder of the two weight files, or one of them"
            )
    else:
        first = path
    half = next((half for half in HALVES if first.stem.endswith(half)), None)
    if half is None:
        raise UserError(f"{first} must be named *_encoder or *_decoder: '{name}' has one weight file for each")
    pair = tuple(first.with_name(first.stem.removesuffix(half) + other + first.suffix) for other in HALVES)
    missing = [file for file in pair if not file.is_file()]
    if missing:
        raise UserError(f"{missing[0]} is missing: '{name}' needs it beside {first.name}")
    return pair[0], pair[1]
