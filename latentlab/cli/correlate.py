"""``latentlab correlate``: what goes with quality in a table of results."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from latentlab.cli.options import AsJson, Seed, check_folder
from latentlab.errors import UserError

if TYPE_CHECKING:
    from latentlab.study.analysis.plan import AnalysisPlan
    from latentlab.study.table import StudyTable

_METHODS = ("pearson", "spearman", "kendall")


def correlate(
    table: Annotated[
        Path, typer.Argument(metavar="TABLE", help="CSV file, one row per tokenizer; or the results folder of a study.")
    ],
    target: Annotated[
        str | None,
        typer.Option(
            "--target", metavar="NAMES", help="Comma-separated columns to explain (of a study: all of quality)."
        ),
    ] = None,
    predictors: Annotated[
        str | None,
        typer.Option("--predictors", metavar="NAMES", help="Columns that explain (default: all other numbers)."),
    ] = None,
    given: Annotated[
        str | None,
        typer.Option(
            "--given", metavar="NAMES", help="Covariates: correlations raw, given each, and given all of them."
        ),
    ] = None,
    family: Annotated[
        str | None,
        typer.Option(
            "--family",
            metavar="NAME",
            help="Column of groups that are alike: left out in turn, and correlated within (of a study: cluster, family).",
        ),
    ] = None,
    label: Annotated[
        str | None,
        typer.Option(
            "--label", metavar="NAME", help="Column that names tokenizers (default: tokenizer, or the first words)."
        ),
    ] = None,
    method: Annotated[str, typer.Option("--method", metavar="NAME", help="pearson, spearman, kendall or all.")] = "all",
    models: Annotated[
        list[str] | None,
        typer.Option("--model", metavar="NAMES", help="Predict by these columns together, a,b,...; may be repeated."),
    ] = None,
    held_out: Annotated[
        str | None,
        typer.Option("--held-out", metavar="NAMES", help="Tokenizers that are kept from fitting and then predicted."),
    ] = None,
    mixed: Annotated[
        bool, typer.Option("--mixed", help="Also fit slopes with a random intercept per group (slower).")
    ] = False,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="Where results go (default: beside the table).")
    ] = None,
    seed: Seed = 0,
    json: AsJson = False,
) -> None:
    """Correlate measurements with quality: three correlations with intervals, p-values, partial, within groups, predictions.

    Works on any CSV file. Columns tokenizer, generator, guidance, generator_seed, tokenizer_seed, control and held_out mean what
    they do in a study, where they are there: settings are analysed apart, repeats averaged, controls left out. Of a study, the
    analysis section of its plan.yaml is followed where no option says otherwise. Writes correlations.csv and analysis.json.
    """
    check_folder("--out", out)
    if method != "all" and method not in _METHODS:
        raise UserError(f"--method must be {', '.join(_METHODS)} or all, got '{method}'")

    from latentlab.study.analysis.analyze import FILE, analyse, write_analysis
    from latentlab.study.analysis.report import CSV_FILE, print_analysis, write_csv
    from latentlab.study.table import FILE as TABLE

    options = {
        "targets": _names(target), "predictors": _names(predictors), "covariates": _names(given), "held_out": _names(held_out),
        "models": tuple(_names(one) for one in models or ()), "groups": _names(family),
        "methods": () if method == "all" else (method,), "mixed": mixed, "seed": seed,
    }  # fmt: skip
    study, plan = _open(table, {name: value for name, value in options.items() if value}, label, family)
    analysis = analyse(study, plan)
    folder = out or (table if table.is_dir() else table.parent)
    write_csv(analysis, folder / CSV_FILE)
    write_analysis(analysis, folder / FILE, table / TABLE if table.is_dir() else table)
    if json:
        import json as codec

        print(codec.dumps(analysis, indent=1, allow_nan=False))
    else:
        print_analysis(analysis)
    print(f"analysis  {folder / FILE}, {CSV_FILE} beside it", file=sys.stderr if json else sys.stdout)


def _names(text: str | None) -> tuple[str, ...]:
    return tuple(name.strip() for name in (text or "").split(",") if name.strip())


def _open(
    path: Path, options: dict[str, Any], label: str | None, family: str | None
) -> tuple["StudyTable", "AnalysisPlan"]:
    """Return the table and what is asked of it.

    Raises:
        UserError: a table that cannot be read, or options that do not go with it.
    """
    from latentlab.study.analysis.brought_csv import is_study, read_any
    from latentlab.study.analysis.plan import AnalysisPlan, stated_section
    from latentlab.study.table import StudyTable

    if is_study(path):
        if label:
            raise UserError(f"--label goes with tables of your own: tokenizers of the study {path} have their names")
        stated = stated_section(path if path.is_dir() else path.parent)
        study = StudyTable.read(path)
        if family and family not in study.rows:
            raise UserError(f"--family: {path} has no column '{family}'")
        plan = AnalysisPlan(**{**stated, **options})
        kept, _ = plan.of_what_there_is(study)
        asked = {name: getattr(plan, name) for name in ("targets", "predictors") if options.get(name)}
        return study, kept.model_copy(update=asked)  # what was asked for by name is missed, not left out
    if not options.get("targets"):
        raise UserError(
            "say with --target which column of the table is the quality to explain, for example --target gfid"
        )
    study = read_any(path, options["targets"], label, family)
    numbers = tuple(n for n in study.names("measurement") if n not in options.get("covariates", ()))
    return study, AnalysisPlan(**{"groups": (), "predictors": numbers, **options})
