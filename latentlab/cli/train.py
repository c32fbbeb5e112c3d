"""``latentlab train``: train a tokenizer from a configuration file."""

from pathlib import Path
from typing import Annotated

import typer

from latentlab.cli.options import Device, check_folder

app = typer.Typer(help="Train a tokenizer.", no_args_is_help=True, rich_markup_mode=None)


@app.callback()
def _commands() -> None:
    """Train a tokenizer."""


@app.command()
def tokenizer(
    config: Annotated[
        str, typer.Option("--config", metavar="FILE", help="YAML file, or the name of a shipped one (ibq).")
    ],
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="a.b=c", help="Override one setting; may be repeated.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="Run directory (default: runs/train-NAME-RELEASE).")
    ] = None,
    device: Device = "auto",
) -> None:
    """Train an image tokenizer; the same command continues an interrupted run exactly where it stopped."""
    check_folder("--out", out)

    from latentlab.runtime import choose_device, prepare_threads, say
    from latentlab.tokenizers.config import load_config
    from latentlab.tokenizers.training import Interrupted, train

    settings = load_config(config, overrides or [])
    choose_device(device)
    prepare_threads()
    folder = out or Path("runs") / f"train-{settings.name}-{settings.release}"
    try:
        weights = train(settings, folder, device=device)
    except Interrupted as stopped:
        say(str(stopped))
        raise typer.Exit(130) from None
    print(f"weights  {weights}")
    print(f"run      {folder}")
