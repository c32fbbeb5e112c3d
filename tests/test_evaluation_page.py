"""Every command and the example of docs/evaluation.md work as written."""

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from latentlab.cli.main import app
from latentlab.quality.evaluation import METRICS
from latentlab.quality.features import extractor_names
from latentlab.quality.judged import QualitySettings
from latentlab.quality.sample_file import write_sample_file

PAGE = (Path(__file__).parents[1] / "docs" / "evaluation.md").read_text(encoding="utf-8")
COMMANDS = [line.split("  #")[0].strip() for line in PAGE.splitlines() if line.startswith("    latentlab ")]
LESS = ["--reference-limit", "20", "--validation-limit", "8", "--device", "cpu"]
RNG = np.random.default_rng(0)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with what the page's commands name, and caches of its own."""
    for name in ("TORCH_HOME", "LATENTLAB_HOME", "HF_HOME"):
        monkeypatch.setenv(name, str(tmp_path / name))
    monkeypatch.chdir(tmp_path)
    images = RNG.integers(0, 256, (8, 32, 32, 3), dtype=np.uint8)
    write_sample_file(tmp_path / "DIR" / "samples_8x32x32x3.npz", (8, 32, 32), [images], np.arange(8))
    write_sample_file(tmp_path / "samples.npz", (8, 32, 32), [images], np.arange(8))
    (tmp_path / "IMAGES").mkdir()
    for i, image in enumerate(images):
        Image.fromarray(image).save(tmp_path / "IMAGES" / f"{i}.png")
    np.savez(tmp_path / "VIRTUAL.npz", arr_0=images, mu=np.zeros(2048), sigma=np.eye(2048))
    return tmp_path


@pytest.mark.parametrize("command", COMMANDS)
def test_documented_command(command: str, place: Path) -> None:
    words = shlex.split(command)[1:]
    if words[0] == "sample":
        words = [
            *(word.replace("DIR", "new") for word in words),
            "--per-class",
            "1",
            "--set",
            "steps=2",
            "--device",
            "cpu",
        ]
    done = CliRunner().invoke(app, [*words, *(LESS if words[0] == "evaluate" else [])])
    if "--extractor inception" in command:  # the published weights are not part of a test machine
        assert done.exit_code == 2 and "weights-inception-2015-12-05-6726825d.pth" in done.stderr, done.stderr
        assert len(done.stderr.strip().splitlines()) == 1
    else:
        assert done.exit_code == 0, done.stderr


def test_example(place: Path) -> None:
    names: dict[str, dict[str, tuple[np.dtype, tuple[int, ...]]]] = {}
    exec("".join(re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)), names)
    assert names["content"]["arr_0"] == (np.dtype("uint8"), (8, 32, 32, 3))
    assert names["content"]["sigma"] == (np.dtype("float64"), (2048, 2048))


def test_every_metric_extractor_and_setting_is_on_the_page() -> None:
    for name in METRICS:
        assert f"| `{name}` |" in PAGE
    for name in extractor_names():
        short = re.sub(r"^(dinov2|clip)-vit-", "-", name)
        assert f"`{name}`" in PAGE or f"`{short}`" in PAGE or f"`{short.removesuffix('14')}`" in PAGE, name
    for name in {*QualitySettings.model_fields} - {"fidelity_seed"}:
        assert f"`{name}`" in PAGE
