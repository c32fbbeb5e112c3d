"""`latentlab claims`: what it prints and writes, and the mistakes it tells."""

import json
import re
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner, Result

from latentlab.claims.evidence import Evidence
from latentlab.claims.page import page_lines, write_page
from latentlab.claims.registry import CLAIMS, chosen_claims
from latentlab.claims.verdict import Verdict
from latentlab.cli.claims import claims
from latentlab.errors import UserError

from .made_up_results import comparison, entrant

SPEC = Path(__file__).parents[4] / "shared" / "spec"
KEYS = {
    "id", "claim", "verdict", "scale", "n", "value", "low", "high", "effect", "why", "published", "command", "source",
    "table_sha256",
}  # fmt: skip


def run(*arguments: str | Path) -> Result:
    app = typer.Typer()
    app.command()(claims)
    return CliRunner().invoke(app, [str(one) for one in arguments], catch_exceptions=True)


def confirmed(folder: Path) -> Path:
    values = {"mind": 20.0, "sit": 30.0, "dit": 40.0}
    comparison(folder / "generators", *(entrant(k, k, [v, v + 0.5, v - 0.5]) for k, v in values.items()))
    return folder


def test_eighteen_claims_in_order() -> None:
    assert list(CLAIMS) == [f"C{i}" for i in range(1, 19)]


def test_prints_and_writes_the_same_bytes_again(tmp_path: Path) -> None:
    confirmed(tmp_path)
    first = run(tmp_path)
    assert first.exit_code == 0 and "1 confirmed, 0 refuted, 17 undecided" in first.output
    written = {name: (tmp_path / name).read_bytes() for name in ("CLAIMS.md", "claims.json")}
    assert run(tmp_path).exit_code == 0
    assert written == {name: (tmp_path / name).read_bytes() for name in written}
    found = json.loads(written["claims.json"])
    assert [one["id"] for one in found] == list(CLAIMS) and set(found[0]) == KEYS
    assert all(one["command"] and one["published"] for one in found)
    ninth = found[8]
    assert ninth["verdict"] == "confirmed" and ninth["n"] == 3 and ninth["low"] < ninth["value"] < ninth["high"] < 1


def test_a_folder_without_results_is_refused(tmp_path: Path) -> None:
    (tmp_path / "diffusability").mkdir()
    result = run(tmp_path)
    assert result.exit_code != 0 and "holds no results of studies" in str(result.exception)
    assert not (tmp_path / "CLAIMS.md").exists()


def test_the_page_names_the_command_that_makes_it_again(tmp_path: Path) -> None:
    folder = confirmed(tmp_path / "my studies")
    assert run(folder).exit_code == 0
    assert f"\n    latentlab claims '{folder}'\n" in (folder / "CLAIMS.md").read_text()


def test_page_has_a_row_and_a_section_per_claim(tmp_path: Path) -> None:
    lines = page_lines([claim.verdict(Evidence(confirmed(tmp_path))) for claim in CLAIMS.values()])
    assert [line for line in lines if line.startswith("## ")] == [f"## {name}" for name in CLAIMS]
    row = next(line for line in lines if line.startswith("| [C9](#c9)"))
    assert re.search(r"\*\*confirmed\*\* \| 3 \| .* \| 0\.\d+ \[0\.\d+, 0\.\d+\] \|$", row)
    assert "* command: `latentlab study generators`" in lines


def test_page_says_what_is_counted_and_what_intervals_ignore() -> None:
    rule = page_lines([])[2]
    assert "holds out for validation are counted here, since a rank correlation fits nothing" in rule
    assert "treat those of one cluster as independent and are therefore somewhat short" in rule


def test_only_prints_and_writes_nothing_unless_told_where(tmp_path: Path) -> None:
    confirmed(tmp_path)
    found = run(tmp_path, "--only", "c9,C2", "--json")
    assert [one["id"] for one in json.loads(found.output)] == ["C2", "C9"]
    assert not (tmp_path / "CLAIMS.md").exists()
    assert run(tmp_path, "--only", "C9", "--out", tmp_path / "x" / "PAGE.md").exit_code == 0
    assert {p.name for p in (tmp_path / "x").iterdir()} == {"PAGE.md", "claims.json"}


def test_mistakes(tmp_path: Path) -> None:
    for arguments, message in (
        ([tmp_path / "none"], "is not a folder of studies"),
        ([tmp_path, "--out", tmp_path], "is a folder: give a file"),
        ([tmp_path, "--only", "C99"], "unknown claim 'C99'. Did you mean C9"),
    ):
        error = run(*arguments).exception
        assert isinstance(error, UserError) and message in str(error)
    with pytest.raises(UserError, match=r"unknown claim 'VIV'\. Available: C1"):
        chosen_claims(["viv"])


def test_damaged_results_are_told_and_nothing_is_written(tmp_path: Path) -> None:
    (tmp_path / "generators").mkdir()
    (tmp_path / "generators" / "results.json").write_text('{"generators": 3}')
    error = run(tmp_path).exception
    assert isinstance(error, UserError) and "generators/results.json: " in str(error)
    assert not (tmp_path / "CLAIMS.md").exists()


def test_markdown_keeps_stars_and_underscores(tmp_path: Path) -> None:
    write_page([Verdict("C1", "a", "undecided", why="x/*_1 < 2; second", command="c")], tmp_path / "P.md")
    text = (tmp_path / "P.md").read_text()
    assert "  * x/\\*\\_1 &lt; 2\n  * second\n" in text


def test_published_numbers_are_those_of_the_tables() -> None:
    """Every FID that a claim about MIND cites is in one of the tables it cites."""
    if not SPEC.is_dir():
        pytest.skip("no shared/spec beside this checkout: the published tables are not here")
    tables = {
        "C9": ["table1_no_guidance_80ep"], "C10": ["table5_hypersphere_ablation"], "C11": ["table8_embedding_noise"],
        "C12": ["table9_residual"], "C13": ["tableS2_guidance_space"], "C14": ["tableS1_sampling", "table6_components"],
    }  # fmt: skip
    for identity, names in tables.items():
        text = "".join((SPEC / "reference_tables" / f"{name}.csv").read_text() for name in names)
        numbers = re.findall(r"\d+\.\d\d", CLAIMS[identity].published)
        assert numbers and not [one for one in numbers if not re.search(rf"(?<![\d.]){one}(?!\d)", text)]


def test_the_committed_page_names_study_files_that_are_there() -> None:
    root = Path(__file__).parents[3]
    named = re.findall(r"latentlab study run (\S+\.yaml)", (root / "studies" / "CLAIMS.md").read_text())
    assert named and all((root / file).is_file() for file in named)
