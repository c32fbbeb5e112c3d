"""Published DiT, SiT and LightningDiT checkpoints in and out. Nothing in a file is ever executed (`latentlab.weights`)."""

import math
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from latentlab.errors import UserError, unknown_name
from latentlab.files import atomic_path
from latentlab.weight_fit import check_finite, check_fits
from latentlab.weights import read_state_dict
from mind.baselines.positions import rotary_tables
from mind.baselines.published_keys import (
    PATCH,
    POSITIONS,
    ROTARY_TABLES,
    heads,
    own_names,
    published_name,
    told_by_shapes,
    unwrapped,
)
from mind.baselines.transformer import LatentTransformer
from mind.baselines.transformer_config import KINDS, Kind, TransformerConfig, read_transformer_fields

_ROUNDING = 0.02
"""Difference that rotary tables stored in half precision may have."""


def load_published(path: str | Path, kind: Kind, *, ema: bool = True, **overrides: Any) -> LatentTransformer:
    """Return the model in an authors' checkpoint: in evaluation mode and float32, its parameters without gradients.

    Args:
        path: torch or safetensors file: a state dict (DiT-XL-2, SiT-XL-2) or a training checkpoint with the entries ``ema``
            and ``model`` (LightningDiT, and what the SiT trainer writes).
        kind: what the file holds; files of DiT and SiT look the same.
        ema: take averaged weights where there are two sets, as all published numbers do.
        overrides: fields of `TransformerConfig` that the file does not tell: ``heads`` of an unusual width, ``input`` of a grid
            that is not square, ``position`` of a LightningDiT without rotary tables.

    Raises:
        UserError: missing, damaged or unsafe file; missing, unexpected or infinite weights, by name; an unknown kind or field,
            or one that contradicts the file.
    """
    if kind not in KINDS:
        raise unknown_name("kind of transformer", kind, KINDS)
    path = Path(path)
    state = _state(path, ema)
    config = _config_of(path, state, kind, overrides)
    _check_tables(path, state, config)
    with torch.device("meta"):
        model = LatentTransformer(config)
    names = own_names(model.state_dict())
    expected = {name: _published_shape(name, model.state_dict()[own], config) for name, own in names.items()}
    check_fits(state, expected, f"{path} does not fit this kind of transformer")
    check_finite(state, str(path))
    own = {names[name]: tensor.reshape(model.state_dict()[names[name]].shape) for name, tensor in state.items()}
    model.to_empty(device="cpu").load_state_dict(own)
    return model.float().eval().requires_grad_(False)


def export_published(model: LatentTransformer, path: str | Path) -> None:
    """Write the weights under their published names as a torch file that `load_published` and the authors' code read.

    The authors' LightningDiT always adds fixed positions: those of a model that has rotations only are written as zeros.

    Raises:
        UserError: a model of sequences, which the published formats do not have, or a folder that cannot be written.
    """
    config = model.config
    if config.input is None:
        raise UserError("the published checkpoints hold models of grids; this one reads sequences")
    state = {}
    for own, tensor in model.state_dict().items():
        name = published_name(own)
        state[name] = tensor.detach().cpu().reshape(_published_shape(name, tensor, config)).contiguous()
    if config.position == "rope":
        state[POSITIONS] = torch.zeros(1, config.length, config.width)
    if config.position != "sinusoidal":
        state |= {name: table.contiguous() for name, table in _tables(config).items()}
    with atomic_path(Path(path)) as temporary:
        torch.save(state, temporary)


def _state(path: Path, ema: bool) -> dict[str, Tensor]:
    """Return published name -> tensor; names lose what training put around them, and positions that are zero are left out."""
    with torch.serialization.safe_globals([Namespace]):  # the SiT trainer keeps its arguments beside the weights
        raw = read_state_dict(path, wrappers=("ema", "model") if ema else ("model", "ema"))
    state = {unwrapped(name): tensor for name, tensor in raw.items()}
    if len(state) != len(raw):
        raise UserError(f"{path} holds the same weight under several names: check the file")
    if ROTARY_TABLES[0] in state and POSITIONS in state and not state[POSITIONS].any():
        del state[POSITIONS]  # rotations only, as `export_published` writes them
    return state


def _config_of(path: Path, state: Mapping[str, Tensor], kind: Kind, overrides: Mapping[str, Any]) -> TransformerConfig:
    """Return the configuration that the file tells, completed by ``overrides``."""
    for name in overrides:
        if name not in TransformerConfig.model_fields:
            raise unknown_name("field of a transformer", name, TransformerConfig.model_fields)
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    if len(shapes.get(PATCH, ())) != 4:
        return read_transformer_fields({"kind": kind})  # something else: what it lacks will be listed
    told = told_by_shapes(shapes, kind)
    for name in told.keys() & overrides.keys():
        if overrides[name] != told[name]:
            raise UserError(f"{name}={overrides[name]} contradicts {path}, whose weights have {name}={told[name]}")
    _check_kind(path, kind, ROTARY_TABLES[0] in shapes, "position" in overrides)
    guessed: dict[str, Any] = {"input": _square(shapes, told), "heads": heads(shapes, told)}
    fields = {**guessed, **told, **overrides}
    for name in ("input", "heads"):
        if fields[name] is None:
            raise UserError(f"{path} does not tell '{name}' of its model: give it")
    return read_transformer_fields(fields)


def _check_kind(path: Path, kind: Kind, rotary: bool, chosen: bool) -> None:
    """Raise `UserError` when rotary tables are where they do not belong, or absent, and no position was ``chosen``."""
    if not chosen and rotary != (kind == "lightningdit"):
        raise UserError(
            f"{path} holds {'' if rotary else 'no '}rotary tables, as a LightningDiT has them: is it of a {kind}? If so give its "
            "position"
        )


def _square(shapes: Mapping[str, tuple[int, ...]], told: Mapping[str, Any]) -> tuple[int, int] | None:
    """Return rows and columns of the latent, taken to be square; None where the number of tokens is absent or no square.

    Positions that should be there and are not count as those of one token: that they are missing is said elsewhere.
    """
    absent = 1 if told.get("position") == "sinusoidal" else 0
    tokens = next((shapes[name][-2] for name in (POSITIONS, *ROTARY_TABLES) if len(shapes.get(name, ())) > 1), absent)
    side = math.isqrt(tokens) * int(told.get("patch", 0))
    return (side, side) if side and math.isqrt(tokens) ** 2 == tokens else None


def _published_shape(name: str, own: Tensor, config: TransformerConfig) -> tuple[int, ...]:
    if name == PATCH:
        return (config.width, config.in_channels, config.patch, config.patch)
    return (1, *own.shape) if name == POSITIONS else tuple(own.shape)


def _tables(config: TransformerConfig) -> dict[str, Tensor]:
    """Return LightningDiT's rotary tables [l,head width] by name: every number stands for both of its pair."""
    pairs = rotary_tables(config.patches, config.head_dim, torch.device("cpu"))
    return {name: table.repeat_interleave(2, dim=1) for name, table in zip(ROTARY_TABLES, pairs, strict=True)}


def _check_tables(path: Path, state: dict[str, Tensor], config: TransformerConfig) -> None:
    """Take the rotary tables out of ``state``; raise `UserError` when they are not those that will be computed."""
    for name, computed in _tables(config).items() if config.position != "sinusoidal" else ():
        stored = state.pop(name, computed)
        if stored.shape != computed.shape or not torch.allclose(stored.float(), computed, atol=_ROUNDING):
            sides = "x".join(map(str, config.patches))
            raise UserError(
                f"{path}: {name} is not the table of rotations for {sides} tokens and {config.heads} heads: give input or heads"
            )
