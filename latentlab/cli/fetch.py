"""``latentlab fetch``: the published weights of a tokenizer onto this machine, verified."""

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from latentlab.errors import UserError

if TYPE_CHECKING:
    from latentlab.weight_file import WeightFile


def fetch(
    tokenizer: Annotated[str, typer.Argument(metavar="NAME", help="A tokenizer: see `latentlab tokenizers`.")],
    release: Annotated[
        str | None, typer.Option("--release", metavar="NAME", help="Which weights (default: the first published ones).")
    ] = None,
) -> None:
    """Download the published weights of a tokenizer, with all files that belong to them, and verify them.

    Without --release the first published one. An interrupted download is resumed; what is here already is verified. Without
    a network the message names the file, where it comes from, and the folder to put it in.
    """
    from latentlab.downloading import DownloadError
    from latentlab.tokenizers.zoo import published_namesake, published_release, release_files, releases_of

    chosen = published_release(tokenizer, release)
    if chosen.embedded:
        other = published_namesake(tokenizer)
        hint = f"; did you mean {other}?" if other else ""
        print(f"'{tokenizer}' {chosen.name} ships with latentlab: there is nothing to fetch{hint}")
        return
    files = release_files(chosen)
    for number, file in enumerate(files):
        try:
            _fetch(file, chosen.licence)
        except DownloadError as error:
            raise UserError(f"{error}{_further(files[number + 1 :])}{_ungated(tokenizer, file)}") from error
    print(f"ready    {tokenizer}, release {chosen.name}, licence {chosen.licence}")
    others = [known.name for known in releases_of(tokenizer) if not known.embedded and known is not chosen]
    if others:
        print(f"others   {', '.join(others)}: fetch them with --release")


def _further(files: "Sequence[WeightFile]") -> str:
    """Say where the files go that are missing, too, and what to do with files that lie elsewhere."""
    from latentlab.weights import local_copy, places_of

    missing = [file for file in files if local_copy(file) is None]
    others = f", and {' and '.join(file.filename for file in missing)} at {places_of(missing)}" if missing else ""
    return f"{others}; or give --weights PATH to the command that needs them"


def _ungated(tokenizer: str, file: "WeightFile") -> str:
    """Name releases that anyone may download in place of a file that needs an account; empty where that is not needed."""
    from latentlab.tokenizers.zoo import release_files, releases_of

    releases = releases_of(tokenizer) if file.gated else ()
    free = [one.name for one in releases if not any(other.gated for other in release_files(one)) and not one.embedded]
    return f"; no account is needed for --release {' or '.join(free)}" if free else ""


def _fetch(file: "WeightFile", licence: str) -> None:
    """Download one file, or verify the one that is here; say which, and how far it could be verified."""
    from latentlab.files import file_sha256
    from latentlab.weights import download_weights, local_copy

    path = local_copy(file)
    if path is None:
        print(f"fetching {file.filename} ({file.size_text}, {licence}) from {file.origin}", file=sys.stderr, flush=True)
        path, news = download_weights(file), "fetched "
    elif wrong := file.misfit(path):
        raise UserError(f"{path} {wrong}: it is not the published file; delete it and fetch again")
    else:
        news = "here    "
    known = "as published" if file.sha256 else f"{file_sha256(path)} (none is published to compare with)"
    print(f"{news} {path} ({path.stat().st_size / 1e6:,.1f} MB, SHA-256 {known})")
