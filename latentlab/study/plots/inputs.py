"""What the figures of a study are drawn from: its table, and what else lies in its folder, each part read when asked for."""

import math
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, TypeAdapter, ValidationError

from latentlab.errors import UserError
from latentlab.files import first_problem, read_json
from latentlab.study.table import FILE, StudyTable, is_of_another_table

ANALYSIS_FILE, FLOORS_FILE = "analysis.json", "floors.json"

NOISE_COLUMN = re.compile(r"decoder_(image|perceptual|feature)_([0-9.]+(?:e-?[0-9]+)?)")
"""Columns of the decoder's change under noise: measure, size of the noise."""


class _Cell(BaseModel):
    target: str
    generator: str | None
    guidance: float | None
    n: int


class _Correlation(_Cell):
    predictor: str
    method: str
    value: float | None
    low: float | None = None
    high: float | None = None
    p: float | None = None
    p_adjusted: float | None = None
    covariates: list[str] = []
    within: str = ""


class _Pair(_Cell):
    first: str
    second: str
    r2: float | None
    r2_adjusted: float | None = None
    r2_cross_validated: float | None = None


class _PredictedRow(BaseModel):
    tokenizer: str
    observed: float
    predicted: float
    low: float | None = None
    high: float | None = None


class _Prediction(_Cell):
    predictors: list[str]
    scheme: str
    scale: Literal["log", "linear"] = "linear"
    r2: float | None = None
    rmse: float | None = None
    spearman: float | None = None
    rows: list[_PredictedRow]


class _End(BaseModel):
    generator: str | None
    guidance: float | None


class _Stability(BaseModel):
    target: str
    first: _End
    second: _End
    spearman: float | None


class _Noise(_Cell):
    scale: Literal["log", "linear"] = "linear"
    between_sd: float | None
    within_sd: float | None
    ceiling: float | None


class _Primary(BaseModel):
    target: str
    predictor: str
    covariates: list[str]
    settings: int
    n: int
    value: float
    low: float | None
    high: float | None
    p_adjusted: float | None = None
    agrees: bool | None


Section = Literal["primary", "correlations", "pairs", "prediction", "stability", "noise"]
_SECTIONS: dict[Section, type[BaseModel]] = {
    "primary": _Primary,
    "correlations": _Correlation, "pairs": _Pair, "prediction": _Prediction, "stability": _Stability, "noise": _Noise,
}  # fmt: skip
Records = list[dict[str, Any]]


class StudyFolder:
    """A results folder. ``details/TOKENIZER/MEASUREMENT.json`` and ``details/TOKENIZER/GENERATOR/straightness.json`` hold the
    details of measurements, ``details/TOKENIZER/umap.json`` points and labels, ``floors.json`` by judge the distance of as many
    real images; all of them may be absent.
    """  # fmt: skip

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.table = StudyTable.read(folder)
        self.tokenizers = list(self.table.rows["tokenizer"].unique())
        self.generators = [name for name in self.table.rows["generator"].unique() if name]
        self._read = cache(read_json)

    def measurements(self) -> list[str]:
        """Return the measurements without their companions."""
        return [name for name in self.table.names("measurement") if "." not in name]

    def targets(self) -> list[str]:
        """Return the distances of samples to images, a column per judge; without any the first column of quality.

        Raises:
            UserError: the table has no quality at all.
        """
        quality = self.table.names("quality")
        distances = [name for name in quality if name.startswith("gfd_") and not name.startswith("gfd_recons")]
        if not quality:
            raise UserError(f"the table in {self.folder} has no column of quality")
        return distances or [quality[0]]

    def scales(self, generator: str) -> list[float]:
        """Return the guidance scales of a generator; the first is that of its unguided samples, or the nearest to it."""
        rows = self.table.rows
        return sorted(rows.loc[rows["generator"] == generator, "guidance"].dropna().unique(), key=lambda s: abs(s - 1))

    def held(self, section: Section) -> Records:
        """Return the records of a section of ``analysis.json``.

        Raises:
            UserError: no such file or section, nothing in it, or it is damaged.
        """
        path = self.folder / ANALYSIS_FILE
        told = self._read(path)
        if not isinstance(told, dict) or not told.get(section):
            raise UserError(f"{path} has no {section}")
        if is_of_another_table(told, self.folder / FILE):
            raise UserError(f"{path} is of an earlier table: run `latentlab correlate {self.folder}`")
        if not isinstance(told[section], list):
            raise UserError(f"{path} is damaged: {section} must be a list")
        try:
            return [_SECTIONS[section].model_validate(one).model_dump() for one in told[section]]
        except ValidationError as error:
            raise UserError(f"{path} is damaged: {section}: {first_problem(error)}") from error

    def records(self, section: Section) -> Records:
        """Return `held`, or nothing where that cannot be had: for figures that can do without."""
        try:
            return self.held(section)
        except UserError:
            return []

    def details(self, name: str, generator: str | None = None) -> dict[str, Mapping[str, Any]]:
        """Return details by tokenizer, of those that have them.

        Raises:
            UserError: nobody has, or a file is damaged.
        """
        found = {}
        for tokenizer in self.tokenizers:
            path = self.folder / "details" / tokenizer / (generator or "") / f"{name}.json"
            if Path(tokenizer).name == tokenizer and path.is_file():
                found[tokenizer] = self._read(path)
                if not isinstance(found[tokenizer], dict):
                    raise UserError(f"{path} is damaged: it must be a table by name")
        if not found:
            where = f"{generator}/{name}" if generator else name
            raise UserError(f"{self.folder / 'details'} has no TOKENIZER/{where}.json")
        return found

    def floors(self, strict: bool = True) -> dict[str, float]:
        """Return the distance of real images by judge; nothing where it is not known.

        Raises:
            UserError: the file is damaged; unless ``strict``, that too gives nothing.
        """
        path = self.folder / FLOORS_FILE
        try:
            told = self._read(path) if path.is_file() else {}
            return TypeAdapter(dict[str, float]).validate_python(told)
        except (UserError, ValidationError) as error:
            if strict:
                raise UserError(f"{path} is damaged: it must give a number by judge") from error
            return {}

    def best_first(self, names: list[str], generator: str, most: int = 12) -> list[str]:
        """Return at most ``most`` of ``names``, evenly spread over the ranks of quality, the best first."""
        target = self.targets()[0]
        means = self.table.by_tokenizer(generator, self.scales(generator)[0]).set_index("tokenizer")[target]
        sign = -1 if self.table.column(target).better == "higher" else 1
        ranked = sorted(
            names, key=lambda name: sign * means.get(name, math.nan) if name in means.dropna() else math.inf
        )
        places = np.linspace(0, len(ranked) - 1, min(most, len(ranked))).round().astype(int)
        return [ranked[place] for place in places]


def how_many(shown: int, there: int) -> str:
    """Return ``12 of 24 tokenizers, best first``."""
    return f"{there} tokenizers, best first" if shown == there else f"{shown} of {there} tokenizers, best first"
