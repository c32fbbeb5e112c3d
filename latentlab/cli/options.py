"""Options that several commands share, with one wording."""

from pathlib import Path
from typing import Annotated, Any

import typer

from latentlab.errors import UserError


def _checked_seed(value: int) -> int:
    at_least("--seed", value, 0)
    if value >= 2**32:  # numpy and UMAP take no larger ones
        raise UserError(f"--seed must be below 2^32, got {value}")
    return value


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
    Path | None,
    typer.Option(
        "--weights", metavar="PATH", help="Weights to use instead of the tokenizer's own: a file, or its folder."
    ),
]
Release = Annotated[
    str | None,
    typer.Option("--release", metavar="NAME", help="Which weights of the tokenizer (default: what suits the data)."),
]
ArchitectureFields = Annotated[
    list[str] | None,
    typer.Option(
        "--architecture",
        metavar="FIELD=VALUE",
        help="Architecture field of the weights that differs from the published one (ch=64); may be repeated.",
    ),
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
Seed = Annotated[
    int, typer.Option("--seed", metavar="N", help="Seed of everything random, below 2^32.", callback=_checked_seed)
]
BatchSize = Annotated[
    int | None, typer.Option("--batch-size", metavar="N", help="Images per pass (default: by image size and device).")
]
Metrics = Annotated[
    str,
    typer.Option("--metrics", metavar="NAMES", help="Comma-separated measurements, or all (see `latentlab explain`)."),
]
MetricOptions = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="NAME.OPTION=VALUE", help="Option of a measurement (lnc.k=10); may be repeated."),
]
DecoderName = Annotated[
    str | None,
    typer.Option(
        "--tokenizer", metavar="NAME", help="What made and decodes the latents (default: as the weights say)."
    ),
]
DecoderWeights = Annotated[
    Path | None, typer.Option("--tokenizer-weights", metavar="PATH", help="Weights of the tokenizer.")
]
DecoderRelease = Annotated[
    str | None,
    typer.Option("--release", metavar="NAME", help="Which weights of the tokenizer (default: as the weights say)."),
]
Precision = Annotated[
    str | None,
    typer.Option(
        "--precision",
        metavar="NAME",
        help="float32, autocast or, of MIND, released_bf16 (default: float32; the authors' for their weights).",
    ),
]
SamplerOptions = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="OPTION=VALUE", help="Sampler setting (cfg_scale=1.5, steps=100); may be repeated."),
]
Averaged = Annotated[
    bool | None,
    typer.Option(
        "--averaged/--raw",
        help="Which weights of a training run (default: as published of the kind, raw ones of MIND, averaged ones of others).",
        show_default=False,
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON to stdout, and nothing else there.")]


def chosen_names(metrics: str) -> list[str] | None:
    """Return the names in a comma-separated list, None for ``all``."""
    return None if metrics == "all" else [name.strip() for name in metrics.split(",") if name.strip()]


def parsed_options(settings: list[str] | None, names: list[str] | None) -> dict[str, dict[str, Any]]:
    """Return measurement -> option -> value of ``NAME.OPTION=VALUE`` settings, values as YAML.

    Raises:
        UserError: not of that form, a measurement that is not among ``names``, or an option or a value that it does not take:
            said before anything is encoded.
    """
    import yaml

    from latentlab.registry import checked_parameters

    parsed: dict[str, dict[str, Any]] = {}
    for setting in settings or []:
        key, equals, text = setting.partition("=")
        name, dot, option = key.partition(".")
        if not (equals and dot and option):
            raise UserError(f"--set expects NAME.OPTION=VALUE (for example lnc.k=10), got '{setting}'")
        if names is not None and name not in names:
            raise UserError(f"--set {setting}: '{name}' is not among --metrics {','.join(names)}")
        try:
            parsed.setdefault(name, {})[option] = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise UserError(f"--set {setting}: '{text}' is not a YAML value") from error
    return {name: checked_parameters(name, given) for name, given in parsed.items()}


def parsed_settings(settings: list[str] | None, option: str = "--set") -> dict[str, Any]:
    """Return name -> value of the ``NAME=VALUE`` settings of a command-line ``option``, values as YAML.

    Raises:
        UserError: not of that form.
    """
    import yaml

    parsed = {}
    for setting in settings or []:
        name, equals, text = setting.partition("=")
        if not (name and equals):
            example = "OPTION=VALUE (for example cfg_scale=1.5)" if option == "--set" else "FIELD=VALUE"
            raise UserError(f"{option} expects {example}, got '{setting}'")
        try:
            parsed[name] = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise UserError(f"{option} {setting}: '{text}' is not a YAML value") from error
    return parsed


def at_least(option: str, value: int | None, least: int) -> None:
    """Raise `UserError` when ``value`` of the command-line ``option`` is below ``least``."""
    if value is not None and value < least:
        raise UserError(f"{option} must be at least {least}, got {value}")


def particulars(
    *given: object, masks: str | None = None, image_size: int | None = None, seed: int = 0
) -> list[str]:  # => parts of a file name
    """Return the options that were given, for the name of a default folder: runs that differ in them must not share one."""
    from latentlab.encoding import unique_slug

    told = [*given, masks, image_size and f"{image_size}px", f"seed{seed}" if seed else None]
    return [unique_slug(one if isinstance(one, Path) else str(one)) for one in told if one is not None]


def weighting_told(averaged: bool | None) -> str | None:
    """Return which weights were asked for, for the name of a default folder; None if nothing was said."""
    return None if averaged is None else "averaged" if averaged else "raw"


def as_seen_here(folder: Path) -> Path:
    """Return ``folder`` relative to the working directory if it lies in it, else its whole path: one name for one folder."""
    whole, here = folder.resolve(), Path.cwd()
    return whole.relative_to(here) if here in whole.parents else whole


def check_folder(option: str, path: Path | None) -> None:
    """Raise `UserError` when a file lies where the output folder of ``option`` should be."""
    if path is not None and path.exists() and not path.is_dir():
        raise UserError(f"{option} {path} is a file: choose another folder")
