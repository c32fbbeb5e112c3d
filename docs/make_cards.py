"""Write the metric cards into docs/metrics.md: ``make cards``."""

from pathlib import Path

from latentlab.cards import all_cards
from latentlab.files import write_text
from latentlab.registry import BUILTIN, card_of

FILE = Path(__file__).parent / "metrics.md"


def main() -> None:
    """Write the cards of the built-in measurements: plug-ins document themselves."""
    write_text(FILE, all_cards({name: card_of(name) for name in BUILTIN}))


if __name__ == "__main__":
    main()
