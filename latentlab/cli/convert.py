"""``latentlab convert``: the tensors of a pickled checkpoint as safetensors, without running what is in it."""

from pathlib import Path
from typing import Annotated

import typer

_SHOWN = 10


def convert(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Checkpoint of torch.save (.ckpt, .pt, .pth, .bin).")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="File to write; ends in .safetensors.")],
) -> None:
    """Convert a checkpoint that asks for more than tensors to safetensors, once.

    Nothing in the file is run: classes and functions it names stay names, and what they would make is left out and listed.
    Entries such as ema and state_dict are kept, so that tokenizers find the same weights in the new file.
    """
    from latentlab.conversion import convert_checkpoint

    found = convert_checkpoint(file, out)
    inside = f" (entries: {', '.join(found.entries)})" if found.entries else ""
    print(f"tensors  {len(found.tensors):,} in {out}{inside}")
    for line in found.dropped[:_SHOWN]:
        print(f"dropped  {line}")
    if len(found.dropped) > _SHOWN:
        print(f"dropped  {len(found.dropped) - _SHOWN:,} more")
