"""The commands of docs/studies.md work as written, one after the other, on less data; its study file is one."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from latentlab.study.plan_file import StudyFile

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "studies.md").read_text(encoding="utf-8")
COMMANDS = [line.split("  #")[0].strip() for line in PAGE.splitlines() if line.startswith("    latentlab ")]
LESS = ["--set", "samples=40", "--set", "limit=200", "--set", "held_out_limit=100", "--set", "measure={rmsc: {}}"]


def test_documented_commands(tmp_path: Path) -> None:
    smoke = Path("studies", "diffusability", "smoke.yaml")
    (tmp_path / smoke).parent.mkdir(parents=True)
    (tmp_path / smoke).write_text(re.sub("=1[05]0$", "=2", (ROOT / smoke).read_text(), flags=re.MULTILINE))
    environment = {**os.environ, "LATENTLAB_HOME": str(tmp_path / "home")}
    for command in COMMANDS:
        words = shlex.split(command.replace("DIR", "out"))[1:]
        less = LESS if words[:2] == ["study", "run"] else []
        done = subprocess.run(
            [sys.executable, "-m", "latentlab", *words, *less],
            capture_output=True, text=True, check=False, cwd=tmp_path, env=environment,
        )  # fmt: skip
        assert done.returncode == 0, f"{command}: {done.stderr}"
    made = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"results.csv", "columns.json", "report.html", "claims.json", "CLAIMS.md", "figures", "pictures"} <= made


def test_the_study_file_of_the_page_is_one() -> None:
    (text,) = re.findall(r"```yaml\n(.*?)```", PAGE, flags=re.DOTALL)
    assert [one.label for one in StudyFile.model_validate(yaml.safe_load(text)).tokenizers] == ["ae", "kl", "ae-mixed"]


@pytest.mark.parametrize("name", ["smoke", "fashion"])
def test_shipped_studies_are_whole(name: str) -> None:
    from latentlab.study.cells.graph import build_graph
    from latentlab.study.plan_file import load_study

    graph = build_graph(load_study(ROOT / "studies" / "diffusability" / f"{name}.yaml"))
    assert {row.identity["tokenizer"] for row in graph.rows} and len({cell.key for cell in graph.cells}) == len(
        graph.cells
    )
