"""Write figures/gallery/README.md, every committed picture of the studies on one page: ``make gallery``."""

import os
from pathlib import Path

ROOT = Path(__file__).parents[1]
FILE = ROOT / "figures" / "gallery" / "README.md"


def page(studies: Path, beside: Path) -> str:
    """Return the page of all pictures under ``studies``, a section per study, as Markdown with links that hold in ``beside``.

    A study is a folder with a README, whose title is the section's; the pictures of folders in it are shown with it.
    """
    sections = ["# Pictures of the studies\n\nMade by `make gallery`; drawn by the commands that each study names.\n"]
    for readme in sorted(studies.glob("*/README.md")):
        pictures = sorted(readme.parent.rglob("*.png"))
        title = readme.read_text(encoding="utf-8").partition("\n")[0].removeprefix("# ")
        sections += [f"\n## {title}\n", f"\n[What it shows]({os.path.relpath(readme, beside)})\n"] if pictures else []
        sections += [f"\n![{_name(one, readme.parent)}]({os.path.relpath(one, beside)})\n" for one in pictures]
    return "".join(sections)


def _name(picture: Path, study: Path) -> str:
    inside = [part for part in picture.relative_to(study).with_suffix("").parts if part != "figures"]
    return ": ".join(part.replace("_", " ") for part in inside)


if __name__ == "__main__":
    FILE.parent.mkdir(exist_ok=True)
    FILE.write_text(page(ROOT / "studies", FILE.parent), encoding="utf-8")
