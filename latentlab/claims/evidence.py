"""What lies in a folder of studies, read when a claim asks for it; what is not there is named with the command that makes it."""

from functools import cached_property
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel

from latentlab.claims.result_files import Collapse, Comparison, Evaluated, Grid, Trajectories
from latentlab.claims.study_cells import StudyCells
from latentlab.files import file_sha256, read_json_as
from latentlab.study.analysis.plan import AnalysisPlan, stated_section
from latentlab.study.cells.cell import GRAPH_FILE
from latentlab.study.table import FILE, StudyTable

M = TypeVar("M", bound=BaseModel)

LEAST_SEEDS = 3
"""Repetitions with other seeds from which on they may decide: two have an interval of 12.7 standard errors either way."""

_RAN, _TO_RUN = "plan.yaml", "fashion.yaml"
"""The study file as it was run, and the one to run."""

_NEW_RUN = Path("runs/study-fashion")
"""Where a study is run whose results are kept without its cells: in their folder a run would begin anew."""


class Missing(Exception):
    """Results that a claim needs are not there.

    Attributes:
        what: is missing.
        command: would make it.
    """

    def __init__(self, what: str, command: str) -> None:
        """Say what is missing and what would make it."""
        super().__init__(what)
        self.what, self.command = what, command


class Evidence:
    """A folder of studies."""

    def __init__(self, folder: Path) -> None:
        """Look at ``folder``; nothing is read yet."""
        self.folder = folder

    @property
    def is_empty(self) -> bool:
        """Whether there is no results file anywhere in the folder."""
        return not any(next(self.folder.rglob(name), None) for name in (FILE, "results.json"))

    def _read(self, model: type[M], path: str, command: str) -> M:
        """Return a results file below the folder.

        Raises:
            Missing: it is not there.
            UserError: it is damaged.
        """
        file = self.folder / path
        if not file.is_file():
            raise Missing(f"{path} is not there", command)
        return read_json_as(model, file)

    @cached_property
    def cells(self) -> StudyCells:
        """The study of tokenizers, in ``diffusability``, or the folder itself where it holds the table of one.

        Raises:
            Missing: it has not been run.
            UserError: its table is damaged.
        """
        folder = self._study_folder
        if not (folder / FILE).is_file():
            raise Missing(f"diffusability/{FILE} is not there", self.study_command)
        plan = AnalysisPlan(**stated_section(folder))
        return StudyCells.of(StudyTable.read(folder), self.study_command, plan)

    @property
    def table_sha256(self) -> str | None:
        """Hash of the table of the study of tokenizers; None where it is not there."""
        file = self._study_folder / FILE
        return file_sha256(file) if file.is_file() else None

    @property
    def study_command(self) -> str:
        """Makes the study of tokenizers: goes on with its run, or where only results are kept runs it in another folder."""
        folder = self._study_folder
        ran, wanted = folder / _RAN, folder / _TO_RUN
        if (folder / GRAPH_FILE).is_file():
            return f"latentlab study run {ran} --out {folder}"
        file = ran if ran.is_file() and not wanted.is_file() else wanted
        return f"latentlab study run {file} --out {_NEW_RUN}"

    @property
    def _study_folder(self) -> Path:
        return self.folder if (self.folder / FILE).is_file() else self.folder / "diffusability"

    def grid(self, name: str) -> Grid:
        """Return an ablation of MIND.

        Raises:
            Missing, UserError: it has not been run, or is damaged.
        """
        path = f"mind_ablations/{name}"
        command = f"latentlab ablate {name} --seeds {LEAST_SEEDS} --out {self.folder / path}"
        return self._read(Grid, f"{path}/results.json", command)

    def own_grid(self, name: str) -> Grid:
        """Return an ablation whose grid lies beside its results, as ``grid.yaml``.

        Raises:
            Missing, UserError: it has not been run, or is damaged.
        """
        place = self.folder / name
        command = f"latentlab ablate {place / 'grid.yaml'} --seeds {LEAST_SEEDS} --out {place}"
        return self._read(Grid, f"{name}/results.json", command)

    def comparison(self, name: str, config: str = "") -> Comparison:
        """Return a comparison of generators; ``config`` is its file where it is not the shipped one.

        Raises:
            Missing, UserError: it has not been run, or is damaged.
        """
        place = self.folder / name
        chosen = f" --config {place / config}" if config else ""
        command = f"latentlab study generators{chosen} --seeds {LEAST_SEEDS} --out {place}"
        return self._read(Comparison, f"{name}/results.json", command)

    def collapse(self, images: int) -> Collapse:
        """Return the bottleneck-collapse study; ``images`` are as many as it should have.

        Raises:
            Missing, UserError: it has not been run, or is damaged.
        """
        place = self.folder / "collapse"
        command = f"latentlab collapse --images {images} --seeds {LEAST_SEEDS} --controls --out {place}"
        return self._read(Collapse, "collapse/results.json", command)

    def collapses_elsewhere(self) -> dict[str, Collapse]:
        """Return bottleneck-collapse studies of other tokenizers and images by their folder below ``collapse``.

        Raises:
            UserError: one is damaged.
        """
        files = sorted((self.folder / "collapse").glob("*/results.json"))
        return {file.parent.name: read_json_as(Collapse, file) for file in files}

    def trajectories(self) -> dict[str, Trajectories]:
        """Return measured sampling paths by their folder below ``trajectories``.

        Raises:
            UserError: one is damaged.
        """
        files = sorted((self.folder / "trajectories").glob("*/results.json"))
        return {file.parent.name: read_json_as(Trajectories, file) for file in files}

    def evaluations(self, pattern: str) -> dict[str, Evaluated]:
        """Return evaluations of images by their folder below ``distillation``; ``pattern`` chooses.

        Raises:
            UserError: one is damaged.
        """
        files = sorted((self.folder / "distillation").glob(f"{pattern}/results.json"))
        return {file.parent.name: read_json_as(Evaluated, file) for file in files}
