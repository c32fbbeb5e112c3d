"""``latentlab``: the application, its commands, and how a failure is told.

Commands import what they need when they run: ``latentlab --help`` must not wait for torch.
"""

import os
import sys
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from latentlab import __version__
from latentlab.cli import (
    ablate,
    analyze,
    claims,
    collapse,
    compare,
    convert,
    correlate,
    doctor,
    encode,
    evaluate,
    explain,
    fetch,
    geometry,
    report,
    sample,
    study,
    tokenizers,
    train,
    trajectories,
)
from latentlab.errors import MORE_MEMORY, UserError, is_out_of_memory

_DEBUG = "LATENTLAB_DEBUG"


class _Commands(TyperGroup):
    """Tells failures in one line: 2 for what the user can mend, 130 for an interruption, 1 for a defect of ours."""

    def invoke(self, ctx: Any) -> Any:
        """Run the chosen command."""
        try:
            result = super().invoke(ctx)
            sys.stdout.flush()  # a reader that has gone shows here, not at interpreter exit
            return result
        except UserError as error:
            _fail(f"error: {' '.join(str(error).split())}", 2)
        except KeyboardInterrupt:
            _fail("interrupted: the same command continues where it stopped", 130)
        except BrokenPipeError:  # `latentlab tokenizers | head -1`
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(0) from None
        except (typer.Exit, typer.Abort):
            raise
        except Exception as error:
            if _is_usage_error(error):
                raise
            if is_out_of_memory(error):
                _fail(f"error: {MORE_MEMORY}", 2)
            what = f"{type(error).__name__}: {' '.join(str(error).split())}"
            _fail(f"internal error: {what} (latentlab --debug COMMAND ... shows where; please report it)", 1)


def _is_usage_error(error: Exception) -> bool:
    """Whether typer itself found the mistake and will print it with the usage."""
    return hasattr(error, "exit_code") and hasattr(error, "show")


def _fail(message: str, code: int) -> None:
    """Print ``message`` and leave; under ``--debug`` with the traceback of the exception being handled."""
    if os.environ.get(_DEBUG):
        import traceback

        traceback.print_exc()
    print(message, file=sys.stderr)
    raise typer.Exit(code) from None


app = typer.Typer(
    name="latentlab",
    cls=_Commands,
    help="Measure the latent spaces of image tokenizers: how hard will they be for a diffusion model, and why.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"latentlab {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[bool, typer.Option("--version", help="Print the version.", callback=_print_version)] = False,
    debug: Annotated[bool, typer.Option("--debug", help=f"Show tracebacks (as does {_DEBUG}=1).")] = False,
) -> None:
    if debug:
        os.environ[_DEBUG] = "1"


app.command()(analyze.analyze)
app.command()(compare.compare)
app.command()(collapse.collapse)
app.command()(explain.explain)
app.command()(encode.encode)
app.add_typer(train.app, name="train")
app.add_typer(sample.app, name="sample")
app.command()(geometry.geometry)
app.command()(trajectories.trajectories)
app.command()(evaluate.evaluate)
app.command()(ablate.ablate)
app.add_typer(study.app, name="study")
app.command()(correlate.correlate)
app.command()(claims.claims)
app.command()(report.report)
app.command()(tokenizers.tokenizers)
app.command()(fetch.fetch)
app.command()(convert.convert)
app.command()(doctor.doctor)


def run() -> None:
    """Run the command line; the entry point of the console script."""
    app(prog_name="latentlab")
