"""What is asked of the table of a study; stated before the table is there, so that it cannot follow from the answer."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import numpy as np
import pandas as pd
import yaml
from pydantic import model_validator

from analyses.correlation import METHODS, Method
from analyses.multiplicity import Multiplicity
from latentlab.configuration import Settings
from latentlab.errors import UserError, unknown_name
from latentlab.study.table import StudyTable

PLAN_FILE = "plan.yaml"
"""The study file as it was run, beside its results."""


class Dependence(Settings):
    """Tokenizers that were trained on the features that judge their samples."""

    what: ClassVar[str] = "dependent judge"

    judge: str
    """Part of the names of the targets that this judge gives."""
    clusters: tuple[str, ...]
    """Clusters that learned from it."""


class AnalysisPlan(Settings):
    """Which columns are related to which, and how."""

    what: ClassVar[str] = "plan of an analysis"

    targets: tuple[str, ...] = ()
    """What is explained; by default every column of quality. The first is the primary one."""
    predictors: tuple[str, ...] = ()
    """What explains; by default every measurement without its companions, and every column of sampling paths."""
    covariates: tuple[str, ...] = ()
    """Correlations are raw, given each of these, and given all of them."""
    logarithms: tuple[str, ...] = ()
    """Columns of which logarithms are analysed: positive ones whose noise grows with them, as that of distances does."""
    models: tuple[tuple[str, ...], ...] = ()
    """Sets of predictors whose predictions are wanted beside those of single ones and of the best pair."""
    held_out: tuple[str, ...] = ()
    """Tokenizers kept from fitting and then predicted, beside those that the table marks."""
    groups: tuple[str, ...] = ("cluster", "family")
    """Columns within whose groups correlations are taken too, held-out tokenizers among them: nothing is chosen by these. Every
    group is left out of predictions in turn, those of the first column of correlations as well."""
    mixed: bool = False
    """Whether slopes with a random intercept per group are fitted; takes a quarter of a second each."""
    methods: tuple[Method, ...] = METHODS
    """Kinds of correlation."""
    multiplicity: Multiplicity = "holm"
    """How p-values are adjusted for the number of predictors."""
    dependent: tuple[Dependence, ...] = (
        Dependence(judge="efficientnet", clusters=("repa", "mcos", "mdms", "mcos+mdms")),
    )
    seed: int = 0
    """Of resamplings and permutations."""

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        for name in ("targets", "predictors", "covariates", "logarithms", "methods", "groups"):
            _once(name, getattr(self, name))
        both = {*self.targets} & {*self.predictors, *self.covariates, *(n for model in self.models for n in model)}
        if both:
            raise ValueError(f"{min(both)} is a target and cannot explain itself")
        return self

    def learned_from(self, target: str) -> set[str]:
        """Return the clusters that were trained on the features that give a target."""
        return {cluster for one in self.dependent if one.judge in target for cluster in one.clusters}

    def covariates_of(self, target: str, table: StudyTable) -> tuple[str, ...]:
        """Return the covariates of a target: where they name what one judge says of reconstructions, its own judge says it.

        That is ``rfd_B`` instead of ``rfd_A`` for ``gfd_B``, where the table has it.
        """
        own = f"rfd_{target.removeprefix('gfd_')}"
        names = (own if name.startswith("rfd_") and own in table.names() else name for name in self.covariates)
        return tuple(dict.fromkeys(names))

    def scale_of(self, target: str) -> Literal["log", "linear"]:
        """Return what predictions and noise of a target are of."""
        return "log" if target in self.logarithms else "linear"

    def split_by(self, group: str) -> list[str]:
        """Return the columns within whose common groups a correlation within ``group`` is taken: it and those named after it.

        Within clusters of one architecture, say: what two architectures differ in is no effect of a cluster.
        """
        return list(self.groups[self.groups.index(group) :])

    def of_what_there_is(self, table: StudyTable) -> tuple["AnalysisPlan", list[str]]:
        """Return the plan without columns that no row of a study has, and their names.

        Predictors that its latents cannot have, and targets of judges that have not judged anything yet; if all of the targets
        are absent they stay.
        """
        there = {*table.names()}
        targets = tuple(name for name in self.targets if name in there) or self.targets
        predictors = tuple(name for name in self.predictors if name in there)
        logarithms = tuple(name for name in self.logarithms if name in there)
        absent = [name for name in (*self.targets, *self.predictors) if name not in (*targets, *predictors)]
        models = tuple(model for model in self.models if not {*model} & {*absent})
        kept = {"targets": targets, "predictors": predictors, "logarithms": logarithms, "models": models}
        return self.model_copy(update=kept), absent

    def for_table(self, table: StudyTable) -> "AnalysisPlan":
        """Return the plan with defaults filled in for a table.

        Raises:
            UserError: a column that is not there or holds other than numbers (``held_out``: truth values), an unknown held-out
                tokenizer, no target or predictor.
        """
        targets = self.targets or table.names("quality")
        explains = [name for name in table.names("measurement") if "." not in name] + [*table.names("trajectory")]
        predictors = self.predictors or tuple(n for n in explains if n not in (*targets, *self.covariates))
        for kind, names in (("target", targets), ("predictor", predictors)):
            if not names:
                raise UserError(f"there is no {kind} to correlate: name one that the table has")
        models = (name for model in self.models for name in model)
        for name in (*targets, *predictors, *self.covariates, *self.logarithms, *models):
            check_numbers(table, name)
        for label in self.held_out:
            if label not in set(table.rows["tokenizer"]):
                raise unknown_name("held-out tokenizer", label, map(str, table.rows["tokenizer"].unique()))
        if table.rows["held_out"].dtype != bool:
            raise UserError("column held_out must hold True or False in every row")
        if table.rows["guidance"].dtype.kind not in "iuf":
            raise UserError("column guidance must hold numbers")
        groups = tuple(name for name in self.groups if name in table.rows)
        values = {**self.model_dump(), "targets": targets, "predictors": predictors, "groups": groups}
        return AnalysisPlan(**values)


def stated_section(folder: Path) -> dict[str, Any]:
    """Return the analysis section of the study file that lies beside a study's results; empty where there is none.

    Raises:
        UserError: the file cannot be read.
    """
    file = folder / PLAN_FILE
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"{file} is not a readable YAML file: {' '.join(str(error).split())}") from error
    section = content.get("analysis") if isinstance(content, dict) else None
    return section if isinstance(section, dict) else {}


def check_numbers(table: StudyTable, name: str) -> None:
    """Raise `UserError` unless the table explains the column and all of its values are finite numbers or missing."""
    values = table.rows[table.column(name).name]
    if values.dtype.kind not in "iuf":
        raise UserError(f"column {name} must hold numbers, but one of its values is '{not_a_number(values)}'")
    if np.isinf(values).any():
        row = table.rows.loc[np.isinf(values), "tokenizer"].iloc[0]
        raise UserError(f"column {name} holds an infinite value (tokenizer {row}): leave it empty if it is unknown")


def not_a_number(values: pd.Series) -> object:
    """Return the first value that is neither missing nor a number; the first of all where each is."""
    wrong = values[values.notna() & pd.to_numeric(values, errors="coerce").isna()]
    return wrong.iloc[0] if len(wrong) else values.iloc[0]


def _once(what: str, names: Sequence[str]) -> None:
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ValueError(f"{what} names {twice} twice")
