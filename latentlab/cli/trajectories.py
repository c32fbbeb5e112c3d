"""``latentlab trajectories``: how straight the sampling paths of a trained generator are."""

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from latentlab.cli.options import (
    AsJson,
    DecoderName,
    DecoderRelease,
    DecoderWeights,
    Device,
    ImageSize,
    Limit,
    Precision,
    Seed,
    at_least,
    check_folder,
    parsed_settings,
)
from latentlab.errors import UserError

if TYPE_CHECKING:
    from latentlab.trajectories import Overlay
    from mind.paths import PathGenerator
    from mind.pipeline import MindGenerator

_RUNS = Path("runs")


def trajectories(
    weights: Annotated[
        str,
        typer.Option(
            "--weights",
            metavar="FILE",
            help="Embedded weights by name, a weight file, the folder of a training run, or the authors' checkpoint.",
        ),
    ] = "fashion32",
    n: Annotated[int, typer.Option("--n", metavar="N", help="Number of paths, classes equally often.")] = 256,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="OPTION=VALUE",
            help="Sampler setting, may be repeated; else 50 steps without guidance or random numbers on the way, and what "
            "the weights recommend.",
        ),
    ] = None,
    store: Annotated[
        Path | None,
        typer.Option("--store", metavar="DIR", help="Latents for the irreducible variance: see `latentlab encode`."),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option("--data", metavar="SOURCE", help="Images to encode for it instead, for example fashion:test."),
    ] = None,
    limit: Limit = None,
    image_size: ImageSize = None,
    seed: Seed = 0,
    batch_size: Annotated[
        int | None, typer.Option("--batch-size", metavar="N", help="Paths at a time (default: by model and device).")
    ] = None,
    precision: Precision = None,
    tokenizer: DecoderName = None,
    tokenizer_weights: DecoderWeights = None,
    release: DecoderRelease = None,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="Run directory (default: runs/trajectories-WEIGHTS...).")
    ] = None,
    device: Device = "auto",
    json: AsJson = False,
) -> None:
    """Measure sampling paths: straightness, efficiency, and where on the way the steps are long.

    With --store or --data, the irreducible variance of the latents is set beside the lengths. Writes results.json, summary.md
    and a figure; the same command continues an interrupted run.
    """
    for option, value, least in (
        ("--n", n, 1), ("--batch-size", batch_size, 1), ("--limit", limit, 1), ("--seed", seed, 0)
    ):  # fmt: skip
        at_least(option, value, least)
    check_folder("--out", out)
    _check_overlay(store, data, {"--limit": limit, "--image-size": image_size})
    values = parsed_settings(settings)

    from latentlab.encoding import slug
    from latentlab.runtime import choose_device, prepare_threads
    from latentlab.trajectories import study_trajectories
    from mind.open_generator import TokenizerChoice, open_generator
    from mind.paths import ODE_SETTINGS, MindPaths

    where = choose_device(device)
    prepare_threads()
    generator = open_generator(
        weights,
        settings={**ODE_SETTINGS, **values},
        tokenizer=TokenizerChoice(tokenizer, release, tokenizer_weights),
        precision=precision,
        device=where,
    )
    paths = MindPaths(generator)
    particulars = [n, *(settings or []), store and store.resolve().name, data, limit, seed or None, precision]
    name = "-".join(["trajectories", Path(weights).stem, *(str(one) for one in particulars if one is not None)])
    folder = out or _RUNS / slug(name)
    results = study_trajectories(
        paths,
        folder,
        name=f"MIND {Path(weights).stem}",
        n=n,
        overlay=_overlay(paths, generator, store, data, limit, image_size, seed),
        seed=seed,
        batch_size=batch_size,
        command=shlex.join(["latentlab", *sys.argv[1:]]),
    )
    _report(results, folder, json)


def _check_overlay(store: Path | None, data: str | None, goes_with: dict[str, int | None]) -> None:
    """Raise `UserError` unless at most one source of latents is given, and nothing that belongs to none."""
    if store is not None and data is not None:
        raise UserError("give either --store or --data, not both: they are two ways to the same latents")
    for option, value in goes_with.items():
        if value is not None and data is None:
            raise UserError(f"{option} goes with --data: it chooses among images that are encoded")


def _overlay(
    paths: "PathGenerator",
    generator: "MindGenerator",
    store: Path | None,
    data: str | None,
    limit: int | None,
    image_size: int | None,
    seed: int,
) -> "Overlay | None":
    """Return the latents of ``--store``, or of ``--data`` through the generator's tokenizer."""
    from latentlab.data import open_data
    from latentlab.encoding import cached_store_path, encode_images
    from latentlab.store import LatentStore
    from latentlab.trajectories import Overlay

    if data is not None:
        images = open_data(data, image_size=image_size, limit=limit, seed=seed)
        tokenizer = generator.tokenizer
        found = encode_images(tokenizer, images, cached_store_path(tokenizer, images), device=generator.device)
    elif store is not None:
        found = LatentStore(store)
    else:
        return None
    return Overlay(paths.latents(found), found.path)


def _report(results: dict[str, Any], folder: Path, json: bool) -> None:
    """Print the table (or the JSON), then where everything is."""
    if json:
        import json as codec

        print(codec.dumps(results, indent=1, allow_nan=False))
    else:
        from latentlab.trajectory_report import print_trajectories

        print_trajectories(results)
    news = sys.stderr if json else sys.stdout
    print(f"results  {folder / 'results.json'}", file=news)
    print(f"summary  {folder / 'summary.md'}", file=news)
    print(f"figures  {folder / 'figures'} ({len(results['figures'])} files)", file=news)
