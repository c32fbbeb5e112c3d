"""``latentlab trajectories``: how straight the sampling paths of a trained generator are."""

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from latentlab.cli.options import (
    AsJson,
    Averaged,
    DecoderName,
    DecoderRelease,
    DecoderWeights,
    Device,
    ImageSize,
    Limit,
    Seed,
    at_least,
    check_folder,
    parsed_settings,
    weighting_told,
)
from latentlab.errors import UserError

if TYPE_CHECKING:
    import torch

    from latentlab.path_variance import Overlay
    from mind.open_paths import OpenedPaths

_RUNS = Path("runs")


def trajectories(
    weights: Annotated[
        str,
        typer.Option(
            "--weights",
            metavar="FILE",
            help="Weight file or folder of a training run, of MIND, SiT, LightningDiT or DiT; of MIND also embedded weights by "
            "name or the authors' checkpoint.",
        ),
    ] = "fashion32",
    n: Annotated[
        int,
        typer.Option(
            "--n",
            "--paths",  # torchrun takes "--n" for an option of its own, wherever it stands
            metavar="N",
            help="Number of paths, classes equally often.",
        ),
    ] = 256,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="OPTION=VALUE",
            help="Sampler setting, may be repeated; else the ODE in 50 Euler steps (of DiT: DDIM) without guidance, and for the "
            "rest what the weights recommend.",
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
    beside: Annotated[
        list[Path] | None,
        typer.Option("--beside", metavar="DIR", help="Show an earlier run too, in table and figure; may be repeated."),
    ] = None,
    limit: Limit = None,
    image_size: ImageSize = None,
    seed: Seed = 0,
    batch_size: Annotated[
        int | None, typer.Option("--batch-size", metavar="N", help="Paths at a time (default: by model and device).")
    ] = None,
    precision: Annotated[
        str | None,
        typer.Option("--precision", metavar="NAME", help="float32 (default), autocast or, of MIND, released_bf16."),
    ] = None,
    averaged: Averaged = None,
    model: Annotated[
        list[str] | None,
        typer.Option(
            "--model",
            metavar="FIELD=VALUE",
            help="Of MIND: what the authors' checkpoint does not tell (noise_factor=0.8, num_heads=6); may be repeated.",
        ),
    ] = None,
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
    and a figure; the same command continues an interrupted run. Under torchrun the processes share the paths.
    """
    for option, value, least in (
        ("--n", n, 1), ("--batch-size", batch_size, 1), ("--limit", limit, 1)
    ):  # fmt: skip
        at_least(option, value, least)
    check_folder("--out", out)
    _check_overlay(store, data, {"--limit": limit, "--image-size": image_size})
    values, fields = parsed_settings(settings), parsed_settings(model, "--model")

    from latentlab.encoding import unique_slug
    from latentlab.ranks import joined_ranks
    from latentlab.runtime import choose_device, prepare_threads
    from latentlab.trajectories import study_trajectories
    from mind.open_generator import TokenizerChoice
    from mind.open_paths import NAMES, open_paths

    where = choose_device(device)
    prepare_threads()
    opened = open_paths(
        weights,
        settings=values,
        tokenizer=TokenizerChoice(tokenizer, release, tokenizer_weights),
        precision=precision,
        device=where,
        averaged=averaged,
        model=fields,
    )
    name = _name_of(weights, opened.kind)
    particulars = [n, *(settings or []), *(model or []), store and store.resolve().name, data, limit, seed or None]
    particulars += [precision, weighting_told(averaged)]
    told = "-".join(["trajectories", opened.kind, name, *(str(one) for one in particulars if one is not None)])
    folder = out or _RUNS / unique_slug(told)
    with joined_ranks() as ranks:
        results = study_trajectories(
            opened.paths,
            folder,
            name=f"{NAMES[opened.kind]} {name}",
            n=n,
            overlay=_overlay(opened, where, store, data, limit, image_size, seed),
            beside=beside or (),
            seed=seed,
            batch_size=batch_size,
            command=shlex.join(["latentlab", *sys.argv[1:]]),
            ranks=ranks,
        )
    if ranks.first:
        _report(results, folder, json)


def _name_of(weights: str, kind: str) -> str:
    """Return what to call the weights: what a training run exported is named after its folder."""
    source = Path(weights).resolve()
    if source.is_dir():
        return source.name
    return source.parent.name if source.stem in (kind, f"{kind}_ema") else source.stem


def _check_overlay(store: Path | None, data: str | None, goes_with: dict[str, int | None]) -> None:
    """Raise `UserError` unless at most one source of latents is given, and nothing that belongs to none."""
    if store is not None and data is not None:
        raise UserError("give either --store or --data, not both: they are two ways to the same latents")
    for option, value in goes_with.items():
        if value is not None and data is None:
            raise UserError(f"{option} goes with --data: it chooses among images that are encoded")


def _overlay(
    opened: "OpenedPaths",
    device: "torch.device",
    store: Path | None,
    data: str | None,
    limit: int | None,
    image_size: int | None,
    seed: int,
) -> "Overlay | None":
    """Return the latents of ``--store``, or of ``--data`` through the generator's tokenizer."""
    from latentlab.data import open_data
    from latentlab.encoding import cached_store_path, encode_images
    from latentlab.path_variance import Overlay
    from latentlab.store import LatentStore

    if data is not None:
        images = open_data(data, image_size=image_size, limit=limit, seed=seed)
        found = encode_images(opened.tokenizer, images, cached_store_path(opened.tokenizer, images), device=device)
    elif store is not None:
        found = LatentStore(store)
    else:
        return None
    return Overlay(opened.paths.latents(found), found.path)


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
