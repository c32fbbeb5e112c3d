"""Finished steps of a run: one JSON file each, taken again as long as its key, which names all inputs, is the same."""

from pathlib import Path
from typing import Any

from latentlab.errors import UserError
from latentlab.files import read_json, write_json


class FinishedSteps:
    """The finished steps in one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def get(self, name: str, key: str) -> Any | None:
        """Return what `put` was given for ``name``; None when it is absent, unreadable or belongs to another ``key``."""
        try:
            kept = read_json(self._file(name))
        except UserError:  # absent, or damaged by something else than us: do the step again
            return None
        return kept.get("content") if isinstance(kept, dict) and kept.get("key") == key else None

    def put(self, name: str, key: str, content: Any) -> None:
        """Keep ``content`` (JSON values) as the finished step ``name``, atomically."""
        write_json(self._file(name), {"key": key, "content": content})

    def __contains__(self, name: str) -> bool:
        return self._file(name).exists()

    def _file(self, name: str) -> Path:
        return self.folder / f"{name.replace('/', '-')}.json"
