"""``latentlab sample``: images from a trained generator."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from latentlab.cli.options import (
    Averaged,
    DecoderName,
    DecoderRelease,
    DecoderWeights,
    Device,
    Precision,
    SamplerOptions,
    Seed,
    at_least,
    check_folder,
    parsed_settings,
    weighting_told,
)
from latentlab.errors import UserError

if TYPE_CHECKING:
    from mind.generate import Generated

_RUNS = Path("runs")
_WEIGHTS = (
    "Weight file, or the folder of a training run; of MIND also embedded weights by name or the authors' checkpoint."
)
_CLASSES, _PER_CLASS = 10, 4
"""What is made when nothing is said: so many images of each of the first classes."""

app = typer.Typer(help="Make images with a trained generator.", no_args_is_help=True, rich_markup_mode=None)


@app.callback()
def _commands() -> None:
    """Make images with a trained generator."""


def _add(kind: str, what: str, default: str | None) -> None:
    """Add the command that samples one kind of generator."""

    @app.command(
        name=kind,
        help=f"Sample class-conditional images with {what}; the same command continues an interrupted run.\n\n"
        "Image i depends on the seed, its class and i alone, not on the batch size (up to rounding) or the number of "
        "processes (torchrun).",
    )
    def command(
        weights: Annotated[str | None, typer.Option("--weights", metavar="FILE", help=_WEIGHTS)] = default,
        n: Annotated[
            int | None,
            typer.Option(
                "--n",
                "--images",  # torchrun takes "--n" for an option of its own, wherever it stands
                metavar="N",
                help=f"Number of images (default: {_PER_CLASS} of each of the first {_CLASSES} classes).",
            ),
        ] = None,
        classes: Annotated[
            str | None,
            typer.Option("--classes", metavar="0,1,2", help="Only these classes (default: all of the model)."),
        ] = None,
        per_class: Annotated[
            int | None, typer.Option("--per-class", metavar="K", help="K images of every class, instead of --n.")
        ] = None,
        labels: Annotated[
            Literal["equal", "random"],
            typer.Option(
                "--labels", help="Every class equally often (what is left of --n at random), or all at random."
            ),
        ] = "equal",
        settings: SamplerOptions = None,
        seed: Seed = 0,
        batch_size: Annotated[
            int | None,
            typer.Option("--batch-size", metavar="N", help="Images at a time (default: by model and device)."),
        ] = None,
        precision: Precision = None,
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
            Path | None,
            typer.Option("--out", metavar="DIR", help="Folder of the images (default: runs/sample-NAME-...)."),
        ] = None,
        device: Device = "auto",
        png: Annotated[bool, typer.Option("--png", help="Write every image as a PNG file too.")] = False,
        npz: Annotated[
            bool, typer.Option("--npz/--no-npz", help="Write all images in one file, in the format of the ADM suite.")
        ] = True,
    ) -> None:
        for option, value, least in (
            ("--n", n, 1), ("--per-class", per_class, 1), ("--batch-size", batch_size, 1)
        ):  # fmt: skip
            at_least(option, value, least)
        check_folder("--out", out)
        if weights is None:
            raise UserError(f"--weights is missing: give what `latentlab train {kind}` exported")
        if per_class is not None and (n is not None or labels == "random"):
            raise UserError("--per-class says how many images of every class: leave out --n and --labels random")
        named, values = _parsed_classes(classes), parsed_settings(settings)
        fields = parsed_settings(model, "--model")
        if fields and kind != "mind":
            raise UserError(
                "--model is for the authors' checkpoints of MIND: weight files of baselines tell their shape"
            )

        from latentlab.encoding import unique_slug
        from latentlab.ranks import joined_ranks
        from latentlab.runtime import choose_device, prepare_threads
        from mind.generate import generate
        from mind.kinds import open_weights
        from mind.open_generator import TokenizerChoice

        where = choose_device(device)
        prepare_threads()
        decoder = TokenizerChoice(tokenizer, release, tokenizer_weights)
        asked: dict[str, Any] = {"model": fields} if kind == "mind" else {}
        asked |= {"settings": values, "tokenizer": decoder, "precision": precision, "averaged": averaged}
        generator = open_weights(kind, weights, device=where, **asked)
        if n is None and per_class is None and named is None:
            named = list(range(min(_CLASSES, generator.num_classes)))
        count = n or (per_class or _PER_CLASS) * len(named or range(generator.num_classes))
        rule = labels if labels != "equal" else None
        particulars = [
            n,
            per_class,
            classes,
            rule,
            weighting_told(averaged),
            precision,
            *(settings or []),
            *(model or []),
            seed or None,
        ]
        source = Path(weights).resolve()
        told = source.parent.name if source.stem in (kind, f"{kind}_ema") else source.stem
        name = "-".join([f"sample-{kind}", told, *(str(one) for one in particulars if one is not None)])
        with joined_ranks() as ranks:
            made = generate(
                generator,
                out or _RUNS / unique_slug(name),
                n=count,
                labels=labels,
                classes=named,
                batch_size=batch_size,
                seed=seed,
                ranks=ranks,
                npz=npz,
                png=png,
            )
        if ranks.first:
            _report(made, png)


def _report(made: "Generated", png: bool) -> None:
    """Print where everything is."""
    print(f"grid      {made.grid}")
    if made.npz is not None:
        print(f"samples   {made.npz}")
    if png:
        print(f"pictures  {made.folder / 'png'}")
    print(f"settings  {made.folder / 'settings.json'}")


def _parsed_classes(classes: str | None) -> list[int] | None:
    """Return the numbers of ``--classes 0,1,2``."""
    if classes is None:
        return None
    try:
        return [int(one) for one in classes.split(",")]
    except ValueError as error:
        raise UserError(f"--classes expects numbers with commas between (0,1,2), got '{classes}'") from error


_add("mind", "MIND, diffusion of tokens on the hypersphere", "fashion32")
_add("sit", "SiT", None)
_add("lightningdit", "LightningDiT", None)
_add("dit", "DiT", None)
_add("emigm", "eMIGM", None)
