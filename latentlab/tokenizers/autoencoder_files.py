"""LDM-style tokenizers from files: the authors' layouts, diffusers', and latentlab's own, which records its architecture."""

from dataclasses import replace
from pathlib import Path

import torch

from latentlab.errors import UserError
from latentlab.files import file_sha256
from latentlab.tokenizers.autoencoder import Autoencoder, PatchNormalisedAutoencoder, build_tokenizer
from latentlab.tokenizers.families import LoadRequest
from latentlab.tokenizers.published import load_published
from latentlab.tokenizers.published_config import Published, config_beside, translated
from latentlab.tokenizers.release import Release
from latentlab.tokenizers.weight_metadata import read_weight_metadata
from latentlab.weights import read_state_dict

WRAPPERS = ("model", "state_dict")
"""Entries of published files under which the weights may lie: MAR's and LlamaGen's, and Lightning's."""

EMA_WRAPPERS = ("ema", *WRAPPERS)
"""The same, where averaged weights are wanted and may have an entry of their own, as LlamaGen's."""


def load_autoencoder(request: LoadRequest) -> Autoencoder:
    """Return the tokenizer; without ``ema`` its release's name ends in ``-raw``.

    The architecture is the release's, changed by ``config.json`` beside the weights where there is one, and by the overrides.

    Raises:
        UserError: a file that is missing, unsafe, damaged, or does not fit the architecture; an unknown architecture field.
    """
    path, release = request.path, request.release
    header = read_weight_metadata(path)
    state = read_state_dict(path, wrappers=EMA_WRAPPERS if request.ema else WRAPPERS)
    base = release.architecture if header is None else header.architecture
    if base is None and not request.overrides:
        raise UserError(
            f"{path} does not record its architecture, and '{request.name}' has no published one: give architecture"
        )
    published = (config_beside(path) if header is None else Published({})) | translated(
        request.overrides, "tokenizer architecture"
    )
    shift, scale = normalisation(release, path, published)
    with torch.device("meta"):  # no time and memory for random weights that are overwritten
        tokenizer = build_tokenizer(
            {**(base or {}), **published.fields},
            name=request.name,
            release=release.name if request.ema else f"{release.name}-raw",
            shift=shift,
            scale=scale,
            weights_sha256=file_sha256(path),
        )
    tokenizer.to_empty(device="cpu")
    load_published(tokenizer, state, ema=request.ema, source=f"{path} for '{request.name}'")
    if isinstance(tokenizer, PatchNormalisedAutoencoder):
        shift, scale = tokenizer.bn.per_channel()
        tokenizer.spec = replace(tokenizer.spec, shift=shift, scale=scale)
    return tokenizer.eval().requires_grad_(False)


def normalisation(release: Release, path: Path, published: Published) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return shift and scale: of the statistics file beside the weights, else of the configuration, else the release's."""
    if release.statistics is None or not (path.parent / release.statistics).is_file():
        return published.shift or release.shift, published.scale or release.scale
    file = path.parent / release.statistics
    statistics = read_state_dict(file)
    if not {"mean", "std"} <= set(statistics):
        raise UserError(f"{file} must hold 'mean' and 'std', it holds {', '.join(sorted(statistics)) or 'nothing'}")
    mean, std = (statistics[key].double().flatten() for key in ("mean", "std"))
    return tuple(mean.tolist()), tuple((1 / std).tolist())
