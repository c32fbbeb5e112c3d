"""The commands and the Python of docs/correlation.md work as written, and print the numbers shown."""

import re
import shlex
from pathlib import Path

import pytest
import typer
import yaml
from typer.testing import CliRunner

from latentlab.cli.correlate import correlate
from latentlab.cli.main import _Commands
from latentlab.study.analysis.plan import AnalysisPlan

PAGE = (Path(__file__).parents[1] / "docs" / "correlation.md").read_text(encoding="utf-8")
COMMANDS = [line.strip() for line in PAGE.splitlines() if line.startswith("    latentlab ")]

app = typer.Typer(cls=_Commands)
app.command("correlate")(correlate)
app.callback()(lambda: None)


def block(language: str) -> str:
    (found,) = re.findall(rf"```{language}\n(.*?)```", PAGE, flags=re.DOTALL)
    return found


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the page's table."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "results.csv").write_text(block("csv"))
    return tmp_path


@pytest.mark.parametrize("command", COMMANDS)
def test_documented_command(command: str, place: Path) -> None:
    done = CliRunner().invoke(app, shlex.split(command)[1:])
    assert done.exit_code == 0, done.stderr
    assert (place / ("DIR" if "--out" in command else "") / "analysis.json").exists()


def test_the_numbers_shown_are_printed(place: Path) -> None:
    printed = CliRunner().invoke(app, shlex.split(COMMANDS[2])[1:]).stdout
    rows = {tuple(re.findall(r"[^\s│]+", line)) for line in printed.splitlines()}
    for line in block("text").strip().splitlines():
        assert tuple(re.findall(r"[^\s│]+", line)) in rows, line


def test_python_example(place: Path) -> None:
    names: dict = {}
    exec(block("python"), names)
    assert names["found"].value == pytest.approx(0.799, abs=5e-4)
    assert {one["predictor"] for one in names["analysis"]["correlations"]} == {"viv", "lnc"}


def test_the_plan_shown_is_one() -> None:
    assert AnalysisPlan(**yaml.safe_load(block("yaml"))["analysis"]).held_out == ("repa-strong",)


def test_every_list_is_on_the_page(place: Path) -> None:
    from latentlab.study.analysis.analyze import PARTS

    assert all(f"`{part}`" in PAGE for part in PARTS)
    assert all(name in PAGE for name in ("left_out_", "agrees", "dependent"))
