"""The page of pictures has every committed picture of a study, under the title of its study, and no other."""

import re
import runpy
from pathlib import Path

ROOT = Path(__file__).parents[1]
MAKE = runpy.run_path(str(ROOT / "docs" / "make_gallery.py"))


def test_the_committed_page_is_of_the_committed_pictures() -> None:
    text = MAKE["FILE"].read_text(encoding="utf-8")
    assert text == MAKE["page"](ROOT / "studies", MAKE["FILE"].parent), "run `make gallery`"
    shown = {(MAKE["FILE"].parent / link).resolve() for link in re.findall(r"!\[.*\]\((.*)\)", text)}
    assert shown == {path.resolve() for path in (ROOT / "studies").rglob("*.png")}


def test_sections_and_links(tmp_path: Path) -> None:
    for name in ("b/README.md", "a/README.md", "a/inner/figures/two_words.png", "a/figures/one.png", "no-text/x.png"):
        (tmp_path / "studies" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "studies" / name).write_text("# The title\nmore\n")
    text = MAKE["page"](tmp_path / "studies", tmp_path / "figures" / "gallery")
    assert text.count("## The title\n") == 1  # b has no pictures
    assert re.findall(r"!\[(.*)\]\((.*)\)", text) == [
        ("one", "../../studies/a/figures/one.png"),
        ("inner: two words", "../../studies/a/inner/figures/two_words.png"),
    ]
