"""From what a user names (weights, tokenizer, sampler settings) to a generator that is ready to draw."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from latentlab.encoding import weights_digest
from latentlab.errors import UserError, unknown_name
from latentlab.files import file_sha256
from latentlab.tokenizers import load_tokenizer
from latentlab.tokenizers.base import Tokenizer
from latentlab.weights import read_metadata
from mind.network import Mind, Precision
from mind.pipeline import MindGenerator
from mind.released import load_mind, load_released
from mind.settings import SamplerSettings
from mind.weight_files import TokenizerRecord, find_weights, read_header

EXPORT = "mind.safetensors"
AVERAGED_EXPORT = "mind_ema.safetensors"
"""What a training run leaves in its folder: its raw weights (and ``mind_ema.safetensors``, the averaged ones)."""

SAMPLER_ENTRY = "sampler"
"""Entry, in the header of a weight file, of sampler settings that suit the weights, as JSON."""


@dataclass(frozen=True)
class TokenizerChoice:
    """What a user says about the tokenizer; what is None is as the weights say."""

    name: str | None = None
    release: str | None = None
    weights: Path | None = None


def open_generator(
    weights: str | Path = "fashion32",
    *,
    settings: Mapping[str, Any] | None = None,
    tokenizer: TokenizerChoice = TokenizerChoice(),
    precision: str | None = None,
    device: torch.device | str = "cpu",
    averaged: bool | None = None,
    model: Mapping[str, Any] | None = None,
) -> MindGenerator:
    """Return MIND with these weights, ready to draw.

    Args:
        weights: name of embedded weights, a file of `save_mind`, the folder of a training run, or the authors'
            checkpoint container.
        settings: sampler settings that differ from those the weight file recommends, or from `SamplerSettings`'s.
        tokenizer: what decodes the tokens, where it is not to be what the weight file says.
        precision: None for the released run's for the authors' weights, else ``float32``.
        device: where everything runs.
        averaged: whether to take the averaged or the raw weights, of a training run or of the authors' container; None for the
            raw ones, which the published numbers are of, and for what a file of ours holds.
        model: fields of `MindConfig` that the authors' container does not tell.

    Raises:
        UserError: weights or tokenizer that are missing, damaged or do not fit each other, an unknown setting or value, or
            something asked of a weight file that does not have it.
    """
    path = weight_file(weights, bool(averaged))
    if _is_ours(path):
        header = read_header(path)
        if model:
            raise UserError(f"{path} says what model it holds: leave out {', '.join(model)}")
        check_weighting(path, header.metadata, averaged)
        record, recommended = header.tokenizer, _recommended(path, header.metadata)
        mind = load_mind(path)
    else:
        mind, record, recommended = load_released(path, ema=bool(averaged), **(model or {})), None, {}
    chosen = sampler_settings({**recommended, **(settings or {})})
    decoder = chosen_tokenizer(tokenizer, record, path)
    return MindGenerator(
        mind.to(device),
        decoder,
        chosen,
        precision=precision or _usual_precision(mind, path),
        weights_sha256=file_sha256(path),
    )


def weight_file(weights: str | Path, averaged: bool = False) -> Path:
    """Return the file that ``weights`` means: a name, a file, or what a training run exported into its folder.

    Of the two exports of a run the raw weights, which the published numbers are of, unless ``averaged`` ones are wanted.

    Raises:
        UserError: there is none.
    """
    folder = Path(weights)
    if not folder.is_dir():
        return find_weights(weights)
    file = folder / (AVERAGED_EXPORT if averaged else EXPORT)
    if not file.is_file():
        raise UserError(
            f"{folder} holds no {file.name}: is it the folder of `latentlab train mind`, and is the run finished?"
        )
    return file


def check_weighting(path: Path, metadata: Mapping[str, str], averaged: bool | None) -> None:
    """Raise `UserError` unless the weight file holds averaged or raw weights as asked; None asks for neither."""
    if averaged is None or averaged == (metadata.get("weights") == "averaged"):
        return
    held, other = ("raw", "--averaged") if averaged else ("averaged", "--raw")
    raise UserError(f"{path} holds {held} weights only: give the folder of a training run, or leave out {other}")


def sampler_settings(values: Mapping[str, Any]) -> SamplerSettings:
    """Return the settings with these values, the rest as released.

    Raises:
        UserError: unknown name, with near misses, or a value that cannot be.
    """
    for name in values:
        if name not in SamplerSettings.model_fields:
            raise unknown_name("sampler setting", name, SamplerSettings.model_fields)
    return SamplerSettings(**values)


def _is_ours(path: Path) -> bool:
    return path.suffix == ".safetensors" and "mind_config" in read_metadata(path)


def _recommended(path: Path, metadata: Mapping[str, str]) -> dict[str, Any]:
    try:
        settings = json.loads(metadata.get(SAMPLER_ENTRY, "{}"))
    except json.JSONDecodeError as error:
        raise UserError(f"{path}: {SAMPLER_ENTRY} in the header is not JSON ({error}): get the file again") from error
    if not isinstance(settings, dict):
        raise UserError(f"{path}: {SAMPLER_ENTRY} in the header must be a JSON object: get the file again")
    return settings


def _usual_precision(model: Mind, path: Path) -> Precision:
    """Return the authors' own precision for weights that were stored in it, else float32."""
    return "released_bf16" if model.config.rope_dtype == "bfloat16" and not _is_ours(path) else "float32"


def chosen_tokenizer(choice: TokenizerChoice, record: TokenizerRecord | None, path: Path) -> Tokenizer:
    """Return what a user chose, or what made the latents the weights were trained on.

    Raises:
        UserError: neither says, it is missing, or its weights are not those that the weight file records.
    """
    name = choice.name or (record.name if record else None)
    if name is None:
        raise UserError(
            f"{path} does not say which tokenizer decodes its tokens: give --tokenizer (and --tokenizer-weights)"
        )
    own = record is not None and record.name == name and choice == TokenizerChoice(choice.name)
    if not own:
        return load_tokenizer(name, weights=choice.weights, release=choice.release)
    assert record is not None
    try:
        tokenizer = load_tokenizer(name, release=record.release)
    except UserError as error:
        raise UserError(f"{path} needs the tokenizer '{name}': {error} (here --tokenizer-weights)") from error
    if record.weights_sha256 not in (None, weights_digest(tokenizer)):
        raise UserError(
            f"{path} was trained on tokens of other weights of '{name}' than those of release '{record.release}' here: give "
            "the right ones with --tokenizer-weights"
        )
    return tokenizer
