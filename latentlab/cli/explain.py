"""``latentlab explain``: what a measurement means."""

import json as codec
from dataclasses import asdict
from typing import Annotated

import typer

from latentlab.cli.options import AsJson


def explain(
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="A measurement; left out: all of them in a line each.")
    ] = None,
    json: AsJson = False,
) -> None:
    """Explain a measurement: formula, units, direction, variants, invariances, confounds, known values."""
    from latentlab.cards import card_text
    from latentlab.registry import card_of, measurement_names

    if json:
        names = measurement_names() if name is None else [name]
        print(codec.dumps([asdict(card_of(n)) for n in names], indent=1))
        return
    if name is not None:
        print(card_text(name), end="")
        return
    width = max(map(len, measurement_names()))
    for known in measurement_names():
        card = card_of(known)
        print(f"{known:<{width}}  {card.better:<6}  {card.summary}")
