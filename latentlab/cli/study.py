"""``latentlab study``: many trainings and samplings as one command, and what they say together."""

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from latentlab.cli import study_predictor, study_run
from latentlab.cli.options import AsJson, Device, at_least, check_folder
from latentlab.cli.study_results import report_study

app = typer.Typer(
    help="Run a study: train, sample and measure many models.", no_args_is_help=True, rich_markup_mode=None
)

_RUNS = Path("runs")


@app.callback()
def _commands() -> None:
    """Run a study: train, sample and measure many models."""


@app.command()
def generators(
    config: Annotated[
        str,
        typer.Option("--config", metavar="FILE", help="YAML file, or the name of a shipped one (generators, smoke)."),
    ] = "generators",
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="Run directory (default: runs/study-NAME).")
    ] = None,
    runs: Annotated[
        Path | None,
        typer.Option(
            "--runs",
            metavar="DIR",
            help="Trained runs, samples and scores, which studies may share (default: below --out).",
        ),
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Change what all generators share (steps=500, samples=500, train.optimiser.batch_size=16); may be repeated.",
        ),
    ] = None,
    seeds: Annotated[int, typer.Option("--seeds", metavar="S", help="Trainings of every generator.")] = 1,
    jobs: Annotated[int, typer.Option("--jobs", metavar="J", help="Processes side by side.")] = 2,
    device: Device = "auto",
    json: AsJson = False,
) -> None:
    """Compare generators that were trained with equal compute: MIND, SiT, LightningDiT, DiT and eMIGM.

    Gives learning curves over steps, operations and time, a guidance sweep and what an image costs, as results.json, table.md,
    points.csv and figures. What is finished is kept: the same command continues an interrupted study, and a generator, seed or
    scale that is added computes only itself.
    """
    for option, value in (("--seeds", seeds), ("--jobs", jobs)):
        at_least(option, value, 1)
    for option, folder in (("--out", out), ("--runs", runs)):
        check_folder(option, folder)

    from latentlab.encoding import slug
    from latentlab.runtime import choose_device, prepare_threads
    from latentlab.study.training.generators import plan_comparison, run_comparison
    from latentlab.study.training.generators_report import failures, print_comparison
    from mind.comparison import load_comparison

    comparison = load_comparison(config, overrides or [])
    where = choose_device(device)
    prepare_threads()
    place = out or _RUNS / f"study-{slug(Path(config).stem)}"
    plan = plan_comparison(comparison, place, runs=runs, seeds=seeds, jobs=jobs, device=str(where))
    results = run_comparison(plan, place, command=shlex.join(["latentlab", *sys.argv[1:]]))
    report_study(results, place, "points.csv", json, print_comparison, failures)


app.command()(study_run.run)
app.command()(study_run.status)
app.command()(study_run.table)
app.command()(study_run.archive)
app.command()(study_run.plot)
app.command()(study_predictor.predictor)
