"""``latentlab evaluate``: how good generated images are."""

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from latentlab.cli.options import (
    AsJson,
    Device,
    Seed,
    SkipBad,
    as_seen_here,
    at_least,
    check_folder,
    chosen_names,
    particulars,
)
from latentlab.errors import UserError

if TYPE_CHECKING:
    from latentlab.quality.judged import QualitySettings
    from latentlab.quality.quality_results import QualityResults

_RUNS = Path("runs")


def evaluate(
    samples: Annotated[
        str,
        typer.Option(
            "--samples", metavar="PATH", help="Folder of a sampling run, its .npz file, or imagefolder:DIR of images."
        ),
    ],
    reference: Annotated[
        str,
        typer.Option(
            "--reference",
            metavar="SOURCE",
            help="Real images: fashion:train, imagefolder:DIR or parquet:FILES; or an ADM .npz (images, statistics or both).",
        ),
    ],
    metrics: Annotated[
        str | None,
        typer.Option(
            "--metrics",
            metavar="NAMES",
            help="Of fd, kid, pr, dc, is, sfid, fdr, clip (default: what can be had here).",
        ),
    ] = None,
    extractor: Annotated[
        list[str] | None,
        typer.Option(
            "--extractor",
            metavar="NAME",
            help="Whose features: efficientnet-lite0, fashion-classifier, inception, vgg16, dinov2-vit-l-14, clip-vit-b-32, "
            "torch-fidelity:NAME; may be repeated (default: inception when its weights are here, else efficientnet-lite0).",
        ),
    ] = None,
    validation: Annotated[
        str | None,
        typer.Option(
            "--validation", metavar="SOURCE", help="Real images outside the reference, which fdr is relative to."
        ),
    ] = None,
    texts: Annotated[
        Path | None, typer.Option("--texts", metavar="FILE", help="One text per image and line, for the CLIP score.")
    ] = None,
    clip_model: Annotated[
        str | None, typer.Option("--clip-model", metavar="NAME", help="Model of the CLIP score: hub id or folder.")
    ] = None,
    reference_limit: Annotated[
        int | None,
        typer.Option(
            "--reference-limit",
            metavar="N",
            help="At most N images of a data source as reference, balanced over its classes.",
        ),
    ] = None,
    validation_limit: Annotated[
        int | None,
        typer.Option("--validation-limit", metavar="N", help="At most N validation images: as many as were generated."),
    ] = None,
    image_size: Annotated[
        int | None,
        typer.Option(
            "--image-size", metavar="PIXELS", help="Side of images from data sources (default: that of the samples)."
        ),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="OPTION=VALUE", help="Setting of a metric (pr_k=5, kid_subset_size=100); may be repeated."
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="DIR", help="Folder of results.json (default: runs/evaluate-SAMPLES...)."),
    ] = None,
    skip_bad: SkipBad = False,
    batch_size: Annotated[
        int | None, typer.Option("--batch-size", metavar="N", help="Images decoded at a time; changes no value.")
    ] = None,
    device: Device = "auto",
    seed: Seed = 0,
    json: AsJson = False,
) -> None:
    """Compare generated images with real ones.

    Prints a table and writes results.json, in which every value has its reference, number of images, sampler and extractor. A
    distance is called FID on the features of Inception only. Features are kept, so a second run is quick and an interrupted
    one continues; under torchrun the processes share them. A metric that cannot be had is listed with the reason; the exit
    code is 2 if it was named in --metrics, or if there is none at all.
    """
    for option, value, least in (
        ("--image-size", image_size, 1),
        ("--reference-limit", reference_limit, 1),
        ("--validation-limit", validation_limit, 1),
        ("--batch-size", batch_size, 1),
    ):
        at_least(option, value, least)
    check_folder("--out", out)
    chosen = None if metrics is None else chosen_names(metrics)

    from latentlab.quality.clip_score import read_texts
    from latentlab.quality.evaluation import Evaluation
    from latentlab.quality.evaluation import evaluate as evaluate_images
    from latentlab.quality.image_sets import open_reference, open_samples
    from latentlab.ranks import joined_ranks
    from latentlab.runtime import choose_device, make_writable, prepare_threads

    where = choose_device(device)
    prepare_threads()
    made = open_samples(samples, image_size, skip_bad)
    evaluation = Evaluation(
        made,
        open_reference(reference, image_size, made, reference_limit, skip_bad),
        metrics=chosen,
        extractors=extractor or ("auto",),
        validation=None
        if validation is None
        else open_reference(validation, image_size, made, validation_limit, skip_bad),
        texts=None if texts is None else read_texts(texts),
        clip_model=clip_model,
        settings=_parsed_settings(settings or []),
        seed=seed,
        device=str(where),
        batch_size=batch_size,
    )
    evaluation.plan()  # mistakes are told before anything is computed
    sets = [reference_limit, validation, validation_limit]
    told = [_told(samples), _told(reference), metrics, *sets, *(extractor or []), *(settings or [])]
    folder = out or _RUNS / "-".join(["evaluate", *particulars(*told, image_size=image_size, seed=seed)])
    make_writable(folder)
    with joined_ranks() as ranks:
        results = evaluate_images(evaluation, ranks, shlex.join(["latentlab", *sys.argv[1:]]))
    if ranks.first:
        results.write(folder)
        _report(results, folder, json)
        _check_complete(results, chosen)


def _told(images: str) -> str | Path:
    """Return what a default folder calls a set of images: a file that a sampling run wrote is named after the run."""
    if ":" in images:
        return images
    path = Path(images)
    return as_seen_here(path.parent if path.suffix == ".npz" and path.stem.startswith("samples_") else path)


def _parsed_settings(settings: list[str]) -> "QualitySettings":
    """Return the settings of ``OPTION=VALUE`` texts."""
    from pydantic import ValidationError

    from latentlab.errors import unknown_name
    from latentlab.files import first_problem
    from latentlab.quality.judged import QualitySettings

    values: dict[str, Any] = {}
    for setting in settings:
        name, equals, text = setting.partition("=")
        if not (name and equals):
            raise UserError(f"--set expects OPTION=VALUE (for example pr_k=5), got '{setting}'")
        if name not in QualitySettings.model_fields:
            raise unknown_name("setting", name, QualitySettings.model_fields)
        values[name] = text
    try:
        return QualitySettings.model_validate(values)
    except ValidationError as error:
        raise UserError(f"--set {first_problem(error)}") from error


def _report(results: "QualityResults", folder: Path, json: bool) -> None:
    """Print the table (or the JSON), then where everything is."""
    if json:
        import json as codec

        print(codec.dumps(results.to_dict(), indent=1, allow_nan=False))
    else:
        results.print()
    print(f"results  {folder / 'results.json'}", file=sys.stderr if json else sys.stdout)


def _check_complete(results: "QualityResults", names: list[str] | None) -> None:
    """Raise `UserError` when something that was asked for by name, or everything, could not be measured."""
    if results.refused and (names or not results.measurements):
        name, reason = next(iter(results.refused.items()))
        count = len(results.refused)
        raise UserError(f"{count} value{'s were' if count > 1 else ' was'} not made; {name}: {reason}")
