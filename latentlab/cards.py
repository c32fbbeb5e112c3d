"""Metric cards for reading: what ``latentlab explain`` prints, and ``docs/metrics.md``."""

import inspect
from collections.abc import Iterator, Mapping
from textwrap import fill
from typing import Any

from latentlab.measurement import MetricCard
from latentlab.registry import find_measurement, keyword_parameters

_BETTER = {
    "lower": "lower is easier to learn",
    "higher": "higher is easier to learn",
    "none": "describes, does not rank",
}
_WIDTH = 110
_SUPPLIED = ("images", "encode", "decode", "codebook", "device", "seed")
"""Arguments that a command supplies: not options of a measurement."""

_INTRODUCTION = """# Measurements

Every measurement latentlab knows: what it says, the exact definition, and what to beware of. Written by `make cards` from the
cards in the code; `latentlab explain NAME` prints one. Options are given as `--set NAME.OPTION=VALUE` on the command line and as
keywords of `latentlab.measure`. Shapes: n images, c channels, h w grid, s = h w cells, k classes, d = c s dimensions, t flow
time (0 noise, 1 data).

| name | measurement | easier | needs |
| --- | --- | --- | --- |
"""


def card_markdown(name: str) -> str:
    """Return the card of the measurement ``name`` as a Markdown section."""
    card = find_measurement(name).card  # type: ignore[attr-defined]
    lines = [f"## {name}: {card.title}", "", _sentence(card.summary), "", "```text", card.formula, "```", ""]
    lines += [f"* **{label}**: {text}" for label, text in _facts(name, card)]
    for heading, table in (("Variants", card.variants), ("Known values", card.known_values)):
        if table:
            lines += ["", f"**{heading}**", "", *_table(table)]
    return "\n".join(lines) + "\n"


def card_text(name: str) -> str:
    """Return the card of the measurement ``name`` for a terminal."""
    card = find_measurement(name).card  # type: ignore[attr-defined]
    lines = [f"{name}: {card.title}", _sentence(card.summary), "", f"    {card.formula}", ""]
    lines += [fill(f"{label}: {text}", _WIDTH, subsequent_indent="    ") for label, text in _facts(name, card)]
    for heading, table in (("variants", card.variants), ("known values", card.known_values)):
        if table:
            lines += ["", f"{heading}:", *(_hanging(f"{case}: {what}") for case, what in table.items())]
    return "\n".join(lines) + "\n"


def all_cards(cards: Mapping[str, MetricCard], last_lines: Mapping[str, str] | None = None) -> str:
    """Return the content of ``docs/metrics.md``: an overview and every card.

    Args:
        cards: by name.
        last_lines: name -> with what its card ends.
    """
    rows = [
        f"| [{name}](#{_anchor(name, card)}) | {card.title} | {card.better if card.better != 'none' else '-'} | "
        f"{', '.join(card.needs) or 'latents'} |"
        for name, card in cards.items()
    ]
    ends = {name: f"\n{line}\n" for name, line in (last_lines or {}).items()}
    return _INTRODUCTION + "\n".join(rows) + "\n\n" + "\n".join(card_markdown(n) + ends.get(n, "") for n in cards)


def options_of(name: str) -> dict[str, Any]:
    """Return option -> default of the measurement ``name``, without what a command supplies by itself."""
    function = find_measurement(name)
    parameters = inspect.signature(function).parameters
    return {key: parameters[key].default for key in keyword_parameters(function) if key not in _SUPPLIED}


def _hanging(text: str) -> str:
    return fill(text, _WIDTH, initial_indent="    ", subsequent_indent="        ")


def _facts(name: str, card: MetricCard) -> Iterator[tuple[str, str]]:
    yield "direction", _BETTER[card.better]
    yield "unit", card.unit
    yield "range", card.range
    yield "needs", ", ".join(card.needs) or "latents only"
    if card.uses:
        yield "uses", card.uses
    options = (f"{key}={_default(value)}" for key, value in options_of(name).items())
    yield "options and defaults", ", ".join(options) or "none"
    if card.on_request:
        by_itself = "trajectory" in card.needs
        yield "made", "by `latentlab trajectories`" if by_itself else "on request only: name it in --metrics"
    for label in ("invariances", "confounds", "bias", "source", "test"):
        if text := getattr(card, label):
            yield {"bias": "small samples", "test": "shown by"}.get(label, label), text


def _default(value: Any) -> str:
    return "(must be given)" if value is inspect.Parameter.empty else repr(value)


def _sentence(text: str) -> str:
    """Return ``text`` beginning with a capital and ending with a full stop."""
    return text[:1].upper() + text[1:].rstrip(".") + "."


def _table(rows: Mapping[str, str]) -> list[str]:
    return ["| | |", "| --- | --- |", *(f"| {_escape(case)} | {_escape(what)} |" for case, what in rows.items())]


def _escape(text: str) -> str:
    return text.replace("|", "\\|")


def _anchor(name: str, card: MetricCard) -> str:
    """Return the anchor that Markdown viewers give to the heading of a card."""
    heading = f"{name}: {card.title}".lower()
    return "".join(c if c.isalnum() or c in "-_" else "-" if c == " " else "" for c in heading)
