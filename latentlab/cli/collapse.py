"""``latentlab collapse``: what is left of images whose latents pass through a few numbers on a product of circles."""

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from latentlab.cli.options import (
    AsJson,
    Device,
    ImageSize,
    SkipBad,
    as_seen_here,
    at_least,
    check_folder,
    particulars,
)

if TYPE_CHECKING:
    from latentlab.tokenizers import Tokenizer

_DEFAULT_DATA = "fashion:test"
_RUNS = Path("runs")


def collapse(
    continuous: Annotated[
        str | None,
        typer.Option("--continuous", metavar="NAME", help="A tokenizer with continuous latents (with neither: kl)."),
    ] = None,
    discrete: Annotated[
        str | None, typer.Option("--discrete", metavar="NAME", help="A tokenizer with a codebook (with neither: ibq).")
    ] = None,
    weights_continuous: Annotated[
        Path | None, typer.Option("--weights-continuous", metavar="PATH", help="Weights of the continuous tokenizer.")
    ] = None,
    weights_discrete: Annotated[
        Path | None, typer.Option("--weights-discrete", metavar="PATH", help="Weights of the discrete tokenizer.")
    ] = None,
    data: Annotated[
        str,
        typer.Option(
            "--data", metavar="SOURCE", help="fashion[:train|:test], imagefolder:DIR, parquet:FILES or cifar10:DIR."
        ),
    ] = _DEFAULT_DATA,
    image_size: ImageSize = None,
    images: Annotated[int, typer.Option("--images", metavar="K", help="Images to study, each in runs of its own.")] = 3,
    seeds: Annotated[int, typer.Option("--seeds", metavar="S", help="Runs of each image: views and weights.")] = 2,
    dims: Annotated[int, typer.Option("--dims", metavar="D", help="Numbers in the bottleneck.")] = 6,
    sphere: Annotated[
        Literal["pairs", "whole", "none"],
        typer.Option("--sphere", help="Pairs on circles, all on one sphere, or no normalisation."),
    ] = "pairs",
    iterations: Annotated[int, typer.Option("--iterations", metavar="N", help="Optimiser steps of each run.")] = 1000,
    controls: Annotated[
        bool, typer.Option("--controls", help="Add no normalisation, one sphere, and 2, 4, 8 and 16 numbers.")
    ] = False,
    patch: Annotated[
        int | None, typer.Option("--patch", metavar="P", help="Cells per side of a continuous position.")
    ] = None,
    perceptual: Annotated[
        str, typer.Option("--perceptual", metavar="NAME", help="lpips, lpips_vgg, st_lpips, st_lpips_vgg, or auto.")
    ] = "auto",
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="Run directory (default: runs/collapse-NAMES-DATA).")
    ] = None,
    skip_bad: SkipBad = False,
    device: Device = "auto",
    json: AsJson = False,
) -> None:
    """Study bottleneck collapse: continuous latents and ids through a few numbers on circles.

    Trains a small bottleneck per tokenizer, setting, image and seed (equal numbers of parameters), measures how far the
    decoded images move, and judges the published claim. Writes results.json, summary.md and figures. An interrupted study
    continues with the runs that are missing.
    """
    for option, value in (("--images", images), ("--seeds", seeds), ("--iterations", iterations), ("--patch", patch)):
        at_least(option, value, 1)
    check_folder("--out", out)

    from latentlab.collapse import chosen_defaults, plan_study, run_study
    from latentlab.data import open_data
    from latentlab.encoding import open_tokenizer
    from latentlab.runtime import choose_device, prepare_threads

    where = choose_device(device)
    prepare_threads()
    image_set = open_data(data, image_size=image_size, skip_bad=skip_bad)
    names = chosen_defaults(continuous, discrete)

    def opened(name: str | None, weights: Path | None) -> "Tokenizer | None":
        return None if name is None else open_tokenizer(name, data, weights=weights, device=where)

    models = [opened(*pair) for pair in zip(names, (weights_continuous, weights_discrete), strict=True)]
    study = plan_study(
        models[0],
        models[1],
        image_set,
        dims=dims,
        sphere=sphere,
        controls=controls,
        subjects=images,
        seeds=seeds,
        iterations=iterations,
        patch=patch,
        perceptual=perceptual,
        device=str(where),
    )
    weights = (one and as_seen_here(one) for one in (weights_continuous, weights_discrete))
    folder = out or _RUNS / "-".join(["collapse", *particulars(*names, data, *weights, image_size=image_size)])
    _report(run_study(study, folder, command=shlex.join(["latentlab", *sys.argv[1:]])), folder, json)


def _report(results: dict[str, Any], folder: Path, json: bool) -> None:
    """Print verdict and table (or the JSON), then where everything is."""
    if json:
        import json as codec

        print(codec.dumps(results, indent=1, allow_nan=False))
    else:
        from latentlab.collapse_report import print_study

        print_study(results)
    news = sys.stderr if json else sys.stdout
    print(f"results  {folder / 'results.json'}", file=news)
    print(f"summary  {folder / 'summary.md'}", file=news)
    print(f"figures  {folder / 'figures'} ({len(results['figures'])} files)", file=news)
