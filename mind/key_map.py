"""Names of parameters here and in a published checkpoint: a few prefixes, and others inside the numbered blocks."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

BLOCK = re.compile(r"(blocks\.(\d+)\.)(.*)")
"""A name inside a numbered block: the prefix, the number, the rest."""


@dataclass(frozen=True)
class KeyMap:
    """A renaming that loses nothing.

    Attributes:
        prefixes: ours -> theirs, outside the blocks.
        in_block: ours -> theirs, after ``blocks.0.``.
    """

    prefixes: Mapping[str, str]
    in_block: Mapping[str, str]

    def published_name(self, own: str) -> str:
        """Return the published name of the parameter or buffer that is called ``own`` here."""
        if found := BLOCK.fullmatch(own):
            return found[1] + _replaced(found[3], self.in_block)
        return _replaced(own, self.prefixes)

    def own_names(self, names: Iterable[str]) -> dict[str, str]:
        """Return published name -> own name for state dict keys ``names``: the way back."""
        return {self.published_name(name): name for name in names}


def _replaced(name: str, prefixes: Mapping[str, str]) -> str:
    for ours, theirs in prefixes.items():
        if name.startswith(ours):
            return theirs + name.removeprefix(ours)
    return name
