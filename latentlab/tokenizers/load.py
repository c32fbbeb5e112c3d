"""A tokenizer by name: the right release, its file, its architecture, and the weights put in."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from latentlab.errors import UserError
from latentlab.files import file_sha256
from latentlab.runtime import choose_device
from latentlab.tokenizers.base import Tokenizer
from latentlab.tokenizers.families import FAMILIES, LoadRequest
from latentlab.tokenizers.identify import (
    CUSTOM,
    check_unaltered,
    confirmed,
    custom_release,
    published_file,
    release_of_file,
)
from latentlab.tokenizers.plugin import open_plugin
from latentlab.tokenizers.release import Release
from latentlab.tokenizers.releases import ZOO
from latentlab.tokenizers.weight_metadata import WeightMetadata, read_weight_metadata
from latentlab.tokenizers.zoo import (
    embedded_path,
    find_release,
    find_release_files,
    plugins,
    readable,
    releases_of,
)

CONFIGURATION = "config.json"
"""File beside published weights that may say what they are put into."""


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
            which record their architecture; or a folder that holds the published file under its name, as a download from the
            hub does. Of the TAESD family either of the two files, or their folder. Of ``mind`` a file of `mind.save_mind`.
        architecture: fields that differ from the release's (``ch``, ``n_embed``, ...); ``use_ema`` stands for ``ema``. Of
            ``mind`` only ``base_weights``: the file of the tokenizer whose ids it embeds, if that is not a known release.
        release: which weights (`zoo_entries` lists them). Left out: with ``weights`` the release that has their SHA-256, or
            ``custom`` and the published layout; else the embedded weights where there are some. Said of a file that has not its
            published SHA-256, it stands for the layout only, unless ``architecture`` differs.
        device: where the tokenizer is put (names as in `choose_device`).
        ema: use the averaged weights when the file has both, as the authors' evaluation does; without, the release's name
            ends in ``-raw``, so that latents of the two are never mistaken for each other.
        download: fetch published weights that are not on this machine; otherwise nothing touches the network.

    Raises:
        UserError: unknown name, release or field; file missing, altered, unsafe, damaged or not fitting (all misfits in one
            error).
    """
    device = choose_device(device) if isinstance(device, str) else device
    known_plugins = plugins()
    if name in known_plugins:
        return open_plugin(known_plugins[name], weights, architecture, release).to(device).eval()
    overrides = dict(architecture or {})
    ema = overrides.pop("use_ema", ema)
    path = None if weights is None else Path(weights).expanduser()
    if path is not None and name in ZOO and path.is_dir():
        path = published_file(name, path, release)
    header = None if path is None else read_weight_metadata(path)
    if name in ZOO and header is not None and header.name in ZOO and header.name != name:
        raise UserError(f"{path} holds the tokenizer '{header.name}', not '{name}': ask for '{header.name}'")
    chosen = _release(name, release, path, header, resized=bool(overrides))
    companions: list[Path] = []
    if path is None and chosen.weights is None:
        path = embedded_file(name, chosen)
    elif path is None:
        path, *companions = find_release_files(name, chosen, download)
        if not overrides:
            check_unaltered(chosen, [path, *companions])
        path = readable(chosen, path)
    request = LoadRequest(
        name,
        chosen,
        path,
        overrides,
        ema,
        own_file=weights is None,
        download=download,
        companions=tuple(companions),
    )
    if chosen.family not in FAMILIES:
        raise UserError(f"{path} holds a tokenizer of the family '{chosen.family}', which this latentlab does not know")
    tokenizer = FAMILIES[chosen.family].load(request)
    if chosen.family != "mind":  # there the only one is a file, whose hash the specification has
        tokenizer.overrides = {**overrides, **_configuration(request)}
    return tokenizer.to(device).to(memory_format=torch.channels_last)  # convolutions on CPUs: a third less time


def _configuration(request: LoadRequest) -> dict[str, str]:
    """Return the hash of a ``config.json`` beside the weights, which may have a say in the architecture; empty without one."""
    file = request.beside(CONFIGURATION)
    return {CONFIGURATION: file_sha256(file)} if file.is_file() else {}


def embedded_file(name: str, release: Release) -> Path:
    """Return the weights that ship with the package.

    Raises:
        UserError: this installation lacks them.
    """
    path = embedded_path(name, release.name)
    if not path.is_file():
        raise UserError(f"the embedded weights {path} are missing: install latentlab again, or give weights=PATH")
    return path


def _release(
    name: str, release: str | None, path: Path | None, header: WeightMetadata | None, resized: bool
) -> Release:
    """Return the release to load: the one asked for, or what the file itself is, or the preferred one.

    A file that is given as a release and has not its published hash is called custom, unless it is of another size on purpose.
    """
    if header is not None and (name not in ZOO or release in (None, header.release)):
        same = (header.release, header.family)  # a training may build another family under a release's name
        own = next((known for known in ZOO.get(name, ()) if (known.name, known.family) == same), None)
        return own or Release(release or header.release, "unknown", family=header.family)
    if path is not None and release in (None, CUSTOM):
        return release_of_file(name, path) if release is None else custom_release(name, path)
    if release == CUSTOM:
        raise UserError(
            f"the weights of '{name}' are a file without a release ('{CUSTOM}'): give it with --weights (of a generator's "
            "tokenizer with --tokenizer-weights)"
        )
    if release is None:
        return releases_of(name)[0]
    said = find_release(name, release)
    return said if path is None or resized else confirmed(said, path)
