"""What the tokenizers share whose files have diffusers' layout: a configuration beside the weights, and plain tensors."""

from collections.abc import Callable, Mapping
from typing import TypeVar

import torch
from pydantic import BaseModel
from torch import Tensor

from latentlab.files import file_sha256
from latentlab.latents import TokenizerSpec
from latentlab.tokenizers.architecture import read_architecture
from latentlab.tokenizers.base import Tokenizer
from latentlab.tokenizers.families import LoadRequest
from latentlab.tokenizers.hub_architecture import DCArchitecture, RAEArchitecture
from latentlab.tokenizers.published import load_published
from latentlab.tokenizers.published_config import check_class, read_config

A = TypeVar("A", bound=BaseModel)
T = TypeVar("T", bound=Tokenizer)


def hub_architecture(request: LoadRequest, network: str, model: type[A]) -> A:
    """Return the release's architecture, changed by ``config.json`` beside the weights, then by the overrides.

    Of ``config.json`` only the fields of ``model`` are read.

    Args:
        request: names release, file and overrides.
        network: class of diffusers that ``config.json`` must name, if it names one.
        model: what the fields are checked against.

    Raises:
        UserError: ``config.json`` is damaged or of another network; an unknown override, or a value that cannot be.
    """
    path = request.beside("config.json")
    config = read_config(path)
    check_class(config, path, (network,))
    published = {field: config[field] for field in model.model_fields if field in config}
    return read_architecture({**(request.release.architecture or {}), **published, **request.overrides}, model)


def hub_spec(request: LoadRequest, architecture: DCArchitecture | RAEArchitecture) -> TokenizerSpec:
    """Return what a store remembers; latents without shift and scale."""
    return TokenizerSpec(
        name=request.name,
        release=request.release.name,
        kind="continuous",
        layout="grid",
        channels=architecture.latent_channels,
        downsampling=architecture.downsampling,
        weights_sha256=file_sha256(request.path),
    )


def put_weights(build: Callable[[], T], state: Mapping[str, Tensor], request: LoadRequest) -> T:
    """Return the tokenizer that ``build`` makes with the weights ``state``, ready to use.

    Raises:
        UserError: anything is missing, left over or of another shape.
    """
    with torch.device("meta"):  # no time and memory for random weights that are overwritten
        tokenizer = build()
    tokenizer.to_empty(device="cpu")
    config = request.beside("config.json")
    load_published(
        tokenizer,
        state,
        ema=False,
        source=f"{request.path} for '{request.name}'",
        config=config if config.is_file() else None,
    )
    return tokenizer.eval().requires_grad_(False)
