"""Metric cards of the measurements of a study, as HTML."""

from collections.abc import Iterable
from dataclasses import dataclass

from latentlab.errors import UserError
from latentlab.report.contents import Records
from latentlab.study.analysis.reaction_words import of_card

_PREFIX = "m_"


@dataclass(frozen=True)
class Card:
    """What one measurement means.

    Attributes:
        name: as it is registered.
        title: of the card.
        html: made from the card's Markdown; raw HTML in it shows as text.
        reactions: how it reacted in the study, as plain text; empty where that is not known.
    """

    name: str
    title: str
    html: str
    reactions: str


def measurements_in(columns: Iterable[str]) -> list[str]:
    """Return registered names of measurements in columns ``m_NAME`` and ``m_NAME.COMPANION``, each once."""
    names = (column.removeprefix(_PREFIX).split(".")[0] for column in columns if column.startswith(_PREFIX))
    return list(dict.fromkeys(names))


def cards_of(names: Iterable[str], reactions: Records) -> tuple[list[Card], list[str]]:
    """Return the cards, and the names that this installation does not know.

    Args:
        names: of measurements.
        reactions: of the analysis of the study; empty where it has none.
    """
    cards, unknown = [], []
    for name in names:
        try:
            cards.append(_card(name, of_card(reactions, name) if reactions else ""))
        except UserError:
            unknown.append(name)
    return cards, unknown


def _card(name: str, reactions: str) -> Card:
    from markdown_it import MarkdownIt

    from latentlab.cards import card_markdown

    heading, _, body = card_markdown(name).partition("\n")
    title = heading.removeprefix(f"## {name}: ")
    html = MarkdownIt("commonmark", {"html": False}).enable("table").render(body)
    return Card(name, title, html, reactions)
