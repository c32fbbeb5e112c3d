"""MIND weights in and out: the authors' checkpoint container, and files of our own.

The released evaluation code of MIND (arXiv 2606.00094) reads a DeepSpeed container, ``mp_rank_00_model_states.pt``: a torch file
whose entry ``module`` holds the weights. Nothing in a file is ever executed (`latentlab.weights`).
"""

from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from latentlab import __version__
from latentlab.errors import UserError, unknown_name
from latentlab.files import atomic_path
from latentlab.weight_fit import check_finite, check_fits
from latentlab.weights import read_metadata, read_state_dict
from mind.config import SIZES, MindConfig, read_config_fields, sized
from mind.layers import RotaryPositions
from mind.network import Mind, Precision
from mind.published_keys import COMPILED, INV_FREQ, SCALAR, own_names, published_name, told_by_shapes
from mind.weight_files import find_weights, read_header

EMA_ENTRIES = ("ema", "model_ema", "ema_state_dict", "ema_state")
"""Entries under which averaged weights are looked for; the published numbers use ``module``."""

_USUAL_HEAD = 64


class _Inert:
    """Stands for an object of the training code beside the weights: takes its state, does nothing."""


_BOOKKEEPING: list[Any] = [
    Namespace,
    np.dtype,
    type(np.dtype(np.float64)),
    type(np.dtype(np.int64)),
    (np.float64(0).__reduce__()[0], "numpy.core.multiarray.scalar"),  # its name before numpy 2, and since
    (np.float64(0).__reduce__()[0], "numpy._core.multiarray.scalar"),
    (_Inert, "deepspeed.runtime.fp16.loss_scaler.LossScaler"),
    (_Inert, "deepspeed.runtime.fp16.loss_scaler.DynamicLossScaler"),
]
"""What DeepSpeed and training scripts keep beside the weights, and what may be built of it: nothing here runs anything."""


def load_released(path: str | Path, *, ema: bool = False, precision: Precision = "float32", **overrides: Any) -> Mind:
    """Return the model in the authors' checkpoint container: in evaluation mode, its parameters without gradients.

    Args:
        path: torch or safetensors file with the published names, under ``module`` or by themselves; ``_orig_mod.`` anywhere in
            a name is ignored. ``rotary_emb.inv_freq`` and ``scalar`` may be absent.
        ema: take the averaged weights instead of those under ``module``.
        precision: how it computes (`Mind.set_precision`).
        overrides: fields of `MindConfig`. What the shapes tell (widths, depth, vocabulary, classes) need not be given. Left
            out, the number of heads follows from ``inv_freq`` (without it, 64 numbers are one head), the precision of the rotary
            tables is that of ``inv_freq`` (without it, of the weights), and the rest is as in the published size that has
            these shapes, or as in MIND-B.

    Raises:
        UserError: missing, damaged or unsafe file; missing or unexpected weights, by name; an unknown field, or one that
            contradicts the file.
    """
    path = Path(path)
    state = _published_state(path, ema)
    config = _config_of(path, state, overrides)
    state = {INV_FREQ: RotaryPositions(config).inv_freq, SCALAR: torch.ones(1, 1), **state}
    model = _hollow(config)
    names = own_names(model.state_dict())
    check_fits(state, {name: model.state_dict()[own] for name, own in names.items()}, _fits(path))
    check_finite(state, str(path))
    return _filled(model, {names[name]: tensor for name, tensor in state.items()}).set_precision(precision)


def export_released(model: Mind, path: str | Path) -> None:
    """Write the weights under their published names, as `load_released` reads them.

    A path that ends in ``.safetensors`` gets that format; any other a torch file with the weights in its entry ``module``, as the
    authors' container has them. Weights keep their precision; ``inv_freq`` gets that of the rotary tables, by which readers
    tell it.

    Raises:
        UserError: the folder is not writable or the disk is full.
    """
    state = {published_name(name): tensor.detach().cpu() for name, tensor in model.state_dict().items()}
    state[INV_FREQ] = state[INV_FREQ].to(getattr(torch, model.config.rope_dtype))
    with atomic_path(Path(path)) as temporary:
        if Path(path).suffix == ".safetensors":
            save_file({name: tensor.contiguous() for name, tensor in state.items()}, temporary)
        else:
            torch.save({"module": state}, temporary)


def save_mind(
    path: str | Path, model_state: Mapping[str, Tensor], config: MindConfig, metadata: Mapping[str, str]
) -> None:
    """Write weights as a safetensors file that describes itself; the file is whole or absent.

    Args:
        path: of the file, ends in ``.safetensors``.
        model_state: state dict of a `Mind` of this configuration, in the precision to be stored.
        config: goes into the header as ``mind_config``.
        metadata: further header entries: ``tokenizer`` (JSON: name, release, weights_sha256), ``release``, ...

    Raises:
        UserError: weights that do not fit the configuration, another suffix, or a folder that cannot be written.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise UserError(f"{path} must end in .safetensors")
    check_fits(model_state, _hollow(config).state_dict(), _fits(f"what is to be saved as {path}"))
    header = {**metadata, "mind_config": config.model_dump_json(), "latentlab_version": __version__}
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model_state.items()}
    with atomic_path(path) as temporary:
        save_file(tensors, temporary, metadata=header)


def load_mind(name_or_path: str | Path) -> Mind:
    """Return the model of a file written by `save_mind`, or embedded weights by name; in evaluation mode and float32.

    Its header is in ``metadata``; its parameters are without gradients.

    Raises:
        UserError: no such file or name, not such a file, damaged, or weights that do not fit their own configuration.
    """
    path = find_weights(name_or_path)
    header, state = read_header(path), read_state_dict(path)
    model = _hollow(header.config)
    check_fits(state, model.state_dict(), _fits(path))
    check_finite(state, str(path))
    model.metadata = header.metadata
    return _filled(model, state)


def _fits(source: str | Path) -> str:
    return f"{source} does not fit this MIND model"


def _published_state(path: Path, ema: bool) -> dict[str, Tensor]:
    """Return published name -> tensor of a container."""
    if path.suffix == ".safetensors" and "mind_config" in read_metadata(path):
        raise UserError(f"{path} was written by latentlab, with names of its own: read it with mind.load_mind")
    with torch.serialization.safe_globals(_BOOKKEEPING):
        raw = _averaged(path) if ema else read_state_dict(path, wrappers=("module",))
    state = {name.replace(COMPILED, ""): tensor for name, tensor in raw.items()}
    if len(state) != len(raw):
        raise UserError(f"{path} holds the same weight with and without '{COMPILED}' in its name: check the file")
    return state


def _averaged(path: Path) -> dict[str, Tensor]:
    """Return the averaged weights of a container: the first of the known entries that holds a state dict."""
    problem: UserError | None = None
    for entry in EMA_ENTRIES:
        try:
            return read_state_dict(path, entry)
        except UserError as error:  # no such entry, or something else wrong with the file: told if no entry will do
            problem = error
    raise UserError(
        f"no averaged weights ({', '.join(EMA_ENTRIES)}): {problem}; use ema=False for the weights the published numbers use"
    )


def _config_of(path: Path, state: Mapping[str, Tensor], overrides: Mapping[str, Any]) -> MindConfig:
    """Return the configuration that the file tells, completed by ``overrides``, then by a published size."""
    for name in overrides:
        if name not in MindConfig.model_fields:
            raise unknown_name("field of a MIND model", name, MindConfig.model_fields)
    told = _told(state)
    for name in told.keys() & overrides.keys():
        if overrides[name] != told[name]:
            raise UserError(f"{name}={overrides[name]} contradicts {path}, whose weights have {name}={told[name]}")
    fields = {**_published_size(told), **told, "rope_dtype": _rope_dtype(state), **overrides}
    width = fields.get("hidden_size", 0)
    if "num_heads" not in fields and width:
        if width % _USUAL_HEAD:
            raise UserError(f"{path} does not tell its number of heads (hidden_size {width}): give num_heads")
        fields["num_heads"] = width // _USUAL_HEAD
    return read_config_fields(fields)


def _told(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return the fields that follow from the weights, the number of heads from the rotary frequencies among them."""
    told = told_by_shapes({name: tuple(tensor.shape) for name, tensor in state.items()})
    width, head = told.get("hidden_size", 0), 2 * state[INV_FREQ].numel() if INV_FREQ in state else 0
    if head and width and width % head == 0:
        told["num_heads"] = width // head
    return told


def _published_size(told: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of the published size that agrees with all that is ``told``, empty if there is none."""
    for name, fields in SIZES.items():
        size = sized(name)
        if all(getattr(size, field) == value for field, value in told.items()):
            return {**fields, "num_heads": size.num_heads}
    return {}


def _rope_dtype(state: Mapping[str, Tensor]) -> str:
    """Return the precision of the rotary tables: that of the stored frequencies, else of the weights."""
    telling = [state[INV_FREQ]] if INV_FREQ in state else list(state.values())
    return "bfloat16" if any(tensor.dtype == torch.bfloat16 for tensor in telling) else "float32"


def _hollow(config: MindConfig) -> Mind:
    """Return the model without memory for its weights: no time for random numbers that are overwritten."""
    with torch.device("meta"):
        return Mind(config)


def _filled(model: Mind, state: Mapping[str, Tensor]) -> Mind:
    model.to_empty(device="cpu").load_state_dict(dict(state))
    return model.eval().requires_grad_(False)
