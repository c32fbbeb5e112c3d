"""From weights of any kind to the sampling paths of their generator."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from latentlab.errors import UserError
from latentlab.tokenizers.base import Tokenizer
from latentlab.weights import read_metadata
from mind.baselines.open import open_baseline
from mind.baselines.paths import DDPM_ODE, FLOW_ODE, DdpmPaths, FlowPaths
from mind.open_generator import TokenizerChoice, open_generator
from mind.paths import ODE_SETTINGS, MindPaths, PathGenerator

NAMES = {"mind": "MIND", "sit": "SiT", "lightningdit": "LightningDiT", "dit": "DiT", "emigm": "eMIGM"}
"""Kinds of generators as `latentlab train` calls them and names its weight files, and as people do."""


class OpenedPaths(NamedTuple):
    """The paths of a generator, and what belongs to them."""

    paths: PathGenerator
    kind: str
    """A key of `NAMES`."""
    tokenizer: Tokenizer
    """What made the latents they lead to."""


def open_paths(
    weights: str | Path = "fashion32",
    *,
    settings: Mapping[str, Any] | None = None,
    tokenizer: TokenizerChoice = TokenizerChoice(),
    precision: str | None = None,
    device: torch.device | str = "cpu",
    averaged: bool | None = None,
    model: Mapping[str, Any] | None = None,
) -> OpenedPaths:
    """Return the paths of the generator with these weights, whatever its kind, in 50 Euler steps without guidance by default.

    Args:
        weights: name of embedded weights of MIND, a weight file, the folder of a training run, or the authors' checkpoint.
        settings: sampler settings that differ from those of the ODE, which come before those the weight file recommends.
        tokenizer: what made the latents, where it is not to be what the weight file says.
        precision: None for ``float32``, whatever the weights are usually run in: rounded states do not go straight.
        device: where everything runs.
        averaged: whether to take the averaged or the raw weights of a training run; None for what is published of the kind: raw
            ones of MIND, averaged ones of the others.
        model: fields of `MindConfig` that the authors' checkpoint does not tell.

    Raises:
        UserError: weights or tokenizer that are missing, damaged or do not fit each other, a generator without an ODE, settings
            that do not exist or draw random numbers on the way.
    """
    kind = kind_of(weights)
    asked: dict[str, Any] = {
        "tokenizer": tokenizer,
        "precision": precision or "float32",
        "device": device,
        "averaged": averaged,
    }
    if kind == "mind":
        mind = open_generator(weights, settings={**ODE_SETTINGS, **(settings or {})}, model=model, **asked)
        return OpenedPaths(MindPaths(mind), kind, mind.tokenizer)
    if model:
        raise UserError(f"{weights} says what model it holds: leave out {', '.join(model)}")
    ode = DDPM_ODE if kind == "dit" else FLOW_ODE
    opened = open_baseline(kind, weights, settings={**ode, **(settings or {})}, **asked)
    paths: Any = DdpmPaths if kind == "dit" else FlowPaths
    found = paths(
        opened.network, opened.settings, affine=opened.affine, tokenizer=opened.tokenizer, facts=opened.facts()
    )
    return OpenedPaths(found, kind, opened.tokenizer)


def kind_of(weights: str | Path) -> str:
    """Return the kind of generator, a key of `NAMES`, that ``weights`` hold; what does not say is MIND's.

    Raises:
        UserError: a folder without weights or with those of several generators, a damaged file, one of a tokenizer, or a
            generator without an ODE.
    """
    path = Path(weights)
    if path.is_dir():
        kind = _exported(path)
    elif path.is_file() and path.suffix == ".safetensors":
        metadata = read_metadata(path)
        if "architecture" in metadata:
            raise UserError(
                f"{path} holds a tokenizer, not a generator: give what `latentlab train sit`, say, has exported"
            )
        kind = "mind" if "mind_config" in metadata else metadata.get("generator", "mind")
    else:
        kind = "mind"
    if kind == "emigm":
        raise UserError(
            f"{weights} holds weights of eMIGM, which unmasks tokens and has no ODE: its paths have no straightness"
        )
    if kind not in NAMES:
        raise UserError(f"{weights} holds weights of a generator '{kind}' that this latentlab does not know: update it")
    return kind


def _exported(folder: Path) -> str:
    """Return the kind whose weights a training run left in ``folder``."""
    found = [kind for kind in NAMES if (folder / f"{kind}.safetensors").is_file()]
    if len(found) == 1:
        return found[0]
    if found:
        files = " and ".join(f"{kind}.safetensors" for kind in found)
        raise UserError(f"{folder} holds {files}: give the file, not the folder")
    raise UserError(
        f"{folder} holds no weights of a generator: is it the folder of `latentlab train`, and is the run finished?"
    )
