"""A tokenizer by name: the right release, its file, its architecture, and the weights put in."""

from collections.abc import Mapping
from functools import partial
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import torch

from latentlab.errors import UserError
from latentlab.files import file_sha256
from latentlab.runtime import choose_device
from latentlab.tokenizers.autoencoder import Autoencoder, build_tokenizer
from latentlab.tokenizers.base import Tokenizer
from latentlab.tokenizers.published import load_published
from latentlab.tokenizers.sphere import load_sphere
from latentlab.tokenizers.taesd import load_tiny
from latentlab.tokenizers.weight_metadata import WeightMetadata, read_weight_metadata
from latentlab.tokenizers.zoo import (
    ZOO,
    Release,
    embedded_path,
    find_release,
    find_release_weights,
    plugins,
    releases_of,
)
from latentlab.weights import read_state_dict

WRAPPERS = ("state_dict", "model")
"""Entries of published files under which the weights may lie: Lightning's and MAR's."""


def load_tokenizer(
    name: str,
    weights: str | Path | None = None,
    architecture: Mapping[str, Any] | None = None,
    release: str | None = None,
    device: str | torch.device = "cpu",
    ema: bool = True,
    download: bool = False,
) -> Tokenizer:
    """Return a tokenizer ready to encode and decode, in evaluation mode and float32.

    Args:
        name: a name of `tokenizer_names`; with ``weights`` of latentlab's own format, any name.
        weights: file to read instead of the release's: published layouts (.ckpt, .pt, .safetensors) or latentlab's own,
            which record their architecture. Of the TAESD family either of the two files, or their folder. Of ``mind`` a
            file of `mind.save_mind`.
        architecture: fields that differ from the release's (``ch``, ``n_embed``, ...); ``use_ema`` stands for ``ema``. Of
            ``mind`` only ``base_weights``: the file of the tokenizer whose ids it embeds, if that is not a known release.
        release: which weights (`zoo_entries` lists them). Left out: with ``weights`` the published layout, else the
            embedded weights where there are some.
        device: where the tokenizer is put (names as in `choose_device`).
        ema: use the averaged weights when the file has both, as the authors' evaluation does; without, the release's name
            ends in ``-raw``, so that latents of the two are never mistaken for each other.
        download: fetch published weights that are not on this machine; otherwise nothing touches the network.

    Raises:
        UserError: unknown name, release or field; file missing, unsafe, damaged or not fitting (all misfits in one error).
    """
    device = choose_device(device) if isinstance(device, str) else device
    known_plugins = plugins()
    if name in known_plugins:
        return _from_plugin(known_plugins[name], weights, architecture, release).to(device).eval()
    overrides = dict(architecture or {})
    ema = overrides.pop("use_ema", ema)
    path = None if weights is None else Path(weights)
    header = None if path is None else read_weight_metadata(path)
    if name in ZOO and header is not None and header.name in ZOO and header.name != name:
        raise UserError(f"{path} holds the tokenizer '{header.name}', not '{name}': ask for '{header.name}'")
    chosen = _release(name, release, path, header)
    if path is None:
        path = embedded_file(name, chosen) if chosen.weights is None else find_release_weights(chosen, download)
        header = read_weight_metadata(path)
    if chosen.family == "mind":
        own_release = None if weights is not None else chosen.name
        return load_sphere(path, partial(load_tokenizer, download=download), overrides, own_release).to(device)
    if chosen.family == "taesd":
        return load_tiny(name, chosen.name, path, {**(chosen.architecture or {}), **overrides}).to(device)
    return _load(name, chosen, path, header, overrides, ema).to(device)


def embedded_file(name: str, release: Release) -> Path:
    """Return the weights that ship with the package.

    Raises:
        UserError: this installation lacks them.
    """
    path = embedded_path(name, release.name)
    if not path.is_file():
        raise UserError(f"the embedded weights {path} are missing: install latentlab again, or give weights=PATH")
    return path


def _release(name: str, release: str | None, path: Path | None, header: WeightMetadata | None) -> Release:
    """Return the release to load: the one asked for, or what the file itself is, or the preferred one."""
    if header is not None and (name not in ZOO or release is None):
        own = next((known for known in ZOO.get(name, ()) if known.name == header.release), None)
        return own or Release(release or header.release, "unknown")
    if release is not None:
        return find_release(name, release)
    releases = releases_of(name)
    if path is None:
        return releases[0]
    return next((known for known in releases if not known.embedded), releases[0])


def _load(
    name: str, release: Release, path: Path, header: WeightMetadata | None, overrides: Mapping[str, Any], ema: bool
) -> Autoencoder:
    state = read_state_dict(path, wrappers=WRAPPERS)
    base = release.architecture if header is None else header.architecture
    if base is None:
        if not overrides:
            raise UserError(
                f"{path} does not record its architecture, and '{name}' has no published one: give architecture"
            )
        base = {}
    shift, scale = _normalisation(release, path)
    with torch.device("meta"):  # no time and memory for random weights that are overwritten
        tokenizer = build_tokenizer(
            {**base, **overrides},
            name=name,
            release=release.name if ema else f"{release.name}-raw",
            shift=shift,
            scale=scale,
            weights_sha256=file_sha256(path),
        )
    tokenizer.to_empty(device="cpu")
    load_published(tokenizer, state, ema=ema, source=f"{path} for '{name}'")
    return tokenizer.eval().requires_grad_(False)


def _normalisation(release: Release, path: Path) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return shift and scale: from the statistics file beside the weights where there is one, else the release's."""
    if release.statistics is None or not (path.parent / release.statistics).is_file():
        return release.shift, release.scale
    file = path.parent / release.statistics
    statistics = read_state_dict(file)
    if not {"mean", "std"} <= set(statistics):
        raise UserError(f"{file} must hold 'mean' and 'std', it holds {', '.join(sorted(statistics)) or 'nothing'}")
    mean, std = (statistics[key].double().flatten() for key in ("mean", "std"))
    return tuple(mean.tolist()), tuple((1 / std).tolist())


def _from_plugin(
    point: EntryPoint, weights: str | Path | None, architecture: Mapping[str, Any] | None, release: str | None
) -> Tokenizer:
    """Call the factory of another package."""
    if release is not None:
        raise UserError(f"tokenizer '{point.name}' is a plug-in and has no releases: leave release out")
    try:
        factory = point.load()
    except (ImportError, AttributeError) as error:
        raise UserError(f"the tokenizer '{point.name}' ({point.value}) cannot be imported: {error}") from error
    tokenizer = factory(weights, architecture)
    if not isinstance(tokenizer, Tokenizer):
        raise UserError(
            f"the tokenizer '{point.name}' ({point.value}) gave a {type(tokenizer).__name__}, not a Tokenizer"
        )
    return tokenizer
