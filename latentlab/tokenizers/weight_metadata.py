"""What our own weight files say about themselves in the safetensors header. Imports no torch."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from latentlab.errors import UserError
from latentlab.weights import read_metadata


@dataclass(frozen=True)
class WeightMetadata:
    """The header of a weight file written by latentlab.

    Attributes:
        architecture: fields of the family's architecture.
        name: of the tokenizer.
        release: of the weights.
        training: configuration and scores of the run that made them.
        family: what the architecture's fields describe, a name of `families.FAMILIES`; files that do not say are ``ldm``.
    """

    architecture: dict[str, Any]
    name: str = "custom"
    release: str = "custom"
    training: dict[str, Any] = field(default_factory=dict)
    family: str = "ldm"


def read_weight_metadata(path: Path) -> WeightMetadata | None:
    """Return the header of a weight file written by latentlab, or None for any other file.

    Raises:
        UserError: the file cannot be read, or its header is damaged.
    """
    if path.suffix != ".safetensors":
        return None
    header = read_metadata(path)
    if "architecture" not in header:
        return None
    try:
        parsed = {key: json.loads(header.get(key, "{}")) for key in ("architecture", "training")}
    except json.JSONDecodeError as error:
        raise UserError(f"{path}: the header is damaged ({error}): get the file again") from error
    if not all(isinstance(value, dict) for value in parsed.values()):
        raise UserError(f"{path}: architecture and training in the header must be JSON objects")
    name, release = header.get("name", "custom"), header.get("release", "custom")
    return WeightMetadata(name=name, release=release, family=header.get("family", "ldm"), **parsed)
