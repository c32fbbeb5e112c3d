"""What the page does in the browser, one JavaScript file per action."""

from importlib.resources import files


def script(name: str) -> str:
    """Return the text of a file of this folder."""
    return files(__name__).joinpath(name).read_text(encoding="utf-8")
