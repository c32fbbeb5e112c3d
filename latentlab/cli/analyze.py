"""``latentlab analyze``: measure a latent space."""

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from latentlab.cli.options import (
    ArchitectureFields,
    AsJson,
    BatchSize,
    Device,
    ImageSize,
    Limit,
    Masks,
    MetricOptions,
    Metrics,
    Release,
    Seed,
    SkipBad,
    Weights,
    as_seen_here,
    at_least,
    check_folder,
    chosen_names,
    parsed_options,
    parsed_settings,
    particulars,
)
from latentlab.errors import UserError

if TYPE_CHECKING:
    from latentlab.results import Results

_DEFAULT_DATA = "fashion:test"
_RUNS = Path("runs")


def analyze(
    tokenizer: Annotated[
        str | None, typer.Option("--tokenizer", metavar="NAME", help="Measure this one: see `latentlab tokenizers`.")
    ] = None,
    latents: Annotated[
        Path | None,
        typer.Option("--latents", metavar="DIR", help="Measure latents in a folder (ours or LightningDiT's) instead."),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            "--data",
            metavar="SOURCE",
            help=f"fashion[:train|:test], imagefolder:DIR, parquet:FILES, cifar10:DIR[:train|:test] (default: {_DEFAULT_DATA}).",
        ),
    ] = None,
    metrics: Metrics = "all",
    settings: MetricOptions = None,
    limit: Limit = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="DIR", help="Run directory (default: runs/analyze-TOKENIZER-DATA...)."),
    ] = None,
    weights: Weights = None,
    release: Release = None,
    architecture: ArchitectureFields = None,
    image_size: ImageSize = None,
    masks: Masks = None,
    skip_bad: SkipBad = False,
    batch_size: BatchSize = None,
    predictor: Annotated[
        Path | None,
        typer.Option(
            "--predictor",
            metavar="FILE",
            help="Predict generation quality with this one, of `latentlab study predictor`; what it needs is measured as in its "
            "study (default: what ships for the data).",
        ),
    ] = None,
    figures: Annotated[
        bool,
        typer.Option(
            "--figures/--no-figures", help="Draw figures too; a map of the latents (UMAP) takes half a minute."
        ),
    ] = True,
    device: Device = "auto",
    seed: Seed = 0,
    json: AsJson = False,
) -> None:
    """Measure a latent space.

    Prints a table with intervals and writes results.json, figures and a summary. Latents are computed once and kept for
    the next run. An interrupted analysis continues with the measurements that are missing; under torchrun the processes
    share them. A measurement that cannot be made of these latents is listed with the reason; the exit code is 2 if it was
    named in --metrics, or if none can be made.
    """
    for_images = {
        "--data": data,
        "--weights": weights,
        "--release": release,
        "--architecture": architecture,
        "--image-size": image_size,
        "--masks": masks,
        "--batch-size": batch_size,
    }
    _check_source(tokenizer, latents, {**for_images, "--skip-bad": skip_bad or None})
    at_least("--limit", limit, 1)
    at_least("--batch-size", batch_size, 1)
    check_folder("--out", out)
    fields = parsed_settings(architecture, "--architecture")

    from latentlab.analyze import analyze as analyze_subject
    from latentlab.analyze import chosen_metrics, subject_of_folder, subject_of_tokenizer
    from latentlab.data import open_data
    from latentlab.encoding import open_tokenizer
    from latentlab.ranks import joined_ranks
    from latentlab.runtime import choose_device, make_writable, prepare_threads
    from latentlab.study.predictor.file import read_predictor

    names = chosen_names(metrics)
    chosen_metrics(names)
    options = parsed_options(settings, names)
    predicting = None if predictor is None else read_predictor(predictor)
    where = choose_device(device)
    prepare_threads()
    if tokenizer is None:
        assert latents is not None
        folder = out or _RUNS / "-".join(["analyze", *particulars(as_seen_here(latents), limit, seed=seed)])
        subject = subject_of_folder(latents, limit=limit, seed=seed)
    else:
        source = data or _DEFAULT_DATA
        given = [tokenizer, source, limit, release, weights and as_seen_here(weights), *(architecture or ())]
        told = particulars(*given, masks=masks, image_size=image_size, seed=seed)
        folder = out or _RUNS / "-".join(["analyze", *told])
        model = open_tokenizer(tokenizer, source, weights=weights, release=release, architecture=fields, device=where)
        images = open_data(source, image_size=image_size, limit=limit, masks=masks, skip_bad=skip_bad, seed=seed)
        make_writable(folder)
        subject = subject_of_tokenizer(model, images, device=where, batch_size=batch_size)
    command = shlex.join(["latentlab", *sys.argv[1:]])
    with joined_ranks() as ranks:
        results = analyze_subject(
            subject,
            folder,
            metrics=names,
            seed=seed,
            device=where,
            command=command,
            options=options,
            ranks=ranks,
            draw=figures,
            predictor=predicting,
        )
    if ranks.first:
        _report(results, folder, json)
        _check_complete(results, names)


def _check_source(tokenizer: str | None, latents: Path | None, for_images: dict[str, Any]) -> None:
    """Raise `UserError` unless exactly one source of latents is given, with only the options that go with it."""
    if tokenizer is not None and latents is not None:
        raise UserError("give either --tokenizer or --latents, not both: --latents are measured without a tokenizer")
    if tokenizer is None and latents is None:
        raise UserError("give --tokenizer NAME (see `latentlab tokenizers`) or --latents DIR")
    misplaced = [option for option, value in for_images.items() if value is not None]
    if latents is not None and misplaced:
        raise UserError(f"{misplaced[0]} goes with --tokenizer: --latents are measured as they are")


def _report(results: "Results", folder: Path, json: bool) -> None:
    """Print the table (or the JSON), then where everything is."""
    if json:
        import json as codec

        print(codec.dumps(results.to_dict(), indent=1, allow_nan=False))
    else:
        from latentlab.report_table import print_results

        print_results(results)
    news = sys.stderr if json else sys.stdout
    print(f"results  {folder / 'results.json'}", file=news)
    print(f"summary  {folder / 'summary.md'}", file=news)
    if results.figures:
        print(f"figures  {folder / 'figures'} ({len(results.figures)} files)", file=news)
    print(f"latents  {results.latents['path']}", file=news)


def _check_complete(results: "Results", names: list[str] | None) -> None:
    """Raise `UserError` when something that was asked for by name, or everything, could not be measured."""
    if names and results.refused:
        name, reason = next(iter(results.refused.items()))
        raise UserError(f"{len(results.refused)} of {len(names)} measurements were not made; {name}: {reason}")
    if not results.measurements:
        raise UserError("none of the measurements could be made of these latents: see the reasons above")
