"""Options that several commands share, with one wording."""

from pathlib import Path
from typing import Annotated

import typer

from latentlab.errors import UserError

TokenizerName = Annotated[
    str, typer.Option("--tokenizer", metavar="NAME", help="A tokenizer: see `latentlab tokenizers`.")
]
Data = Annotated[
    str,
    typer.Option(
        "--data",
        metavar="SOURCE",
        help="fashion[:train|:test], imagefolder:DIR, parquet:FILES or cifar10:DIR[:train|:test].",
    ),
]
Weights = Annotated[
    Path | None, typer.Option("--weights", metavar="FILE", help="Weights to use instead of the tokenizer's own.")
]
Release = Annotated[
    str | None,
    typer.Option("--release", metavar="NAME", help="Which weights of the tokenizer (default: what suits the data)."),
]
Limit = Annotated[
    int | None, typer.Option("--limit", metavar="N", help="Use at most N images, balanced over the classes.")
]
ImageSize = Annotated[
    int | None, typer.Option("--image-size", metavar="PIXELS", help="Side of the images after the centre crop.")
]
Masks = Annotated[
    str | None,
    typer.Option(
        "--masks", metavar="DIR", help="Foreground masks of an image folder: DIR, binary:DIR or imagenet-s:DIR."
    ),
]
SkipBad = Annotated[bool, typer.Option("--skip-bad", help="Leave out images that cannot be read, and count them.")]
Device = Annotated[str, typer.Option("--device", metavar="NAME", help="auto, cpu, cuda, cuda:I or mps.")]
Seed = Annotated[int, typer.Option("--seed", metavar="N", help="Seed of everything random.")]
BatchSize = Annotated[
    int | None, typer.Option("--batch-size", metavar="N", help="Images per pass (default: by image size and device).")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON to stdout, and nothing else there.")]


def at_least(option: str, value: int | None, least: int) -> None:
    """Raise `UserError` when ``value`` of the command-line ``option`` is below ``least``."""
    if value is not None and value < least:
        raise UserError(f"{option} must be at least {least}, got {value}")


def check_folder(option: str, path: Path | None) -> None:
    """Raise `UserError` when a file lies where the output folder of ``option`` should be."""
    if path is not None and path.exists() and not path.is_dir():
        raise UserError(f"{option} {path} is a file: choose another folder")
