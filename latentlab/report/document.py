"""Bokeh models as JSON that is the same for the same models, and safe inside a page."""

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bokeh.models import UIElement

DOCUMENT = "report"


def document_json(parts: "Mapping[str, UIElement]") -> str:
    """Return what ``scripts/embed.js`` reads: the document, and which element of the page shows which part of it.

    Args:
        parts: id of an element of the page -> what it shows. All share one document, so that they can be linked.
    """
    from bokeh.document import Document

    document = Document()
    for part in parts.values():
        document.add_root(part)
    names: dict[str, str] = {}
    told = _renamed(document.to_json(deferred=False), names)
    roots = {names[part.id]: element for element, part in parts.items()}
    item = {"docid": DOCUMENT, "roots": roots, "root_ids": list(roots)}
    # "<" could end the script element that holds the text; inside JSON it may be written as an escape
    return json.dumps({"documents": {DOCUMENT: told}, "items": [item]}, allow_nan=False).replace("<", "\\u003c")


def _renamed(value: Any, names: dict[str, str]) -> Any:
    """Return Bokeh's JSON with ids numbered from 1 in order of appearance.

    Bokeh counts ids through the whole process. In its JSON the key ``id`` belongs to models only: names of users' columns are
    values, in lists of entries.
    """
    if isinstance(value, dict):
        return {
            key: names.setdefault(item, str(len(names) + 1))
            if key == "id" and isinstance(item, str)
            else _renamed(item, names)
            for key, item in value.items()
        }
    return [_renamed(item, names) for item in value] if isinstance(value, list | tuple) else value
