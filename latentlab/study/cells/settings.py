"""What a study file names, resolved: configurations of trainings and content of images, as settings of cells.

What cannot be done is refused here, before hours of work.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from latentlab.data import open_data
from latentlab.errors import UserError, unknown_name
from latentlab.files import file_sha256
from latentlab.quality.names import plain_name
from latentlab.registry import checked_parameters
from latentlab.study.cells.networks import networks_of_training
from latentlab.study.collect_columns import LATENTS, PATHS, RECONSTRUCTION, SAMPLES, SCORES
from latentlab.study.plan_file import GeneratorEntry, StudyFile, TokenizerEntry
from latentlab.tokenizers.config import load_config as load_tokenizer_config
from latentlab.tokenizers.controls import CONTROLS
from latentlab.tokenizers.families import FAMILIES
from mind.ablation import as_overrides
from mind.kinds import check_settings, read_run

_STAND_IN: dict[str, Any] = {
    "tokenizer": "of the study", "release": None, "weights": None, "train": None, "validation": None, "limit": None,
    "image_size": None, "store": "latents", "validation_store": "held_out",
}  # fmt: skip
"""Data of a generator's configuration until its cell knows where they lie."""

_QUIET = {"preview.grid_every": 0, "preview.score_every": 0}
"""Pictures while training cost time and nobody watches; a study file may ask for them."""


def check_names(study: StudyFile) -> None:
    """Raise `UserError` for names and settings that do not exist."""
    for name, parameters in study.measure.items():
        checked_parameters(name, parameters)
    for one in study.tokenizers:
        if one.control is not None and one.control not in CONTROLS:
            raise unknown_name(f"control of tokenizer '{one.label}'", one.control, CONTROLS)
    for generator in study.generators:
        for scale in generator.guidance:
            try:
                check_settings(generator.kind, {**generator.sample, "cfg_scale": scale})
            except UserError as error:
                raise UserError(f"generator '{generator.label}': {error}") from error
    _check_columns(study)


def _check_columns(study: StudyFile) -> None:
    """Raise `UserError` for a column that the analysis asks for and this study will not have."""
    plan, judges = study.analysis, [plain_name(judge.extractor) for judge in study.judges]
    known = {
        *(f"m_{name}" for name in study.measure),
        *(f"{name}_{judge}" for name in (*RECONSTRUCTION, *SAMPLES) for judge in judges),
        *SCORES,
        *LATENTS,
        "held_out_loss",
        *(PATHS if study.trajectories is not None else ()),
    }
    for name in (*plan.targets, *plan.predictors, *plan.covariates, *(one for model in plan.models for one in model)):
        companion = name.startswith("m_") and name.partition(".")[0] in known
        decoder = name.startswith("decoder_") and study.decoder_noise
        if not (name in known or companion or decoder):
            raise unknown_name("column of the analysis", name, known)


def tokenizer_training(
    entry: TokenizerEntry, seed: int, shared: Sequence[str] = ()
) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the settings of a tokenizer's training, with content in place of what its configuration names, and the names.

    Args:
        entry: of the tokenizer.
        seed: of its training.
        shared: changes to every training of the study.

    Raises:
        UserError: no such configuration, a setting that does not exist or cannot be, or a network whose weights are not here.
    """
    try:
        config = load_tokenizer_config(str(entry.train), [*shared, *entry.set, f"seed={seed}"])
        FAMILIES[config.family].check(config.architecture)
        networks = networks_of_training(config)
    except UserError as error:
        raise UserError(f"tokenizer '{entry.label}': {error}") from error
    told, data = config.model_dump(mode="json"), config.data
    told["data"]["train"] = content_of(data.train, data.image_size, data.limit)
    told["data"]["validation"] = content_of(data.validation, data.image_size)
    places = {"train": data.train, "validation": data.validation}
    if config.start_from is not None:
        told["start_from"] = file_sha256(config.start_from)
        places["start_from"] = str(config.start_from.resolve())
    return {"config": told, **({"networks": networks} if networks else {})}, places


def generator_training(generator: GeneratorEntry, seed: int, changes: Sequence[str] = ()) -> dict[str, Any]:
    """Return the resolved training configuration of a generator with the ``changes`` of a tokenizer; its data are a stand-in.

    Raises:
        UserError: no such configuration, or a setting that does not exist or cannot be.
    """
    data = {f"data.{key}": value for key, value in _STAND_IN.items()}
    overrides = [*as_overrides(_QUIET), *generator.set, *changes, *as_overrides({**data, "seed": seed})]
    try:
        config = read_run(generator.kind, generator.base, overrides)
        if not config.validate_every:  # the loss on held-out latents is a column of the table
            overrides.append(f"validate_every={config.optimiser.steps}")
        return read_run(generator.kind, generator.base, overrides).model_dump(mode="json")
    except UserError as error:
        raise UserError(f"generator '{generator.label}': {error}") from error


@dataclass(frozen=True)
class Images:
    """Images of a study.

    Attributes:
        source: where they are.
        told: what names their content in settings.
    """

    source: str
    told: dict[str, Any]


def images_of(source: str, limit: int | None) -> Images:
    """Open images, to know their content.

    Raises:
        UserError: there are none, or they cannot be read.
    """
    return Images(source, {"content": content_of(source, None, limit), "limit": limit})


@cache
def content_of(source: str, image_size: int | None = None, limit: int | None = None) -> str:
    """Return what names the content of a data source, listed once for all tokenizers of a graph.

    Raises:
        UserError: it cannot be read.
    """
    return open_data(source, image_size=image_size, limit=limit).fingerprint
