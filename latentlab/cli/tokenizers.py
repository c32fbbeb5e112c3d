"""``latentlab tokenizers``: what can be loaded by name, and which weights are here."""

import json as codec
from typing import TYPE_CHECKING, Any

from latentlab.cli.options import AsJson

if TYPE_CHECKING:
    from latentlab.tokenizers import ZooEntry

_COLUMNS = ("tokenizer", "release", "kind", "latent (image size)", "codes", "size", "licence", "weights")
_NUMBERS = ("codes", "size")
_UNKNOWN = "size unknown: the authors publish none, and the file is not here; it may be several hundred MB"
_HINT = (
    "not here: `latentlab fetch NAME --release RELEASE` downloads the weights; without a network it says from where they come "
    "and where to put them"
)


def tokenizers(json: AsJson = False) -> None:
    """List the tokenizers and their weights.

    Shows releases, latent shapes, codebooks, sizes, licences, and whether the weights are on this machine.
    """
    from latentlab.tokenizers import zoo_entries

    entries = zoo_entries()
    if json:
        print(codec.dumps([describe(entry) for entry in entries], indent=1))
        return
    from latentlab.report_table import print_tables

    remarks = [_UNKNOWN] if any(entry.size_text == "unknown" for entry in entries) else []
    remarks += [_HINT] if any(entry.source is not None and not entry.present for entry in entries) else []
    print_tables([("", _COLUMNS, [_row(entry) for entry in entries])], remarks, right=_NUMBERS)


def describe(entry: "ZooEntry") -> dict[str, Any]:
    """Return one entry as JSON values."""
    return {
        "name": entry.name,
        "release": entry.release,
        "kind": entry.kind,
        "latent_shape": None if entry.latent_shape is None else list(entry.latent_shape),
        "image_size": entry.image_size,
        "codebook_size": entry.codebook_size,
        "size_bytes": entry.size,
        "size": entry.size_text,
        "licence": entry.licence,
        "origin": None if entry.source is None else entry.source.origin,
        "weights_present": entry.present,
        "weights_path": None if entry.path is None else str(entry.path),
    }


def _row(entry: "ZooEntry") -> tuple[str, ...]:
    shape = "" if entry.latent_shape is None else f"{' x '.join(map(str, entry.latent_shape))} ({entry.image_size})"
    codes = "" if entry.codebook_size is None else f"{entry.codebook_size:,}"
    kind = "plain" if entry.kind == "none" else entry.kind or ""
    return entry.name, entry.release, kind, shape, codes, entry.size_text, entry.licence or "", _weights(entry)


def _weights(entry: "ZooEntry") -> str:
    """Say in words whether the weights are here."""
    if entry.release == "plug-in":
        return "plug-in"
    if entry.source is None:
        return "embedded" if entry.present else "missing: install latentlab again"
    return "here" if entry.present else "not here"
