"""``latentlab study run|status|table|plot|report``: a whole study from one file."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from latentlab.cli.options import AsJson, at_least, check_folder
from latentlab.errors import UserError

if TYPE_CHECKING:
    from latentlab.study.cells.cell import Graph
    from latentlab.study.engine.local import Engine
    from latentlab.study.engine.schedule import Schedule
    from latentlab.study.plan_file import StudyFile
    from latentlab.study.table import StudyTable

_RUNS = Path("runs")

Folder = Annotated[Path, typer.Argument(metavar="DIR", help="Folder of a study: see `latentlab study run`.")]


def run(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The study: a YAML file.")],
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="Its folder (default: runs/study-NAME).")
    ] = None,
    engine: Annotated[
        str, typer.Option("--engine", metavar="NAME", help="local (this machine) or ray (a cluster).")
    ] = "local",
    workers: Annotated[
        int | None, typer.Option("--workers", metavar="N", help="CPUs for cells, on this machine (default: all).")
    ] = None,
    ray_address: Annotated[
        str | None,
        typer.Option(
            "--ray-address", metavar="HOST:PORT", help="Cluster of --engine ray (default: one on this machine)."
        ),
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change the study (samples=500); may be repeated."),
    ] = None,
    archive: Annotated[
        Path | None,
        typer.Option(
            "--archive", metavar="DIR", help="Finished cells of another sitting: see `latentlab study archive`."
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what is to be done and about how long it takes.")
    ] = False,
) -> None:
    """Run a study: train tokenizers and generators, measure, sample and judge; only what is not done yet.

    Every cell is kept by what determines it. A killed command continues, a failed cell costs only what needs it and is tried
    again by the next call, and a measurement, seed or guidance scale that is added computes only itself. Ends with the table,
    the analysis and the figures.
    """
    if workers is not None:
        at_least("--workers", workers, 1)
    check_folder("--out", out)
    check_folder("--archive", archive)
    if engine not in ("local", "ray"):
        raise UserError(f"--engine must be local or ray, got '{engine}'")
    if ray_address is not None and engine != "ray":
        raise UserError("--ray-address goes with --engine ray")

    from latentlab.encoding import slug
    from latentlab.study.archive import Archive, restore
    from latentlab.study.cells.graph import build_graph
    from latentlab.study.engine.report import print_plan
    from latentlab.study.engine.run import check_resources, only_one, planned, run_cells
    from latentlab.study.plan_file import load_study

    study = load_study(file, overrides or [])
    graph = build_graph(study)
    place = out or _RUNS / f"study-{slug(file.stem)}"
    archived = None if archive is None else Archive(archive)
    if dry_run:
        schedule = planned(graph, place, () if archived is None else archived.keys(graph))
        chosen = _engine(engine, study, workers, ray_address)
        try:
            check_resources(study, schedule, chosen)
            print_plan(schedule, int(chosen.workers))
        finally:
            chosen.stop()
        return
    with only_one(place):  # from the plan to the figures: a second run must not change what this one stands on
        _write_plan(study, graph, place)
        if archived is not None:
            print(f"{restore(graph, place, archived)} cells taken from {archive}")
        schedule = run_cells(study, graph, place, _engine(engine, study, workers, ray_address))
        _conclude(study, schedule, place)


def _workers(asked: int | None) -> int:
    from latentlab.runtime import usable_cpus

    return asked or usable_cpus()


def _engine(name: str, study: "StudyFile", workers: int | None, address: str | None) -> "Engine":
    """Return where cells run."""
    if name == "ray":
        from latentlab.study.engine.cluster import RayEngine

        return RayEngine(address, workers)
    from latentlab.study.engine.local import LocalEngine

    gpus = 0
    if any(one.gpus for one in study.resources.values()):
        import torch

        gpus = torch.cuda.device_count()
    return LocalEngine(_workers(workers), gpus)


def _write_plan(study: "StudyFile", graph: "Graph", out: Path) -> None:
    import yaml

    from latentlab.files import write_text
    from latentlab.runtime import make_writable

    make_writable(out)
    write_text(out / "plan.yaml", yaml.safe_dump(study.model_dump(mode="json"), sort_keys=False, allow_unicode=True))
    graph.write(out)


def _conclude(study: "StudyFile", schedule: "Schedule", out: Path) -> None:
    """Write the table and what follows from it; leave with 1 when cells failed."""
    from latentlab.study.engine.report import print_failures
    from latentlab.study.plots.draw import draw_study

    table = _collect(study, out)
    figures = draw_study(out)
    print_failures(schedule, out)
    print(f"table    {out / 'results.csv'} ({len(table.rows)} rows)")
    print(f"figures  {out / 'figures'} ({len(figures)} files)")
    print(f"report   latentlab report {out}")
    if schedule.failed or schedule.left():
        raise typer.Exit(1)


def _collect(study: "StudyFile", out: Path) -> "StudyTable":
    """Write the table, and the analysis that the study asks for, where it can be made; return the table."""
    from latentlab.study.analysis.analyze import FILE, analyse, write_analysis
    from latentlab.study.collect import collect
    from latentlab.study.table import FILE as TABLE

    table = collect(out)
    plan, absent = study.analysis.of_what_there_is(table)
    for name in absent:
        print(
            f"not analysed: no row has {name}: not computed yet, or not to be had of these images or latents",
            file=sys.stderr,
        )
    try:
        write_analysis(analyse(table, plan), out / FILE, out / TABLE)
    except UserError as error:  # a small study has a table all the same
        (out / FILE).unlink(missing_ok=True)  # it would be that of an earlier table
        print(f"no analysis: {error}", file=sys.stderr)
    return table


def status(folder: Folder, json: AsJson = False) -> None:
    """Say how far a study is: cells by stage, what runs, what failed and why."""
    from latentlab.study.engine.report import print_status, status_of

    found = status_of(folder)
    if json:
        import json as codec

        print(codec.dumps(found, indent=1))
    else:
        print_status(found)


def table(folder: Folder) -> None:
    """Collect the finished cells into results.csv and columns.json, with pictures, and analyse them; unfinished rows say why."""
    from latentlab.study.cells.cell import Graph
    from latentlab.study.plan_file import load_study

    Graph.read(folder)  # which says that a folder holds no study
    found = _collect(load_study(folder / "plan.yaml"), folder)
    unfinished = int((found.rows["error"] != "").sum())
    print(f"table  {folder / 'results.csv'} ({len(found.rows)} rows, {unfinished} of them unfinished)")


def archive(
    folder: Folder,
    to: Annotated[Path, typer.Option("--to", metavar="DIR", help="Folder of the archives; those in it are added to.")],
) -> None:
    """Keep what the finished cells found: one zip per tokenizer, for `latentlab study run --archive` on any machine.

    Weights, latents and samples are left out; a cell whose files an unfinished one needs is done again there.
    """
    from latentlab.study.archive import write_archive
    from latentlab.study.cells.cell import Graph
    from latentlab.study.plan_file import load_study

    check_folder("--to", to)
    graph = Graph.read(folder)
    files = write_archive(load_study(folder / "plan.yaml"), graph, folder, to)
    print(f"archive  {to} ({len(files)} files, {sum(file.stat().st_size for file in files) / 1e6:.1f} MB)")


def plot(folder: Folder) -> None:
    """Draw every figure that the results of a study allow."""
    from latentlab.study.plots.draw import draw_study, left_out

    files = draw_study(folder)
    for name, reason in left_out(folder).items():
        print(f"left out {name}: {reason}", file=sys.stderr)
    print(f"figures  {folder / 'figures'} ({len(files)} files)")
