"""Write every key of every YAML file and every sampler setting into docs/settings.md: ``make cards``."""

import ast
import inspect
import json
import re
import sys
import types
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt, MaxLen, MinLen
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from latentlab.study.analysis import plan as analysis
from latentlab.study.plan_file import GeneratorEntry, JudgeEntry, Resources, StudyFile, TokenizerEntry, TrajectoryPlan
from latentlab.tokenizers import config as tokenizers
from latentlab.tokenizers.architecture import Architecture
from latentlab.tokenizers.maetok_training_architecture import MAETokTraining
from latentlab.tokenizers.objectives import settings as objectives
from latentlab.tokenizers.transformer_autoencoder_architecture import TransformerArchitecture
from mind import ablation, comparison, run_config, train_config
from mind.baselines import run_configs
from mind.baselines.ddpm_objective import DdpmLoss
from mind.baselines.ddpm_sampler import DdpmSamplerSettings
from mind.baselines.flow import FlowLoss
from mind.baselines.flow_sampler import FlowSamplerSettings
from mind.baselines.guidance import GuidanceSettings
from mind.baselines.latent_shape import LatentShape
from mind.baselines.masked_config import MaskedConfig
from mind.baselines.masked_settings import MaskedSamplerSettings
from mind.baselines.transformer_config import TransformerConfig
from mind.config import MindConfig
from mind.settings import SamplerSettings

FILE = Path(__file__).parent / "settings.md"

Model = type[BaseModel]


class Chapter(NamedTuple):
    """One kind of file.

    Attributes:
        title: of the chapter.
        about: which command reads it, and where shipped ones are.
        tables: heading -> the table of settings it is about.
    """

    title: str
    about: str
    tables: Mapping[str, Model]


CHAPTERS = (
    Chapter(
        "Training a tokenizer",
        "`latentlab train tokenizer --config FILE --set optimiser.steps=500` ([training.md](training.md)); shipped ones: "
        "`latentlab/configs/tokenizers/`.",
        {
            "the file": tokenizers.TrainConfig,
            "data": tokenizers.DataConfig,
            "loss": tokenizers.LossConfig,
            "optimiser": tokenizers.OptimiserConfig,
            "objectives": objectives.Objectives,
            "objectives.noise": objectives.NoiseSettings,
            "objectives.masking": objectives.MaskingSettings,
            "objectives.alignment": objectives.AlignmentSettings,
            "objectives.equivariance": objectives.EquivarianceSettings,
            "objectives.local_correlation": objectives.LocalCorrelationSettings,
            "objectives.low_pass": objectives.LowPassSettings,
            "objectives.adversarial": objectives.AdversarialSettings,
            "architecture of the family ldm": Architecture,
            "architecture of the family transformer": TransformerArchitecture,
            "architecture of the family maetok": MAETokTraining,
        },
    ),
    Chapter(
        "Training a generator",
        "`latentlab train KIND --config FILE --set optimiser.steps=500` ([generators.md](generators.md)); shipped ones: "
        "`mind/configs/`, `mind/configs/baselines/`. The keys of all kinds come first, then what a kind adds.",
        {
            "the file": run_config.RunConfig,
            "data": run_config.DataConfig,
            "optimiser": run_config.OptimiserConfig,
            "preview": run_config.PreviewConfig,
            "the file, for MIND": train_config.TrainConfig,
            "loss, of MIND": train_config.LossConfig,
            "times, of MIND": train_config.TimeConfig,
            "model, of MIND": MindConfig,
            "the file, for SiT, LightningDiT and DiT": run_configs.LatentRun,
            "the file, for SiT and LightningDiT": run_configs.FlowRun,
            "flow, of SiT and LightningDiT": FlowLoss,
            "the file, for DiT": run_configs.DdpmRun,
            "loss, of DiT": DdpmLoss,
            "the file, for eMIGM": run_configs.MaskedRun,
            "model, of all but MIND": LatentShape,
            "model, of SiT, LightningDiT and DiT": TransformerConfig,
            "model, of eMIGM": MaskedConfig,
        },
    ),
    Chapter(
        "Sampling",
        "`latentlab sample KIND --set cfg_scale=1.5 --set steps=50`, `preview.sampler` of a training, `sample` of a study's "
        "generators. What the weight file recommends comes before the defaults here.",
        {
            "MIND": SamplerSettings,
            "SiT, LightningDiT and DiT": GuidanceSettings,
            "SiT and LightningDiT": FlowSamplerSettings,
            "DiT": DdpmSamplerSettings,
            "eMIGM": MaskedSamplerSettings,
        },
    ),
    Chapter(
        "A study",
        "`latentlab study run FILE` ([studies.md](studies.md)).",
        {
            "the study": StudyFile,
            "an entry of tokenizers": TokenizerEntry,
            "an entry of generators": GeneratorEntry,
            "an entry of judges": JudgeEntry,
            "trajectories": TrajectoryPlan,
            "an entry of resources": Resources,
            "analysis": analysis.AnalysisPlan,
            "an entry of analysis.dependent": analysis.Dependence,
        },
    ),
    Chapter(
        "An ablation grid of MIND",
        "`latentlab ablate FILE`; shipped ones: `mind/configs/ablations/`.",
        {"the grid": ablation.Grid, "published": ablation.Published, "an entry of rows": ablation.Row},
    ),
    Chapter(
        "A comparison of generators",
        "`latentlab study generators --config FILE`; shipped ones: `mind/configs/comparisons/`.",
        {"the comparison": comparison.Comparison, "an entry of generators": comparison.Generator},
    ),
)

_HEAD = """# Settings

Every key of every YAML file, and every setting of the samplers. Made from the code by `make cards`. An unknown key is refused,
with the nearest known ones.
"""


def page() -> str:
    """Return the whole page."""
    return _HEAD + "".join(_chapter(chapter) for chapter in CHAPTERS)


def _chapter(chapter: Chapter) -> str:
    tables = "".join(_table(heading, model, chapter.tables.values()) for heading, model in chapter.tables.items())
    return f"\n## {chapter.title}\n\n{chapter.about}\n{tables}"


def _table(heading: str, model: Model, shown: Iterable[Model]) -> str:
    rows = [
        f"| `{name}` | {_kind(model.model_fields[name])} | {_default(model.model_fields[name])} | {meaning} |"
        for name, meaning in meanings(model, shown).items()
    ]
    lines = [
        f"### {heading}",
        "",
        _cell(_about(model)),
        "",
        "| key | takes | default | what |",
        "|---|---|---|---|",
        *rows,
    ]
    return "\n" + "\n".join(lines) + "\n"


def meanings(model: Model, shown: Iterable[Model] = ()) -> dict[str, str]:
    """Return what each key of a model means, but for those it has from another one that is ``shown``.

    Raises:
        ValueError: the code does not say it of one.
    """
    told = _of_tables(model)
    models = [base for base in model.__mro__ if issubclass(base, BaseModel) and base is not BaseModel]
    for base in reversed(models):  # the nearest one has the last word
        told |= {**_listed(base), **_written_below(base)}
    elsewhere = {name for base in shown if base in model.__mro__[1:] for name in base.model_fields}
    own = [name for name in model.model_fields if name in inspect.get_annotations(model) or name not in elsewhere]
    silent = [name for name in own if not told.get(name)]
    if silent:
        raise ValueError(f"{model.__module__}.{model.__name__} does not say what {', '.join(silent)} means")
    return {name: _cell(told[name]) for name in own}


def _of_tables(model: Model) -> dict[str, str]:
    """Return name -> the first paragraph about the table that it takes."""
    tables = {
        name: [one for one in (field.annotation, *get_args(field.annotation)) if inspect.isclass(one)]
        for name, field in model.model_fields.items()
    }
    return {name: _about(one) for name, found in tables.items() for one in found if issubclass(one, BaseModel)}


def _about(model: Model) -> str:
    return inspect.cleandoc(model.__doc__ or "").partition("\n\n")[0]


def _written_below(model: Model) -> dict[str, str]:
    """Return name -> the string that follows its line in the class."""
    (found,) = [
        node for node in _tree(model.__module__).body if isinstance(node, ast.ClassDef) and node.name == model.__name__
    ]
    pairs = zip(found.body, found.body[1:], strict=False)
    return {
        line.target.id: inspect.cleandoc(below.value.value)
        for line, below in pairs
        if isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name)
        if isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant) and isinstance(below.value.value, str)
    }


def _listed(model: Model) -> dict[str, str]:
    """Return name -> its entry under ``Attributes:`` of the class."""
    _, _, text = inspect.cleandoc(model.__doc__ or "").partition("Attributes:\n")
    found: dict[str, str] = {}
    for line in text.splitlines():
        name, colon, meaning = line.strip().partition(": ")
        if line.startswith("    ") and not line.startswith("     ") and colon:
            found[(last := name)] = meaning[:1].upper() + meaning[1:]
        elif line.strip():
            found[last] += f" {line.strip()}"
    return found


@cache
def _tree(module: str) -> ast.Module:
    return ast.parse(inspect.getsource(sys.modules[module]))


def _kind(field: FieldInfo) -> str:
    """Return in words what a field takes."""
    return _cell(_words(field.annotation) + _bounds(field.metadata))


def _words(hint: Any) -> str:
    origin, inside = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return _words(inside[0]) + _bounds(inside[1:])
    if origin in (Union, types.UnionType):
        return " or ".join(_words(one) for one in inside if one is not type(None)) + " or null" * (type(None) in inside)
    if origin is Literal:
        return ", ".join(f"`{one}`" for one in inside)
    if origin is tuple and inside[-1] is Ellipsis:
        return f"list of {_words(inside[0])}"
    if origin is tuple:
        return f"{len(inside)} of {_words(inside[0])}"
    if origin is dict or (inspect.isclass(hint) and issubclass(hint, BaseModel)):
        return "table"
    return {int: "integer", float: "number", str: "text", bool: "true or false", Path: "path"}[hint]


def _bounds(constraints: Any) -> str:
    said = {Gt: ("gt", ">"), Ge: ("ge", ">="), Lt: ("lt", "<"), Le: ("le", "<=")}
    found = [
        f"{sign} {getattr(one, name):g}"
        for one in constraints
        for kind, (name, sign) in said.items()
        if isinstance(one, kind)
    ]
    lengths = [f"at least {one.min_length}" for one in constraints if isinstance(one, MinLen) and one.min_length > 1]
    lengths += [f"at most {one.max_length} long" for one in constraints if isinstance(one, MaxLen)]
    return f" {', '.join([*found, *lengths])}" if found or lengths else ""


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "needed"
    if field.default_factory is not None:
        return "`{}`"
    if isinstance(field.default, BaseModel):
        return "its defaults"
    return f"`{json.dumps(field.default, default=BaseModel.model_dump)}`"


def _cell(text: str) -> str:
    """Return a docstring as a cell of a Markdown table."""
    return re.sub(r"\bNone\b", "null", " ".join(text.split()).replace("``", "`").replace("|", "\\|"))


if __name__ == "__main__":
    FILE.write_text(page())
