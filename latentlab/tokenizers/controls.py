"""Controls with a known answer: another tokenizer behind an invertible linear map of its latents.

Images are reconstructed as before, so what changes about measurements and generators is owed to the map alone. A measurement
that does not see a map that ruins generation, or that moves under one that does not matter, is not to be trusted.
"""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors.torch import save_file
from torch import Tensor

from latentlab import __version__
from latentlab.configuration import Strict
from latentlab.errors import UserError, unknown_name
from latentlab.files import atomic_path, file_sha256, first_problem
from latentlab.latents import Latents, TokenizerSpec
from latentlab.tokenizers.base import DiscreteTokenizer, Tokenizer
from latentlab.tokenizers.controls_maps import EXPONENT, MAPS, SHRINKAGE, STANDARDISING, Map, empty_map
from latentlab.tokenizers.families import FAMILIES, LoadRequest
from latentlab.tokenizers.trainable import TrainableTokenizer
from latentlab.tokenizers.weight_metadata import WeightMetadata, read_weight_metadata
from latentlab.weight_fit import check_fits
from latentlab.weights import read_state_dict

CONTROLS = tuple(MAPS)
"""Names of the controls; `controls_maps` says what each does."""

_BASE, _MAP = "base.", "map."
"""How names of tensors in a file begin."""


class ControlArchitecture(Strict):
    """What the header of a control's weight file says.

    Attributes:
        control: name of the map.
        latent_shape: of one latent, as the tokenizer gives it: (c,h,w), or (l,c) of a sequence.
        family: of the tokenizer behind the map.
        base: fields of its architecture.
        control_of: its name, release and SHA-256, for the record.
        parameters: what the map was made with, for the record.
    """

    control: str
    latent_shape: tuple[int, ...]
    family: str
    base: dict[str, Any]
    control_of: dict[str, str]
    parameters: dict[str, Any]


class ControlTokenizer(Tokenizer):
    """A tokenizer behind a map of its latents.

    Attributes:
        base: makes latents of images, and images of them.
        map: what happens to latents between the two.
        architecture: what the file says.
    """

    def __init__(
        self, base: Tokenizer, latent_map: Map, architecture: ControlArchitecture, spec: TokenizerSpec
    ) -> None:
        super().__init__()
        self.base, self.map, self.architecture, self.spec = base, latent_map, architecture, spec

    @torch.no_grad()
    def encode(self, images: Tensor, sample: bool = False, generator: torch.Generator | None = None) -> Tensor:
        """Return mapped latents [n,c,h,w] (or [n,l,c]) of images [n,3,H,W] in [-1,1] (see `Tokenizer.encode`).

        Raises:
            UserError: images of another size than those the map was made for.
        """
        return self._through(self.map.forward, self.base.encode(images, sample, generator))

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Return images [n,3,H,W] in [-1,1] of mapped latents.

        Raises:
            UserError: latents of another shape than those the map was made for.
        """
        return self.base.decode(self._through(self.map.inverse, latents))

    def _through(self, function: Any, latents: Tensor) -> Tensor:
        if latents.shape[1:] != self.architecture.latent_shape:
            raise UserError(
                f"the control '{self.architecture.control}' maps latents {list(self.architecture.latent_shape)}, got "
                f"{list(latents.shape[1:])}: give images of the size it was made with"
            )
        rows = _turned(latents).float()
        mapped: Tensor = function(rows.flatten(1))
        return _turned(mapped.view(rows.shape)).contiguous()


def _turned(latents: Tensor) -> Tensor:
    """Change between [n,l,c] and [n,c,l]; grids have their channels first already."""
    return latents.transpose(1, 2) if latents.ndim == 3 else latents


def make_control(weights: Path, control: str, out: Path, *, store: Latents, seed: int = 0) -> Path:
    """Write the weights of a control of a continuous tokenizer, which `load_tokenizer` reads by any name; return ``out``.

    Args:
        weights: of the tokenizer, as latentlab's training writes them (families ldm, transformer and maetok).
        control: a name of `CONTROLS`.
        out: safetensors file with both; d x d numbers twice for ``orthogonal`` and ``whitening`` (d: numbers in a latent).
        store: latents of the training images, whose statistics the map takes.
        seed: of what is random in the map.

    Raises:
        UserError: unknown control, not such a file, a discrete tokenizer, latents that are not its own or do not vary, or a
            file that cannot be written.
    """
    if control not in MAPS:
        raise unknown_name("control", control, MAPS)
    header = _checked_header(weights)
    base, state = _read_base(weights, header)
    _check_store(weights, base, store)
    latent_map = MAPS[control](store, seed)
    said = ControlArchitecture(
        control=control,
        latent_shape=store.shape if store.grid else store.shape[::-1],
        family=header.family,
        base=header.architecture,
        control_of={"name": header.name, "release": header.release, "sha256": file_sha256(weights)},
        parameters={"seed": seed, "store": store.fingerprint, "shrinkage": SHRINKAGE, "exponent": EXPONENT},
    )
    tensors = {f"{_BASE}{name}": value.contiguous() for name, value in state.items()}
    tensors |= {f"{_MAP}{name}": value for name, value in latent_map.state_dict().items()}
    metadata = {
        "architecture": said.model_dump_json(),
        "name": f"{header.name}-{control}",
        "release": f"{header.release}-{control}",
        "family": "control",
        "training": json.dumps(header.training),
        "latentlab_version": __version__,
    }
    with atomic_path(out) as temporary:
        save_file(tensors, temporary, metadata=metadata)
    return out


def load_control(request: LoadRequest) -> ControlTokenizer:
    """Return the control in a file of `make_control`.

    Raises:
        UserError: not such a file, a damaged one, or architecture fields that are asked for.
    """
    path = request.path
    header = read_weight_metadata(path)
    if header is None or header.family != "control":
        raise UserError(f"{path} holds no control: make one of a tokenizer first")
    if request.overrides:
        raise UserError(f"{path} records its architecture: leave out {', '.join(request.overrides)}")
    try:
        said = ControlArchitecture.model_validate(header.architecture)
    except ValidationError as error:
        raise UserError(f"{path}: the header is damaged ({first_problem(error)}): make the control again") from error
    if said.control not in MAPS or said.family not in FAMILIES:
        raise UserError(f"{path} holds a control '{said.control}' of family '{said.family}', unknown to this latentlab")
    base = FAMILIES[said.family].build(said.base, name=request.name, release=request.release.name)
    latent_map = empty_map(said.control, math.prod(said.latent_shape))
    _fill(base, latent_map, path)
    spec = replace(base.spec, name=request.name, release=request.release.name, weights_sha256=file_sha256(path))
    if said.control in STANDARDISING:
        spec = replace(spec, shift=(0.0,), scale=(1.0,))
    return ControlTokenizer(base, latent_map, said, spec).eval().requires_grad_(False)


def _fill(base: TrainableTokenizer, latent_map: Map, path: Path) -> None:
    """Put the tensors of a file into both parts."""
    state = read_state_dict(path)
    parts = {_BASE: base.released_state(), _MAP: latent_map.state_dict()}
    expected = {f"{prefix}{name}": value for prefix, part in parts.items() for name, value in part.items()}
    check_fits(state, expected, f"{path} is damaged", ": make the control again")
    for prefix, module in ((_BASE, base), (_MAP, latent_map)):
        own = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
        module.load_state_dict(own, strict=False)


def _checked_header(weights: Path) -> WeightMetadata:
    header = read_weight_metadata(weights)
    if header is None:
        raise UserError(
            f"{weights} is no weight file of latentlab's own: controls are made of tokenizers trained with it"
        )
    if header.family == "control":
        raise UserError(f"{weights} is a control already: give the weights of the tokenizer itself")
    if header.family not in FAMILIES:
        raise UserError(f"{weights} holds a tokenizer of the unknown family '{header.family}'")
    return header


def _read_base(weights: Path, header: WeightMetadata) -> tuple[TrainableTokenizer, dict[str, Tensor]]:
    """Return the tokenizer of a file with fresh weights, which has its class and shape, and the released weights."""
    base = FAMILIES[header.family].build(header.architecture, name=header.name, release=header.release)
    if isinstance(base, DiscreteTokenizer):
        raise UserError(
            f"{weights} holds a discrete tokenizer: a linear map of code vectors changes no code, so there are no controls of it"
        )
    state = {name: value for name, value in read_state_dict(weights).items() if not name.startswith(base.TRAINING_ONLY)}
    check_fits(state, base.released_state(), f"{weights} does not fit the architecture in its header")
    return base, state


def _check_store(weights: Path, base: Tokenizer, store: Latents) -> None:
    """Raise `UserError` unless ``store`` holds varying latents of this tokenizer."""
    made_by = None if store.spec is None else store.spec.weights_sha256
    layout = "grid" if store.grid else "sequence"
    if made_by not in (None, file_sha256(weights)) or (layout, store.channels) != (
        base.spec.layout,
        base.spec.channels,
    ):
        raise UserError(f"the latents were not made by the tokenizer of {weights}: encode the training images with it")
    if not store.moments.std.any():
        raise UserError("latents do not vary at all: the latent space collapsed, and a control of it says nothing")
