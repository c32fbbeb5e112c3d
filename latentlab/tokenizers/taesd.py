"""The TAESD family (Ollin Boer Bohan, github.com/madebyollin/taesd, MIT): tiny autoencoders distilled from large ones.

A file holds the state dict of one plain `nn.Sequential`, so that layer numbers are the published names; encoder and decoder
lie in two files, ``NAME_encoder.pth`` and ``NAME_decoder.pth``. The hub has them in one, in diffusers' layout.
"""

import hashlib
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from latentlab.errors import UserError
from latentlab.files import file_sha256
from latentlab.latents import TokenizerSpec
from latentlab.tokenizers.architecture import TinyArchitecture, read_architecture
from latentlab.tokenizers.base import Tokenizer
from latentlab.tokenizers.checks import check_images, check_latents
from latentlab.tokenizers.families import LoadRequest
from latentlab.tokenizers.published import load_published
from latentlab.weights import read_state_dict

HALVES = ("encoder", "decoder")
JOINT_NAMES = ("diffusion_pytorch_model.safetensors",)
"""Names of published files with both halves."""

_JOINT_KEY = re.compile(r"^(encoder|decoder)\.layers\.(\d+)\.")
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
    """Return the encoder: images [n,3,H,W] in [0,1] -> latents [n,c,H/f,W/f]."""
    width = config.width
    layers: list[nn.Module] = [_conv(3, width), Block(width)]
    if config.downsampling == 32:  # two halvings before anything else
        half = width // 2
        layers = [_conv(3, half, stride=2), nn.ReLU(), _conv(half, width, stride=2), nn.ReLU(), Block(width)]
    for pooled in (False, False, config.pooled):
        layers += [_conv(width, width, stride=2, bias=False), *(Block(width, pooled) for _ in range(3))]
    return nn.Sequential(*layers, _conv(width, config.latent_channels))


def build_decoder(config: TinyArchitecture) -> nn.Sequential:
    """Return the decoder: latents [n,c,h,w] -> images [n,3,f*h,f*w] in about [0,1]."""
    multiples = (4, 2, 1, 1, 1) if config.downsampling == 32 else (1, 1, 1)  # of the width, coarsest level first
    widths = [config.width * multiple for multiple in multiples]
    layers: list[nn.Module] = [Clamp(), _conv(config.latent_channels, widths[0]), nn.ReLU()]
    for level, (width, after) in enumerate(zip(widths, [*widths[1:], config.width], strict=True)):
        pooled = config.pooled and level == 0
        layers += [*(Block(width, pooled) for _ in range(3)), nn.Upsample(scale_factor=2)]
        layers += [_conv(width, after, bias=False)]
    return nn.Sequential(*layers, Block(config.width), _conv(config.width, 3))


class TinyAutoencoder(Tokenizer):
    """A tokenizer of the TAESD family; images are converted to its [0,1] and back.

    Its latents are those that the generators of the model it was distilled from are trained on, already normalised (README of the
    release: "TAESD's scale_factor for latents is 1"), so that `normalize` changes nothing. The ``z / 6 + 0.5`` of the published
    helpers is for storing them as pictures.

    Attributes:
        architecture: the configuration it was built from.
    """

    def __init__(self, architecture: TinyArchitecture, spec: TokenizerSpec) -> None:
        super().__init__()
        self.architecture, self.spec = architecture, spec
        self.encoder, self.decoder = build_encoder(architecture), build_decoder(architecture)

    @torch.no_grad()
    def encode(self, images: Tensor, sample: bool = False, generator: torch.Generator | None = None) -> Tensor:
        """Return latents [n,c,H/f,W/f] of images [n,3,H,W] in [-1,1]; there is no posterior to sample.

        Raises:
            UserError: not a float batch [n,3,H,W], or H or W is no multiple of f, 8 or 32.
        """
        check_images(images, self.spec.name, factor=self.architecture.downsampling)
        return self.encoder((images.to(self._like) + 1) / 2)

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Return images [n,3,H,W] clamped to [-1,1] from latents [n,c,h,w]."""
        check_latents(latents, self.spec.channels)
        return self.decoder(latents.to(self._like)).clamp(0, 1) * 2 - 1

    @property
    def _like(self) -> Tensor:
        return self.encoder[0].weight  # type: ignore[return-value]


def load_tiny(request: LoadRequest) -> TinyAutoencoder:
    """Return the tokenizer whose weights ``request.path`` names: a folder, either of its two files, or one file with both halves.

    Raises:
        UserError: a file is missing, unsafe, damaged, or does not fit the architecture.
    """
    config = read_architecture(request.architecture, TinyArchitecture)
    files = weight_files(request.name, request.path)
    spec = TokenizerSpec(
        name=request.name,
        release=request.release.name,
        kind="continuous",
        layout="grid",
        channels=config.latent_channels,
        downsampling=config.downsampling,
        weights_sha256=_hash(files),
    )
    with torch.device("meta"):  # no time for random weights that are overwritten
        tokenizer = TinyAutoencoder(config, spec)
    tokenizer.to_empty(device="cpu")
    load_published(tokenizer, read_halves(files), ema=False, source=" with ".join([str(files[0]), *_names(files[1:])]))
    return tokenizer.eval().requires_grad_(False)


def weight_files(name: str, path: Path) -> tuple[Path, ...]:
    """Return the files of the tokenizer ``name``: encoder's and decoder's, or one safetensors file with both.

    Args:
        name: of the tokenizer, with which the names of its files begin.
        path: their folder, or one of them.

    Raises:
        UserError: nothing there, a name without ``encoder`` or ``decoder``, or the other file is missing.
    """
    if not path.exists():
        raise UserError(f"{path} does not exist: give the folder of {name}_encoder.pth and {name}_decoder.pth")
    first = _file_in(name, path) if path.is_dir() else path
    half = next((half for half in HALVES if first.stem.endswith(half)), None)
    if half is None and first.suffix == ".safetensors":
        return (first,)
    if half is None:
        raise UserError(f"{first} must be named *_encoder or *_decoder: '{name}' has one weight file for each")
    pair = tuple(first.with_name(first.stem.removesuffix(half) + other + first.suffix) for other in HALVES)
    missing = [file for file in pair if not file.is_file()]
    if missing:
        raise UserError(f"{missing[0]} is missing: '{name}' needs it beside {first.name}")
    return pair


def _file_in(name: str, folder: Path) -> Path:
    candidates = [f"{name}_encoder.pth", f"{name}_encoder.safetensors", *JOINT_NAMES]
    found = next((folder / file for file in candidates if (folder / file).is_file()), None)
    if found is None:
        raise UserError(
            f"{folder} has no {name}_encoder.pth with {name}_decoder.pth, and no {JOINT_NAMES[0]}: give the folder of the "
            "weight files, or one of them"
        )
    return found


def read_halves(files: tuple[Path, ...]) -> dict[str, Tensor]:
    """Return the tensors of both halves by our names, ``encoder.N.*`` and ``decoder.N.*``.

    A file with both is laid out as diffusers' ``AutoencoderTiny``: it says ``layers``, and does not count the decoder's first
    layer, which has no weights.

    Raises:
        UserError: a file is unsafe or damaged.
    """
    if len(files) == 2:
        states = zip(HALVES, map(read_state_dict, files), strict=True)
        return {f"{half}.{key}": tensor for half, content in states for key, tensor in content.items()}
    return {_JOINT_KEY.sub(_counted, key): tensor for key, tensor in read_state_dict(files[0]).items()}


def _counted(key: "re.Match[str]") -> str:
    half, number = key.groups()
    return f"{half}.{int(number) + (half == 'decoder')}."


def _names(files: tuple[Path, ...]) -> list[str]:
    return [file.name for file in files]


def _hash(files: tuple[Path, ...]) -> str:
    hashes = [file_sha256(file) for file in files]
    return hashes[0] if len(hashes) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest()
