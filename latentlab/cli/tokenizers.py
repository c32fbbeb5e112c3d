"""``latentlab tokenizers``: what can be loaded by name, and which weights are here."""

import json as codec
import sys
from typing import TYPE_CHECKING, Any

from latentlab.cli.options import AsJson

if TYPE_CHECKING:
    from latentlab.tokenizers import ZooEntry

_COLUMNS = ("tokenizer", "release", "kind", "latent (image size)", "codes", "licence", "weights")
_PLAIN_WIDTH = 160


def tokenizers(json: AsJson = False) -> None:
    """List the tokenizers and their weights.

    Shows releases, latent shapes, codebooks, licences, and whether the weights are on this machine.
    """
    from latentlab.tokenizers import zoo_entries

    entries = zoo_entries()
    if json:
        print(codec.dumps([describe(entry) for entry in entries], indent=1))
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table()
    for column in _COLUMNS:
        table.add_column(column, justify="right" if column == "codes" else "left", overflow="fold")
    for entry in entries:
        table.add_row(*map(Text, _row(entry)))
    Console(width=None if sys.stdout.isatty() else _PLAIN_WIDTH, highlight=False).print(table)


def describe(entry: "ZooEntry") -> dict[str, Any]:
    """Return one entry as JSON values."""
    return {
        "name": entry.name,
        "release": entry.release,
        "kind": entry.kind,
        "latent_shape": None if entry.latent_shape is None else list(entry.latent_shape),
        "image_size": entry.image_size,
        "codebook_size": entry.codebook_size,
        "licence": entry.licence,
        "weights_present": entry.present,
        "weights_path": None if entry.path is None else str(entry.path),
    }


def _row(entry: "ZooEntry") -> tuple[str, ...]:
    shape = "" if entry.latent_shape is None else f"{' x '.join(map(str, entry.latent_shape))} ({entry.image_size})"
    codes = "" if entry.codebook_size is None else f"{entry.codebook_size:,}"
    kind = "plain" if entry.kind == "none" else entry.kind or ""
    return entry.name, entry.release, kind, shape, codes, entry.licence or "", _weights(entry)


def _weights(entry: "ZooEntry") -> str:
    """Say in words where the weights are, or where they come from."""
    if entry.release == "plug-in":
        return "plug-in"
    if entry.source is None:
        return "embedded" if entry.present else "missing: install latentlab again"
    return str(entry.path) if entry.present else f"not here; published at {entry.source.origin}"
