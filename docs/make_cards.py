"""Write the metric cards into docs/metrics.md: ``make cards``."""

from pathlib import Path
from typing import Any

from latentlab.cards import all_cards
from latentlab.files import read_json_as, write_text
from latentlab.registry import BUILTIN, card_of
from latentlab.study.analysis.reaction_words import of_card

ROOT = Path(__file__).parents[1]
FILE = ROOT / "docs" / "metrics.md"
STUDY = "studies/diffusability"


def page(root: Path = ROOT) -> str:
    """Return the cards of the built-in measurements, and how each reacted in the reference study: plug-ins document themselves.

    Args:
        root: of the repository; where the study there has no analysis yet, cards are as they are in the code.
    """
    reactions = _reactions(root / STUDY / "analysis.json")
    lines = (
        {name: f"In the reference study ({STUDY}): {of_card(reactions, name)}" for name in BUILTIN} if reactions else {}
    )
    return all_cards({name: card_of(name) for name in BUILTIN}, lines)


def _reactions(analysis: Path) -> list[dict[str, Any]]:
    """Return the reactions of an analysis; empty where it is not there or has none."""
    found: list[dict[str, Any]] = (
        read_json_as(dict[str, Any], analysis).get("reactions", []) if analysis.is_file() else []
    )
    return found


if __name__ == "__main__":
    write_text(FILE, page())
