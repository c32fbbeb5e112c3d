"""``latentlab convert``: the tensors of a pickled checkpoint as safetensors, without running what is in it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

_SHOWN = 10


def convert(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Checkpoint of torch.save (.ckpt, .pt, .pth, .bin).")],
    out: Annotated[
        Path | None,
        typer.Argument(metavar="OUT", help="File to write; ends in .safetensors (default: beside FILE, by its name)."),
    ] = None,
) -> None:
    """Convert a checkpoint that asks for more than tensors to safetensors, once.

    Nothing in the file is run: classes and functions it names stay names, and what they would make is left out and listed.
    Names that belong neither to tensors nor to records of training are listed as NOT RUN: loading such a file in another
    program may run them. Entries such as ema and state_dict are kept, so that tokenizers find the same weights in the new
    file. A file that is there already is never overwritten.
    """
    from latentlab.conversion import convert_checkpoint
    from latentlab.weights import check_file

    check_file(file)
    target = file.with_suffix(".safetensors") if out is None else out
    found = convert_checkpoint(file, target)
    inside = f" (entries: {', '.join(found.entries)})" if found.entries else ""
    print(f"tensors  {len(found.tensors):,} in {target}{inside}")
    _list("dropped ", found.dropped)
    _list("NOT RUN ", found.not_run)
    if found.not_run:
        print(
            f"warning  {file} asks to run or import what is named above, which no tensors need. Nothing of it was run or "
            "imported; load the file itself in no other program unless you trust its source"
        )


def _list(label: str, lines: Sequence[str]) -> None:
    """Print the first few, and how many more there are."""
    for line in lines[:_SHOWN]:
        print(f"{label} {line}")
    if len(lines) > _SHOWN:
        print(f"{label} {len(lines) - _SHOWN:,} more")
