"""``latentlab geometry``: what MIND's token tables have learned."""

import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from latentlab.cli.options import AsJson, Seed, check_folder
from latentlab.errors import UserError


def geometry(
    weights: Annotated[
        str | None,
        typer.Option(
            "--weights", metavar="FILE", help="Embedded weights by name, or a weight file (with neither: fashion32)."
        ),
    ] = None,
    runs: Annotated[
        str | None,
        typer.Option(
            "--runs", metavar="DIR,DIR", help="Folders of training runs: their tables, and norms over training."
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="Run directory (default: runs/geometry-NAMES).")
    ] = None,
    seed: Seed = 0,
    json: AsJson = False,
) -> None:
    """Measure learned token embeddings: norms, angular separation, rank, and which codes are neighbours.

    Writes results.json, summary.md, the neighbours of every code and figures.
    """
    check_folder("--out", out)
    folders = [Path(one) for one in (runs or "").split(",") if one]
    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"--runs: {folder} is not a folder of a training run")
    files = [weights or "fashion32"] if weights or not folders else []

    from latentlab.encoding import unique_slug
    from latentlab.learned_geometry import study_geometry
    from latentlab.runtime import prepare_threads

    prepare_threads()
    names = [Path(one).stem for one in files] + [folder.resolve().name for folder in folders]
    place = out or Path("runs") / f"geometry-{unique_slug('-'.join(names))}"
    command = shlex.join(["latentlab", *sys.argv[1:]])
    _report(study_geometry(files, folders, place, seed=seed, command=command), place, json)


def _report(results: dict[str, Any], folder: Path, json: bool) -> None:
    """Print the table (or the JSON), then where everything is."""
    if json:
        import json as codec

        print(codec.dumps(results, indent=1, allow_nan=False))
    else:
        from latentlab.geometry_report import print_geometry

        print_geometry(results)
    news = sys.stderr if json else sys.stdout
    print(f"results  {folder / 'results.json'}", file=news)
    print(f"summary  {folder / 'summary.md'}", file=news)
    print(f"figures  {folder / 'figures'} ({len(results['figures'])} files)", file=news)
