"""Metric cards of the measurements of a study, as HTML."""

from collections.abc import Iterable
from dataclasses import dataclass

from latentlab.errors import UserError

_PREFIX = "m_"


@dataclass(frozen=True)
class Card:
    """What one measurement means; ``html`` is made from the card's Markdown, raw HTML in it shows as text."""

    name: str
    title: str
    html: str


def measurements_in(columns: Iterable[str]) -> list[str]:
    """Return registered names of measurements in columns ``m_NAME`` and ``m_NAME.COMPANION``, each once."""
    names = (column.removeprefix(_PREFIX).split(".")[0] for column in columns if column.startswith(_PREFIX))
    return list(dict.fromkeys(names))


def cards_of(names: Iterable[str]) -> tuple[list[Card], list[str]]:
    """Return the cards, and the names that this installation does not know."""
    cards, unknown = [], []
    for name in names:
        try:
            cards.append(_card(name))
        except UserError:
            unknown.append(name)
    return cards, unknown


def _card(name: str) -> Card:
    from markdown_it import MarkdownIt

    from latentlab.cards import card_markdown

    heading, _, body = card_markdown(name).partition("\n")
    title = heading.removeprefix(f"## {name}: ")
    return Card(name, title, MarkdownIt("commonmark", {"html": False}).enable("table").render(body))
