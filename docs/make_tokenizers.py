"""Write the table of tokenizers into docs/tokenizers.md: ``make cards``."""

import os
import tempfile
from pathlib import Path

FILE = Path(__file__).parent / "tokenizers.md"
START, END = "<!-- table: made by `make cards` -->\n", "<!-- end of table -->\n"
COLUMNS = ("tokenizer", "release", "kind", "latent (image size)", "codes", "size", "licence", "published at")


def table() -> str:
    """Return the table as Markdown; it says nothing that depends on this machine, if its caches are empty."""
    from latentlab.tokenizers.zoo import plugins, zoo_entries

    rows = [_row(entry) for entry in zoo_entries() if entry.name not in plugins()]
    lines = [COLUMNS, ["---"] * len(COLUMNS), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def page(text: str) -> str:
    """Return the page ``text`` with the table as it is now."""
    before, _, rest = text.partition(START)
    return before + START + "\n" + table() + "\n" + END + rest.partition(END)[2]


def _row(entry) -> list[str]:
    shape = f"{'x'.join(map(str, entry.latent_shape))} ({entry.image_size})" if entry.latent_shape else ""
    codes = f"{entry.codebook_size:,}" if entry.codebook_size else ""
    kind = "plain" if entry.kind == "none" else entry.kind or ""
    return [entry.name, entry.release, kind, shape, codes, entry.size_text, entry.licence or "", _origin(entry)]


def _origin(entry) -> str:
    if entry.source is None:
        return "in the package"
    if entry.source.url is None:
        return f"[{entry.source.repo}](https://huggingface.co/{entry.source.repo})"
    host = entry.source.url.split("/")[2]
    return f"[{host}]({entry.source.url})"


def main() -> None:
    """Write the page as on a machine without any weights."""
    with tempfile.TemporaryDirectory() as empty:
        os.environ |= {"LATENTLAB_HOME": empty, "HF_HUB_CACHE": empty}
        FILE.write_text(page(FILE.read_text()))


if __name__ == "__main__":
    main()
