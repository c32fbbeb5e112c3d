"""MIND's own weight files: which ship with the package, where others lie, and what their headers say. Imports no torch."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from latentlab.errors import UserError, unknown_name
from latentlab.files import first_problem
from latentlab.weights import read_metadata
from mind.config import MindConfig

WEIGHTS = Path(__file__).parent / "weights"
"""Folder of the weights that ship with the package."""

EMBEDDED = ("fashion32",)
"""Names of the embedded weights: ``fashion32`` makes 32x32 Fashion-MNIST images from the tokens of the embedded IBQ."""


class TokenizerRecord(BaseModel):
    """Which tokenizer's tokens the weights were trained on.

    Attributes:
        name: as in `latentlab.load_tokenizer`.
        release: of its weights.
        weights_sha256: of the tokenizer's weight file; None when it was not known.
    """

    model_config = ConfigDict(frozen=True)

    name: str
    release: str
    weights_sha256: str | None = None


@dataclass(frozen=True)
class Header:
    """What a weight file says about itself.

    Attributes:
        config: shape of the network and its forward process.
        tokenizer: what made the tokens; None when the file does not say.
        metadata: every text entry of the header, those two included.
    """

    config: MindConfig
    tokenizer: TokenizerRecord | None
    metadata: dict[str, str]


def find_weights(name_or_path: str | Path) -> Path:
    """Return the file of embedded weights (``fashion32``), or of a path as it is.

    Raises:
        UserError: no such file and no such name, a folder, or the installation lacks its embedded weights.
    """
    path = Path(name_or_path)
    if path.is_file():
        return path
    if path.is_dir():
        raise UserError(f"{path} is a folder: give the weight file in it")
    if path.suffix or len(path.parts) != 1:
        raise UserError(f"{path} does not exist: check the path, or give the name of embedded weights: {EMBEDDED[0]}")
    if str(path) not in EMBEDDED:
        raise unknown_name("MIND weights", str(path), EMBEDDED)
    shipped = embedded_path(str(path))
    if not shipped.is_file():
        raise UserError(f"the embedded weights {shipped} are missing: install latentlab again, or give a weight file")
    return shipped


def embedded_path(name: str) -> Path:
    """Return where the embedded weights ``name`` lie in the package."""
    return WEIGHTS / f"mind_{name}.safetensors"


def read_header(path: Path) -> Header:
    """Return what a file written by `save_mind` says about itself; no tensor is read.

    Raises:
        UserError: missing or damaged file, not one of ours, or a header that does not fit this version.
    """
    if path.suffix != ".safetensors":
        raise UserError(f"{path} is not a .safetensors file of MIND weights: read the authors' with mind.load_released")
    metadata = read_metadata(path)
    if "mind_config" not in metadata:
        raise UserError(f"{path} holds no MIND weights written by latentlab: its header has no mind_config")
    record = _entry(path, "tokenizer", metadata, TokenizerRecord) if "tokenizer" in metadata else None
    return Header(_entry(path, "mind_config", metadata, MindConfig), record, metadata)


def _entry(path: Path, name: str, metadata: dict[str, str], model: type[Any]) -> Any:
    """Return the JSON of one header entry as a ``model``."""
    try:
        return model.model_validate(json.loads(metadata[name]))
    except json.JSONDecodeError as error:
        raise UserError(f"{path}: {name} in the header is not JSON ({error}): get the file again") from error
    except ValidationError as error:
        raise UserError(f"{path}: {name} in the header: {first_problem(error)}") from error
