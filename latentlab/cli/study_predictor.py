"""``latentlab study predictor``: fit a predictor of generation quality to the table of a study."""

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from latentlab.cli.options import at_least, chosen_names
from latentlab.errors import UserError

if TYPE_CHECKING:
    from latentlab.study.predictor.file import Predictor

_PLAN = "plan.yaml"


def predictor(
    results: Annotated[Path, typer.Argument(metavar="RESULTS", help="Folder of a study, with its results.csv.")],
    target: Annotated[str, typer.Option("--target", metavar="COLUMN", help="Quality to predict.")],
    generator: Annotated[str, typer.Option("--generator", metavar="LABEL", help="Of the generator.")],
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="Where to write the predictor (JSON).")],
    guidance: Annotated[float, typer.Option("--guidance", metavar="SCALE", help="Guidance scale.")] = 1.0,
    measurements: Annotated[
        str, typer.Option("--measurements", metavar="NAMES", help="Comma-separated, or all that most tokenizers have.")
    ] = "all",
    data: Annotated[
        str | None,
        typer.Option("--data", metavar="SOURCE", help=f"Images the study measured (default: as its {_PLAN} says)."),
    ] = None,
    limit: Annotated[
        int | None, typer.Option("--limit", metavar="N", help="How many of them it measured (with --data).")
    ] = None,
) -> None:
    """Fit a predictor of generation quality to the table of a study.

    `latentlab analyze --predictor FILE` then predicts the quality of a new tokenizer from its measurements, or says how far
    outside the study it lies. Prints how well the predictor does on clusters it has not seen, beside the best single
    measurement and the mean of the study.
    """
    at_least("--limit", limit, 1)
    if limit is not None and data is None:
        raise UserError("--limit goes with --data")
    if out.is_dir():
        raise UserError(f"--out {out} is a folder: name a file, for example {out / 'predictor.json'}")

    from latentlab.data import open_data
    from latentlab.files import file_sha256
    from latentlab.prediction import settings_of
    from latentlab.study.analysis.plan import AnalysisPlan, stated_section
    from latentlab.study.predictor.file import DataSet, write_predictor
    from latentlab.study.predictor.fit import fit_predictor
    from latentlab.study.predictor.rows import measured_names
    from latentlab.study.table import FILE, StudyTable

    study = StudyTable.read(results)
    folder = results if results.is_dir() else results.parent
    title, source, count, parameters = _plan(folder)
    source, count = (data, limit) if data is not None else (source, count)
    if source is None:
        raise UserError(f"{results} has no {_PLAN} that says which images were measured: give --data (and --limit)")
    images = open_data(source, limit=count)
    names = chosen_names(measurements)
    table = results / FILE if results.is_dir() else results
    fitted = fit_predictor(
        study,
        target,
        generator,
        guidance,
        data=DataSet(name=source, n=images.n, fingerprint=images.fingerprint),
        settings={name: settings_of(name, parameters.get(name, {})) for name in measured_names(study, names)},
        measurements=names,
        plan=AnalysisPlan(**stated_section(folder)),
        title=title,
        table_sha256=file_sha256(table),
        command=shlex.join(["latentlab", *sys.argv[1:]]),
    )
    write_predictor(fitted, out)
    _report(fitted)
    print(f"predictor  {out}")


def _plan(folder: Path) -> tuple[str, str | None, int | None, dict[str, dict[str, Any]]]:
    """Return title, images, their number and parameters of the measurements as the study file beside the table says."""
    if not (folder / _PLAN).is_file():
        return folder.resolve().name, None, None, {}
    from latentlab.study.plan_file import load_study

    plan = load_study(folder / _PLAN)
    return plan.title, plan.held_out_images, plan.held_out_limit, plan.measure


def _report(fitted: "Predictor") -> None:
    """Print what was fitted and how well it does."""
    print(f"{fitted.target.title} from {', '.join(m.name for m in fitted.measurements)}")
    clusters = len(fitted.fits)
    print(f"{len(fitted.tokenizers)} tokenizers in {clusters} clusters, each cluster predicted from the others:")
    for score in fitted.scores:
        ranks = "" if score.spearman is None else f", Spearman {score.spearman:.2f}"
        note = f" ({score.note})" if score.note else ""
        print(f"  {score.model + note:24} error {score.rmse:.3g}, R2 {score.r2:.2f}{ranks}")
    if fitted.held_out:
        inside = sum(check.low <= check.observed <= check.high for check in fitted.held_out)
        refused = sum(check.factor > 1 for check in fitted.held_out)
        share = (
            f"{inside} of {len(fitted.held_out)} held-out tokenizers lie in their {100 * fitted.level:.0f} % interval"
        )
        print(f"{share}; {refused} would be refused")
    if fitted.controls:
        refused = sum(check.factor > 1 for check in fitted.controls)
        print(f"{refused} of {len(fitted.controls)} controls would be refused")
    for name, reason in fitted.origin.left_out.items():
        print(f"not used: {name}: {reason}")
