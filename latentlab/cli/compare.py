"""``latentlab compare``: several latent spaces side by side."""

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from latentlab.cli.options import (
    AsJson,
    BatchSize,
    Device,
    ImageSize,
    Limit,
    Masks,
    MetricOptions,
    Metrics,
    Seed,
    SkipBad,
    as_seen_here,
    at_least,
    check_folder,
    chosen_names,
    parsed_options,
    particulars,
)
from latentlab.errors import UserError

_DEFAULT_DATA = "fashion:test"


def compare(
    tokenizers: Annotated[
        str | None,
        typer.Option(
            "--tokenizers",
            metavar="NAMES",
            help="Comma-separated tokenizers, each NAME, NAME:RELEASE or NAME=WEIGHTS (a file, or its folder).",
        ),
    ] = None,
    latents: Annotated[
        str | None,
        typer.Option("--latents", metavar="DIRS", help="Comma-separated folders of latents instead."),
    ] = None,
    data: Annotated[
        str | None, typer.Option("--data", metavar="SOURCE", help=f"Images (default: {_DEFAULT_DATA}).")
    ] = None,
    metrics: Metrics = "all",
    settings: MetricOptions = None,
    limit: Limit = None,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="Run directory (default: runs/compare-NAMES-DATA).")
    ] = None,
    image_size: ImageSize = None,
    masks: Masks = None,
    skip_bad: SkipBad = False,
    batch_size: BatchSize = None,
    device: Device = "auto",
    seed: Seed = 0,
    json: AsJson = False,
) -> None:
    """Compare latent spaces: one table, the easiest of each row marked, differences tested.

    Every tokenizer is analysed on the same images (what an earlier comparison in the same folder measured is reused), into
    DIR/NAME; the table, all differences with their intervals and p-values, and overlaid figures go into DIR. Values that do
    not compare (other variants, other numbers of images where that matters) are listed with the reason instead of being
    ranked.
    """
    names = _listed("--tokenizers", tokenizers) or _listed("--latents", latents)
    for_images: dict[str, object] = {
        "--data": data,
        "--image-size": image_size,
        "--masks": masks,
        "--batch-size": batch_size,
    }
    _check(tokenizers, latents, names, for_images)
    at_least("--limit", limit, 1)
    at_least("--batch-size", batch_size, 1)
    check_folder("--out", out)

    from latentlab.analyze import Subject, chosen_metrics, subject_of_folder, subject_of_tokenizer
    from latentlab.compare_report import print_comparison
    from latentlab.comparison_run import compare_subjects
    from latentlab.data import open_data
    from latentlab.encoding import open_tokenizer
    from latentlab.runtime import choose_device, make_writable, prepare_threads

    chosen = chosen_names(metrics)
    chosen_metrics(chosen)
    options = parsed_options(settings, chosen)
    where = choose_device(device)
    prepare_threads()
    source = data or _DEFAULT_DATA
    subjects: dict[str, Subject] = {}
    if tokenizers is None:
        told = particulars(*(as_seen_here(Path(name)) for name in names), limit, seed=seed)
        folder = out or Path("runs") / "-".join(["compare", *told])
        for name, short in zip(names, _short_names(names), strict=True):
            subjects[short] = subject_of_folder(Path(name), limit=limit, seed=seed)
    else:
        told = particulars(*names, source, limit, masks=masks, image_size=image_size, seed=seed)
        folder = out or Path("runs") / "-".join(["compare", *told])
        models = {}
        for text, short in zip(names, _without_weights(names), strict=True):
            # all of them first: a missing one must not show after an hour
            name, given, weights = text.partition("=")
            if given and not weights:
                raise UserError(f"--tokenizers {text}: name the weights after '=', or leave it out")
            name, _, release = name.partition(":")
            models[short] = open_tokenizer(
                name, source, weights=Path(weights) if weights else None, release=release or None, device=where
            )
        images = open_data(source, image_size=image_size, limit=limit, masks=masks, skip_bad=skip_bad, seed=seed)
        make_writable(folder)
        for name, model in models.items():
            subjects[name] = subject_of_tokenizer(model, images, device=where, batch_size=batch_size)
    title = f"{', '.join(subjects)}" + (f" on {source}" if tokenizers else "")
    comparison = compare_subjects(
        subjects,
        folder,
        title=title,
        metrics=chosen,
        options=options,
        seed=seed,
        device=where,
        command=shlex.join(["latentlab", *sys.argv[1:]]),
    )
    if json:
        import json as codec

        print(codec.dumps(comparison.to_dict(), indent=1, allow_nan=False))
    else:
        print_comparison(comparison, title)
    news = sys.stderr if json else sys.stdout
    print(f"comparison  {folder / 'comparison.json'}, comparison.csv, summary.md and figures beside it", file=news)


def _listed(option: str, text: str | None) -> list[str]:
    names = [name.strip() for name in (text or "").split(",") if name.strip()]
    if len(set(names)) != len(names):
        raise UserError(f"{option} names {next(n for n in names if names.count(n) > 1)} twice")
    return names


def _check(tokenizers: str | None, latents: str | None, names: list[str], for_images: dict[str, object]) -> None:
    if (tokenizers is None) == (latents is None):
        raise UserError("give either --tokenizers a,b,... or --latents DIR,DIR,...")
    if len(names) < 2:
        raise UserError(f"a comparison needs at least two, got {', '.join(names) or 'none'}: separate them by commas")
    misplaced = [option for option, value in for_images.items() if value is not None]
    if latents is not None and misplaced:
        raise UserError(f"{misplaced[0]} goes with --tokenizers: --latents are measured as they are")


def _without_weights(names: list[str]) -> list[str]:
    """Return the names without their weights; with them where the same name is there twice."""
    bare = [name.partition("=")[0] for name in names]
    return [short if bare.count(short) == 1 else name for name, short in zip(names, bare, strict=True)]


def _short_names(folders: list[str]) -> list[str]:
    """Return the last part of each folder, or all of it where two end alike."""
    short = [Path(folder).resolve().name for folder in folders]
    return short if len(set(short)) == len(short) else folders
