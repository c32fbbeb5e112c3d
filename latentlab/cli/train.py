"""``latentlab train``: train a tokenizer or a generator from a configuration file."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from latentlab.cli.options import Device, check_folder

app = typer.Typer(help="Train a tokenizer or a generator.", no_args_is_help=True, rich_markup_mode=None)

Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="a.b=c", help="Override one setting; may be repeated.")
]


@app.callback()
def _commands() -> None:
    """Train a tokenizer or a generator."""


@app.command()
def tokenizer(
    config: Annotated[
        str,
        typer.Option(
            "--config",
            metavar="FILE",
            help="YAML file, FILE#ROW of a file of many, or the name of a shipped one (ibq).",
        ),
    ],
    overrides: Overrides = None,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="Run directory (default: runs/train-NAME-RELEASE).")
    ] = None,
    device: Device = "auto",
) -> None:
    """Train an image tokenizer; under torchrun, on all its processes.

    The same command continues an interrupted run exactly where it stopped.
    """
    check_folder("--out", out)

    from latentlab.tokenizers.config import load_config
    from latentlab.tokenizers.training import train

    settings = load_config(config, overrides or [])
    folder = out or Path("runs") / f"train-{settings.name}-{settings.release}"
    _run(lambda: train(settings, folder, device=device), device, folder)


def _generator(kind: str, what: str, example: str) -> None:
    """Add the command that trains one kind of generator."""

    @app.command(
        name=kind,
        help=f"Train {what}; under torchrun, on all its processes.\n\n"
        "The same command continues an interrupted run exactly where it stopped.",
    )
    def command(
        config: Annotated[
            str, typer.Option("--config", metavar="FILE", help=f"YAML file, or the name of a shipped one ({example}).")
        ],
        overrides: Overrides = None,
        out: Annotated[
            Path | None, typer.Option("--out", metavar="DIR", help="Run directory (default: runs/train-NAME).")
        ] = None,
        device: Device = "auto",
    ) -> None:
        check_folder("--out", out)

        from mind.kinds import open_recipe, read_run
        from mind.training import train

        settings = read_run(kind, config, overrides or [])
        folder = out or Path("runs") / f"train-{settings.name}"
        recipe = partial(open_recipe, kind, settings)
        _run(lambda: train(settings, recipe, folder, device=device), device, folder)


_generator("mind", "MIND, diffusion of tokens on the hypersphere", "mind-b")
_generator("sit", "SiT, a flow on continuous latents", "sit-fashion")
_generator("lightningdit", "LightningDiT, a flow on continuous latents", "lightningdit-fashion")
_generator("dit", "DiT, denoising diffusion on continuous latents", "dit-fashion")
_generator("emigm", "eMIGM, a masked generator of continuous latents or codes", "emigm-fashion")


def _run(work: Callable[[], Path], device: str, folder: Path) -> None:
    """Train and say where the results are; an interruption that left a checkpoint exits with 130."""
    from latentlab.ranks import launched_ranks
    from latentlab.run_folder import Interrupted
    from latentlab.runtime import choose_device, prepare_threads, say

    choose_device(device)
    prepare_threads()
    try:
        weights = work()
    except Interrupted as stopped:
        say(str(stopped))
        raise typer.Exit(130) from None
    if launched_ranks().first:
        print(f"weights  {weights}")
        print(f"run      {folder}")
