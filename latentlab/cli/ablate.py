"""``latentlab ablate``: one ablation of MIND, our numbers beside the published ones."""

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from latentlab.cli.options import AsJson, Device, at_least, check_folder
from latentlab.cli.study_results import report_study

_RUNS = Path("runs")


def ablate(
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME|FILE",
            help="A shipped grid (hypersphere, components, residual, embedding-noise, guidance-space, schedules, sampling, "
            "stages, eta, released-vs-paper), or a YAML file.",
        ),
    ],
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="Run directory (default: runs/ablate-NAME).")
    ] = None,
    runs: Annotated[
        Path | None,
        typer.Option(
            "--runs",
            metavar="DIR",
            help="Trained runs, samples and scores; grids with the same folder share them (default: below --out).",
        ),
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Change what all rows share (samples=500, sample.steps=25, train.optimiser.steps=100); may be repeated.",
        ),
    ] = None,
    seeds: Annotated[int, typer.Option("--seeds", metavar="S", help="Repetitions of every row.")] = 1,
    jobs: Annotated[int, typer.Option("--jobs", metavar="J", help="Trainings, then rows, side by side.")] = 2,
    device: Device = "auto",
    json: AsJson = False,
) -> None:
    """Run an ablation grid of MIND on the embedded data: train, sample and measure every row.

    Writes results.json, table.md, table.csv and figures. Finished rows are kept: the same command continues an interrupted
    grid, and a row that is added computes only itself.
    """
    for option, value in (("--seeds", seeds), ("--jobs", jobs)):
        at_least(option, value, 1)
    for option, folder in (("--out", out), ("--runs", runs)):
        check_folder(option, folder)

    from latentlab.encoding import slug
    from latentlab.runtime import choose_device, prepare_threads
    from latentlab.study.training.ablation import plan_ablation, run_ablation
    from latentlab.study.training.ablation_report import failures, print_ablation
    from mind.ablation import load_grid

    grid = load_grid(name, overrides or [])
    where = choose_device(device)
    prepare_threads()
    place = out or _RUNS / f"ablate-{slug(Path(name).stem)}"
    plan = plan_ablation(grid, place, runs=runs, seeds=seeds, jobs=jobs, device=str(where))
    results = run_ablation(plan, place, command=shlex.join(["latentlab", *sys.argv[1:]]))
    report_study(results, place, "table.csv", json, print_ablation, failures)
