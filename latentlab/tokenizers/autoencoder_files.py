"""LDM-style tokenizers from files: the authors' layouts, diffusers', and latentlab's own, which records its architecture."""

from pathlib import Path

import torch

from latentlab.errors import UserError
from latentlab.files import file_sha256
from latentlab.tokenizers.autoencoder import Autoencoder, build_tokenizer
from latentlab.tokenizers.families import LoadRequest
from latentlab.tokenizers.published import load_published
from latentlab.tokenizers.release import Release
from latentlab.tokenizers.weight_metadata import read_weight_metadata
from latentlab.weights import read_state_dict

WRAPPERS = ("state_dict", "model")
"""Entries of published files under which the weights may lie: Lightning's and MAR's."""


def load_autoencoder(request: LoadRequest) -> Autoencoder:
    """Return the tokenizer; without ``ema`` its release's name ends in ``-raw``.

    Raises:
        UserError: a file that is missing, unsafe, damaged, or does not fit the architecture; an unknown architecture field.
    """
    path, release = request.path, request.release
    header = read_weight_metadata(path)
    state = read_state_dict(path, wrappers=WRAPPERS)
    base = release.architecture if header is None else header.architecture
    if base is None and not request.overrides:
        raise UserError(
            f"{path} does not record its architecture, and '{request.name}' has no published one: give architecture"
        )
    shift, scale = normalisation(release, path)
    with torch.device("meta"):  # no time and memory for random weights that are overwritten
        tokenizer = build_tokenizer(
            {**(base or {}), **request.overrides},
            name=request.name,
            release=release.name if request.ema else f"{release.name}-raw",
            shift=shift,
            scale=scale,
            weights_sha256=file_sha256(path),
        )
    tokenizer.to_empty(device="cpu")
    load_published(tokenizer, state, ema=request.ema, source=f"{path} for '{request.name}'")
    return tokenizer.eval().requires_grad_(False)


def normalisation(release: Release, path: Path) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return shift and scale: from the statistics file beside the weights where there is one, else the release's."""
    if release.statistics is None or not (path.parent / release.statistics).is_file():
        return release.shift, release.scale
    file = path.parent / release.statistics
    statistics = read_state_dict(file)
    if not {"mean", "std"} <= set(statistics):
        raise UserError(f"{file} must hold 'mean' and 'std', it holds {', '.join(sorted(statistics)) or 'nothing'}")
    mean, std = (statistics[key].double().flatten() for key in ("mean", "std"))
    return tuple(mean.tolist()), tuple((1 / std).tolist())
