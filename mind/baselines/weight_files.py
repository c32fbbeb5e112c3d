"""Weight files of the baselines: safetensors that say what network, latents, tokenizer and sampler belong to them."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from latentlab import __version__
from latentlab.errors import UserError
from latentlab.files import atomic_path
from latentlab.weight_fit import check_finite, check_fits
from latentlab.weights import read_metadata, read_state_dict
from mind.baselines.latents import Affine
from mind.baselines.masked_config import read_config_fields as read_masked_fields
from mind.baselines.masked_network import MaskedTransformer
from mind.baselines.transformer import LatentTransformer
from mind.baselines.transformer_config import read_transformer_fields
from mind.parameters import exported_weights
from mind.weight_files import TokenizerRecord


@dataclass(frozen=True)
class BaselineHeader:
    """What a weight file says about itself.

    Attributes:
        kind: ``sit``, ``dit``, ``lightningdit`` or ``emigm``.
        config: fields of the network.
        affine: normalisation of the latents; None where it learned codes.
        tokenizer: what made the latents.
        sampler: recommended settings.
        metadata: every text entry.
    """

    kind: str
    config: dict[str, Any]
    affine: Affine | None
    tokenizer: TokenizerRecord
    sampler: dict[str, Any]
    metadata: dict[str, str]


def save_baseline(
    path: Path,
    network: LatentTransformer | MaskedTransformer,
    kind: str,
    affine: Affine | None,
    tokenizer: TokenizerRecord,
    dtype: torch.dtype,
    header: Mapping[str, str],
) -> None:
    """Write ``network``, its parameters in ``dtype``, with everything that sampling needs.

    Raises:
        UserError: the folder is not writable or the disk is full.
    """
    entries = {
        "generator": kind,
        "config": network.config.model_dump_json(),
        "affine": json.dumps(None if affine is None else [affine.shift, affine.scale]),
        "tokenizer": tokenizer.model_dump_json(),
        "latentlab_version": __version__,
        **header,
    }
    state = exported_weights(network, dtype)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    with atomic_path(path) as temporary:
        save_file(tensors, temporary, metadata=entries)


def read_baseline_header(path: Path) -> BaselineHeader:
    """Return what a file of `save_baseline` says about itself; no tensor is read.

    Raises:
        UserError: missing or damaged file, or not one of these.
    """
    if path.suffix in (".pt", ".pth", ".ckpt") and path.is_file():
        raise UserError(
            f"{path} is a torch checkpoint, not a file that `latentlab train` exported: mind.baselines.load_published reads "
            "those of the authors of SiT, DiT and LightningDiT"
        )
    metadata = read_metadata(path)
    try:
        affine = json.loads(metadata["affine"])
        return BaselineHeader(
            kind=metadata["generator"],
            config=json.loads(metadata["config"]),
            affine=None if affine is None else Affine(*map(tuple, affine)),
            tokenizer=TokenizerRecord.model_validate_json(metadata["tokenizer"]),
            sampler=json.loads(metadata.get("sampler", "{}")),
            metadata=metadata,
        )
    except (KeyError, ValueError, TypeError) as error:
        raise UserError(
            f"{path} holds no weights of a baseline written by latentlab ({type(error).__name__}: {error}): give a file that "
            "`latentlab train` exported"
        ) from error


def load_baseline(path: Path) -> tuple[LatentTransformer | MaskedTransformer, BaselineHeader]:
    """Return the network of a file of `save_baseline`, in evaluation mode and float32, and its header.

    Raises:
        UserError: missing or damaged file, or weights that do not fit their own configuration.
    """
    header = read_baseline_header(path)
    with torch.device("meta"):
        network: Any = _hollow(header)
    state = read_state_dict(path)
    check_fits(state, network.state_dict(), f"{path} does not fit the network it describes")
    check_finite(state, str(path))
    network.to_empty(device="cpu").load_state_dict(state)
    network.metadata = header.metadata
    return network.float().eval().requires_grad_(False), header


def _hollow(header: BaselineHeader) -> nn.Module:
    if header.kind == "emigm":
        return MaskedTransformer(read_masked_fields(header.config))
    return LatentTransformer(read_transformer_fields(header.config))
