"""``latentlab claims``: what the committed results say about each published claim."""

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from latentlab.cli.options import AsJson
from latentlab.errors import UserError

_STUDIES = Path("studies")


def claims(
    studies: Annotated[
        Path, typer.Argument(metavar="STUDIES_DIR", help="Folder of studies, or of one study of tokenizers.")
    ] = _STUDIES,
    only: Annotated[
        str | None, typer.Option("--only", metavar="C2,C9", help="Judge these; nothing is written without --out.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="CLAIMS.md", help="The page (default: CLAIMS.md in STUDIES_DIR)."),
    ] = None,
    json: AsJson = False,
) -> None:
    """Judge the published claims by results: confirmed, refuted or undecided at this scale.

    Prints a table and writes the page, with claims.json beside it. A claim whose results are missing is undecided, and the
    command that would make them is named.
    """
    if not studies.is_dir():
        raise UserError(
            f"{studies} is not a folder of studies: give the one that holds diffusability/, generators/, ..."
        )
    if out is not None and out.is_dir():
        raise UserError(f"--out {out} is a folder: give a file (for example {out / 'CLAIMS.md'})")

    from latentlab.claims.evidence import Evidence
    from latentlab.claims.page import as_json, print_verdicts, write_page
    from latentlab.claims.registry import chosen_claims

    evidence, asked = Evidence(studies), chosen_claims(None if only is None else only.split(","))
    if evidence.is_empty:
        raise UserError(
            f"{studies} holds no results of studies (no results.csv or results.json): give the folder that holds "
            "diffusability/, generators/, ..."
        )
    verdicts = [claim.verdict(evidence) for claim in asked]
    if json:
        import json as codec

        print(codec.dumps(as_json(verdicts, evidence.table_sha256), indent=1, allow_nan=False))
    else:
        print_verdicts(verdicts)
    page = out or (studies / "CLAIMS.md" if only is None else None)
    if page is not None:
        news = sys.stderr if json else sys.stdout
        written = write_page(verdicts, page, _command(studies, only), evidence.table_sha256)
        print(f"page     {page}\nclaims   {written}", file=news)


def _command(studies: Path, only: str | None) -> str:
    """Return the command that judges the same claims by the same results."""
    words = ["latentlab", "claims"]
    words += [str(studies)] if studies != _STUDIES else []
    words += ["--only", only] if only else []
    return shlex.join(words)
