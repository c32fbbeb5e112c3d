"""Training checkpoints without pickle: tensors in safetensors, the rest as JSON in the same file, written atomically."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from latentlab.errors import UserError
from latentlab.files import atomic_path

_KEEP = 2


def save_checkpoint(folder: Path, step: int, state: Mapping[str, Any]) -> Path:
    """Write ``folder/step_00000123.safetensors`` and delete all but the newest two.

    Args:
        folder: created when absent.
        step: optimiser steps done.
        state: nested dicts and lists of tensors and JSON values (``{"model": module.state_dict(), ...}``).
    """
    tensors: dict[str, Tensor] = {}
    skeleton = _split(state, "", tensors)
    path = folder / f"step_{step:08d}.safetensors"
    with atomic_path(path) as temporary:
        save_file(tensors, temporary, metadata={"step": str(step), "state": json.dumps(skeleton)})
    for old in list_checkpoints(folder)[:-_KEEP]:
        old.unlink()
    return path


def list_checkpoints(folder: Path) -> list[Path]:
    """Return the checkpoints in ``folder``, oldest (lowest step) first."""
    return sorted(folder.glob("step_*.safetensors"))


def load_checkpoint(path: Path) -> tuple[int, dict[str, Any]]:
    """Return (step, state) as given to `save_checkpoint`, tensors on the CPU.

    Raises:
        UserError: the file is damaged or is not a checkpoint.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 (not a dict)
        return int(metadata["step"]), _join(json.loads(metadata["state"]), tensors)
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise UserError(
            f"{path} is not a whole checkpoint ({error}): delete it to continue from the one before"
        ) from error


_TENSOR = "<tensor>"


def _split(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """Move the tensors of ``value`` into ``tensors`` and return the rest with their names in their places."""
    if isinstance(value, Tensor):
        tensors[name] = value.detach().to("cpu", copy=True).contiguous()
        return {_TENSOR: name}
    if isinstance(value, Mapping):
        keys = {str(key): ("int" if isinstance(key, int) else "str") for key in value}
        items = {str(key): _split(item, f"{name}.{key}" if name else str(key), tensors) for key, item in value.items()}
        return {"<keys>": keys, "<items>": items}
    if isinstance(value, list | tuple):
        return [_split(item, f"{name}.{i}", tensors) for i, item in enumerate(value)]
    return value


def _join(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(value, dict):
        if _TENSOR in value:
            return tensors[value[_TENSOR]]
        return {
            int(key) if value["<keys>"][key] == "int" else key: _join(item, tensors)
            for key, item in value["<items>"].items()
        }
    return [_join(item, tensors) for item in value] if isinstance(value, list) else value


def state_to_device(state: Any, device: torch.device) -> Any:
    """Return ``state`` with every tensor on ``device``."""
    if isinstance(state, Tensor):
        return state.to(device)
    if isinstance(state, dict):
        return {key: state_to_device(item, device) for key, item in state.items()}
    return [state_to_device(item, device) for item in state] if isinstance(state, list) else state
