"""LDM-style tokenizers from files: the authors' layouts, diffusers', and latentlab's own, which records its architecture."""

from dataclasses import replace

import torch

from latentlab.errors import UserError
from latentlab.files import file_sha256
from latentlab.tokenizers.autoencoder import Autoencoder, PatchNormalisedAutoencoder, build_tokenizer
from latentlab.tokenizers.families import LoadRequest
from latentlab.tokenizers.layouts import DIFFUSERS, LLAMAGEN, Layout, layout_of
from latentlab.tokenizers.published import has_averages, load_published
from latentlab.tokenizers.published_config import (
    AutoencoderKLConfig,
    Dialect,
    LlamaGenConfig,
    Published,
    published_config,
    translated,
)
from latentlab.tokenizers.weight_metadata import read_weight_metadata
from latentlab.tokenizers.zoo import published_namesake
from latentlab.weights import read_state_dict

WRAPPERS = ("model", "state_dict")
"""Entries of published files under which the weights may lie: MAR's and LlamaGen's, and Lightning's."""

DIALECT_OF: dict[Layout | None, Dialect] = {DIFFUSERS: AutoencoderKLConfig, LLAMAGEN: LlamaGenConfig}
"""Layouts that are published with a ``config.json``, and its fields; beside others such a file is somebody else's."""

EMA_WRAPPERS = ("ema", *WRAPPERS)
"""The same, where averaged weights are wanted and may have an entry of their own, as LlamaGen's."""


def load_autoencoder(request: LoadRequest) -> Autoencoder:
    """Return the tokenizer; with raw weights, asked for or because the file has no others, its release's name ends in ``-raw``.

    The architecture is the release's, changed by the overrides and before them, in layouts that are published with one, by
    ``config.json``.

    Raises:
        UserError: a file that is missing, unsafe, damaged, or does not fit the architecture; an unknown architecture field.
    """
    path, release = request.path, request.release
    header = read_weight_metadata(path)
    state = read_state_dict(path, wrappers=EMA_WRAPPERS if request.ema else WRAPPERS)
    base = release.architecture if header is None else header.architecture
    if base is None and not request.overrides:
        raise _unknown_architecture(request)
    config = request.beside("config.json")
    dialect = None if header is not None else DIALECT_OF.get(layout_of(state))
    beside = Published({}) if dialect is None else published_config(config, dialect)
    published = beside | translated(request.overrides, "tokenizer architecture")
    fields = {**(base or {}), **published.fields}
    shift, scale = normalisation(request, published, channels=fields.get("embed_dim", fields.get("z_channels")))
    averages = request.ema and (has_averages(state) or not release.averaged or header is not None)
    with torch.device("meta"):  # no time and memory for random weights that are overwritten
        tokenizer = build_tokenizer(
            fields,
            name=request.name,
            release=release.label(averages),
            shift=shift,
            scale=scale,
            weights_sha256=file_sha256(path),
        )
    tokenizer.to_empty(device="cpu")
    load_published(
        tokenizer,
        state,
        ema=request.ema,
        source=f"{path} for '{request.name}'",
        config=config if beside.fields else None,
    )
    if isinstance(tokenizer, PatchNormalisedAutoencoder):
        shift, scale = tokenizer.bn.per_channel()
        tokenizer.spec = replace(tokenizer.spec, shift=shift, scale=scale)
    return tokenizer.eval().requires_grad_(False)


def _unknown_architecture(request: LoadRequest) -> UserError:
    other = published_namesake(request.name)
    remedy = f"did you mean {other}? Else give architecture" if other else "give architecture"
    return UserError(
        f"{request.path} does not record its architecture, and '{request.name}' has no published one: {remedy}"
    )


def normalisation(
    request: LoadRequest, published: Published, channels: int | None
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return shift and scale: of the statistics file beside the weights, else of the configuration, else the release's.

    Raises:
        UserError: the statistics are not finite, not positive deviations, or not for this many ``channels``.
    """
    release = request.release
    file = None if release.statistics is None else request.beside(release.statistics)
    if file is None or not file.is_file():
        return published.shift or release.shift, published.scale or release.scale
    statistics = read_state_dict(file)
    if not {"mean", "std"} <= set(statistics):
        raise UserError(f"{file} must hold 'mean' and 'std', it holds {', '.join(sorted(statistics)) or 'nothing'}")
    mean, std = (statistics[key].double().flatten() for key in ("mean", "std"))
    if not len(mean) == len(std) == channels:
        raise UserError(f"{file} has statistics of {len(mean)} and {len(std)} channels, but latents have {channels}")
    if not (mean.isfinite().all() and std.isfinite().all() and (std > 0).all()):
        raise UserError(f"{file} is damaged: every 'mean' must be finite, every 'std' positive; download it again")
    return tuple(mean.tolist()), tuple((1 / std).tolist())
