"""Shipped configurations say what they make, how, how good it gets and how long it takes; the scores are the table's."""

import re
from pathlib import Path

import pytest

from latentlab.tokenizers.config import CONFIGS
from latentlab.tokenizers.embedded import embedded_names

PAGE = Path(__file__).parents[3] / "docs" / "embedded_tokenizers.md"


def scores() -> dict[str, dict[str, str]]:
    """Return the table of the page: tokenizer -> column -> cell."""
    rows = [line.strip("|").split("|") for line in PAGE.read_text().splitlines() if line.startswith("|")]
    head, _, *lines = [[cell.strip() for cell in row] for row in rows]
    return {line[0]: dict(zip(head, line, strict=True)) for line in lines}


@pytest.mark.parametrize("file", sorted(CONFIGS.glob("*.yaml")), ids=lambda file: file.stem)
def test_header(file: Path) -> None:
    header = "".join(line for line in file.read_text().splitlines(keepends=True) if line.startswith("#"))
    name = file.stem.partition("_")[0]
    assert f"# Command: latentlab train tokenizer --config {name} " in header
    found = re.search(r"# Expected: PSNR (\d+\.\d\d) dB.*about \d+ minutes of one CPU", header)
    assert found is not None
    if name in embedded_names():
        row, rfd = scores()[name], re.search(r"rfd (0\.\d+)", found[0])
        assert float(found[1]) == pytest.approx(float(row["psnr"].split()[0]), abs=0.006)
        assert rfd is not None and float(rfd[1]) == pytest.approx(float(row["rfd"].split()[0]), abs=6e-5)


def test_the_table_is_of_all_embedded_tokenizers() -> None:
    assert set(scores()) == set(embedded_names())


def test_all_are_within_a_fifth_of_each_other() -> None:
    """As the page says: matched in reconstruction, and the intervals overlap."""
    assert "All eight are matched" in PAGE.read_text() and len(scores()) == 8
    distances = [float(row["rfd"].split()[0]) for row in scores().values()]
    assert max(distances) <= 1.2 * min(distances)
    ends = [re.search(r"\[(.*), (.*)\]", row["rfd"]) for row in scores().values()]
    assert max(float(end[1]) for end in ends if end) < min(float(end[2]) for end in ends if end)
