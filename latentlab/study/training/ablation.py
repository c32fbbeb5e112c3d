"""An ablation grid: train what is missing, sample every row, measure it, and set the numbers beside the published ones.

Everything is kept by what determines it: trained runs by their resolved configuration, samples and distances by weights,
sampler settings, seed and judge. A killed command continues, a new row computes only itself, and rows that are the same thing
share the work: of one grid, or of all grids that are given the same folder for it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from latentlab import __version__
from latentlab.data import open_data
from latentlab.data.base import ImageSet
from latentlab.errors import UserError
from latentlab.files import write_json
from latentlab.results import environment
from latentlab.runtime import make_writable
from latentlab.study.training.ablation_report import ABLATION_SCHEMA_VERSION, figure_rows, summarise_rows, write_tables
from latentlab.study.training.runs import Training, final_losses, norm_history, train_all
from latentlab.study.training.scoring import Judge, Point, measure_points
from mind.ablation import Grid, Row, as_overrides
from mind.learned_geometry import table_statistics
from mind.released import load_mind
from mind.train_config import load_config
from mind.weight_files import find_weights


@dataclass(frozen=True)
class Cell:
    """One row with one seed.

    Attributes:
        row: of the grid.
        seed: of training and sampling.
        training: the run its weights come from; None when the grid names weights.
    """

    row: Row
    seed: int
    training: Training | None


@dataclass(frozen=True)
class Plan:
    """A grid with everything checked that can be checked before anything is trained.

    Attributes:
        grid: what to do.
        cells: rows x seeds.
        runs: folder of the trained runs.
        kept: folder of what is drawn and judged.
        jobs: trainings, then rows, side by side.
        device: where everything is computed.
    """

    grid: Grid
    cells: tuple[Cell, ...]
    runs: Path
    kept: Path
    jobs: int
    device: str

    @cached_property
    def trainings(self) -> list[Training]:
        """Distinct trained runs."""
        return list({cell.training.name: cell.training for cell in self.cells if cell.training}.values())

    @cached_property
    def reference(self) -> ImageSet:
        """Real images."""
        return open_data(self.grid.reference, limit=self.grid.reference_limit)

    @property
    def judge(self) -> Judge:
        """How images are judged."""
        return Judge(self.grid.reference, self.grid.reference_limit, self.grid.extractor)

    def point(self, cell: Cell) -> Point:
        """Return what a cell samples: with all settings, so that what the weights recommend does not mix in."""
        settings = self.grid.settings(cell.row).model_dump()
        return Point("mind", self.weights(cell), settings, self.grid.samples, cell.seed)

    def weights(self, cell: Cell) -> Path:
        """Return the weights that a cell samples from."""
        if cell.training is not None:
            return cell.training.weights(self.runs)
        assert self.grid.weights is not None
        return find_weights(self.grid.weights)


def plan_ablation(
    grid: Grid, out: Path, *, runs: Path | None = None, seeds: int = 1, jobs: int = 2, device: str = "cpu"
) -> Plan:
    """Resolve every row.

    Args:
        grid: from `load_grid`.
        out: run directory.
        runs: folder of trained runs, samples and what they score, which several grids may share (default: below ``out``).
        seeds: repetitions of every row, numbered from 0.
        jobs: trainings, then rows, side by side.
        device: where everything is computed.

    Raises:
        UserError: a row that cannot be trained, weights, reference images or an extractor that are not there, or
            counts below 1.
    """
    for name, value in (("seeds", seeds), ("jobs", jobs)):
        if value < 1:
            raise UserError(f"{name} must be at least 1, got {value}")
    cells = [
        Cell(row, seed, None if grid.base is None else plan_training(grid, row, seed))
        for row in grid.rows
        for seed in range(seeds)
    ]
    plan = Plan(grid, tuple(cells), runs or out / "runs", runs or out, jobs, device)
    if grid.weights is not None:
        find_weights(grid.weights)
    plan.judge.check()
    return plan


def plan_training(grid: Grid, row: Row, seed: int) -> Training:
    """Return what a row trains.

    Raises:
        UserError: no such configuration, or a setting in the row that does not exist or cannot be.
    """
    assert grid.base is not None
    overrides = as_overrides(grid.training(row, seed))
    config = load_config(grid.base, overrides)
    if row.times_steps != 1:
        steps = max(1, round(config.optimiser.steps * row.times_steps))
        overrides.append(f"optimiser.steps={steps}")
        config = load_config(grid.base, overrides)
    _ = config.mind  # checks the model's fields
    return Training("mind", tuple(overrides), config)


def run_ablation(plan: Plan, out: Path, *, command: str | None = None) -> dict[str, Any]:
    """Do what is missing, then write ``results.json``, ``table.csv``, ``table.md`` and the figures; return the results.

    A row that fails is named with its reason, and costs no other row.

    Args:
        plan: from `plan_ablation`.
        out: run directory.
        command: the command line, for the record.

    Raises:
        UserError: ``out``, or the folder that the work is kept in, cannot be written.
    """
    for folder in (out, plan.kept):
        make_writable(folder)
    failed = train_all(plan.trainings, plan.runs, plan.jobs, plan.device)
    cells = _all_cells(plan, out, failed)
    grid = plan.grid
    results: dict[str, Any] = {
        "schema_version": ABLATION_SCHEMA_VERSION,
        "latentlab": __version__,
        "command": command,
        "environment": environment(),
        "device": plan.device,
        "title": grid.title,
        "published": None if grid.published is None else grid.published.model_dump(),
        "base": grid.base,
        "weights": grid.weights,
        "samples": grid.samples,
        "reference": {"name": plan.reference.name, "fingerprint": plan.reference.fingerprint, "n": plan.reference.n},
        "extractor": grid.extractor,
        "seeds": len(plan.cells) // len(grid.rows),
        "rows": summarise_rows(grid.rows, cells),
    }
    results["figures"] = _draw(results, plan, out)
    write_json(out / "results.json", results)
    write_tables(results, out)
    return results


def _all_cells(plan: Plan, out: Path, failed: Mapping[str, str]) -> list[dict[str, Any]]:
    """Return what every cell gave, in order; one that fails says why."""
    trained = [cell for cell in plan.cells if cell.training is None or cell.training.name not in failed]
    points = [plan.point(cell) for cell in trained]
    outcomes = iter(measure_points(points, plan.judge, plan.kept, out, plan.jobs, plan.device))
    geometry = cache(lambda weights: table_statistics(load_mind(weights).table))
    records = []
    for cell in plan.cells:
        if cell.training is not None and cell.training.name in failed:
            reason = f"training: {failed[cell.training.name]}"
            records.append(_failure(cell, reason, cell.training.log(plan.runs)))
        elif (outcome := next(outcomes)).error is not None:
            records.append(_failure(cell, outcome.error, None))
        else:
            records.append(_record(plan, cell, outcome.value, geometry))
    return records


def _failure(cell: Cell, reason: str, log: Path | None) -> dict[str, Any]:
    return {"label": cell.row.label, "seed": cell.seed, "error": reason, "log": None if log is None else str(log)}


def _record(plan: Plan, cell: Cell, found: Mapping[str, Any], geometry: Callable[[Path], Any]) -> dict[str, Any]:
    """Return the record of a cell: how its images compare with real ones, the geometry of the tokens, how it was trained."""
    weights = plan.weights(cell)
    scores = [{"name": name, **score, "n_reference": plan.reference.n} for name, score in found["quality"].items()]
    distance, precision, recall = scores  # in the order of the judge's metrics
    run = None if cell.training is None else {"run": str(weights.parent), "overrides": list(cell.training.overrides)}
    return {
        "label": cell.row.label,
        "seed": cell.seed,
        "error": None,
        "distance": distance,
        "precision": precision,
        "recall": recall,
        "geometry": geometry(weights),
        "sampling": found["sampling"],
        "losses": {} if cell.training is None else final_losses(weights.parent),
        "training": run,
        "samples": found["images"],
    }


def _draw(results: dict[str, Any], plan: Plan, out: Path) -> list[str]:
    """Draw the table, and the norms over training of every run, under its first row; return files relative to ``out``."""
    from figures import ablation_table, latent_norms
    from figures.style import save

    rows, ours, published = figure_rows(results)
    files = list(save(ablation_table.draw(rows, ours, published, title=results["title"]), out / "figures" / "table"))
    first_rows = {cell.training.name: cell for cell in reversed(plan.cells) if cell.training and cell.seed == 0}
    histories = {cell.row.label: norm_history(plan.weights(cell).parent) for cell in reversed(first_rows.values())}
    curves = {label: history for label, history in histories.items() if history["step"]}
    if curves:
        files += save(latent_norms.draw(curves), out / "figures" / "norms")
    return [file.relative_to(out).as_posix() for file in files]
