"""The shipped tokenizers: weights beside every configuration, small, made by it, and reconstructing as the table says."""

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from latentlab import UserError, load_tokenizer, open_data
from latentlab.errors import run_module
from latentlab.quality.reconstruction import reconstruction_scores
from latentlab.tokenizers import embedded, zoo
from latentlab.tokenizers.config import TrainConfig, load_config
from latentlab.tokenizers.zoo import embedded_path
from latentlab.weights import read_metadata

from .tiny_maetok import ARCHITECTURE

TABLE = Path(__file__).parents[3] / "docs" / "embedded_tokenizers.md"


@pytest.mark.parametrize("name", embedded.embedded_names())
def test_weights_come_from_the_shipped_configuration(name: str) -> None:
    config = load_config(name)
    path = embedded_path(name, config.release)
    assert path.stat().st_size <= 3_000_000
    assert TrainConfig.model_validate_json(read_metadata(path)["training"]) == config


@pytest.mark.parametrize("name", embedded.embedded_names())
def test_reconstructions_are_as_good_as_the_table_says(name: str) -> None:
    rows = [line.strip("| ").split(" | ") for line in TABLE.read_text().splitlines() if line.startswith("|")]
    (row,) = [dict(zip(rows[0], cells, strict=False)) for cells in rows[2:] if cells[0] == name]
    scores = reconstruction_scores(load_tokenizer(name, release="fashion32"), open_data("fashion:test", limit=200))
    assert scores["psnr"].value == pytest.approx(float(row["psnr"].split()[0]), abs=0.6)
    assert scores["ssim"].value == pytest.approx(float(row["ssim"].split()[0]), abs=0.02)


def test_ibq_uses_most_of_its_codebook() -> None:
    scores = reconstruction_scores(load_tokenizer("ibq", release="fashion32"), open_data("fashion:test", limit=300))
    assert scores["codebook_usage"].value > 0.9


TINY: dict[str, Any] = {
    "name": "tiny", "release": "test",
    "architecture": {
        "quantizer": "none", "ch": 8, "ch_mult": [1, 1], "norm_groups": 4, "num_res_blocks": 1, "attn_resolutions": [],
        "resolution": 32, "z_channels": 4,
    },
    "data": {"train": "fashion:test", "validation": "fashion:test", "limit": 16},
    "loss": {"l1": 1.0}, "optimiser": {"steps": 2, "batch_size": 2, "learning_rate": 1e-3},
    "log_every": 1, "validate_every": 2, "validation_images": 4,
}  # fmt: skip
TINY_MAETOK: dict[str, Any] = {"family": "maetok", "architecture": ARCHITECTURE}


@pytest.fixture
def workshop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with configurations of its own, where runs and shipped weights go too."""
    first = str(tmp_path / "runs" / "stage" / "tokenizer.safetensors")
    decoder = {**ARCHITECTURE, "stage": "decoder"}
    configs = {
        "plain": TINY,
        "wrong": TINY | {"optimiser": {**TINY["optimiser"], "accumulate": 2, "batch_size": 3}},
        "stage": TINY | TINY_MAETOK,
        "second": TINY | TINY_MAETOK | {"architecture": decoder, "start_from": first},
    }
    for folder in ("configs", "shipped"):
        (tmp_path / folder).mkdir()
    for name, settings in configs.items():
        (tmp_path / "configs" / f"{name}_test.yaml").write_text(yaml.safe_dump(settings))
    monkeypatch.setattr(embedded, "CONFIGS", tmp_path / "configs")
    monkeypatch.setattr(embedded, "RUNS", tmp_path / "runs")
    monkeypatch.setattr(zoo, "EMBEDDED", tmp_path / "shipped")
    return tmp_path


def test_what_is_trained_ships_even_if_others_fail(workshop: Path) -> None:
    with pytest.raises(
        UserError, match=r"training failed for wrong \(error: .*batch_size 3 cannot be shared.*runs/<name>\.log"
    ):
        embedded.train_all(["wrong", "plain", "second"])
    assert sorted(file.name for file in (workshop / "shipped").iterdir()) == [
        "plain_test.safetensors",
        "second_test.safetensors",
    ]
    assert "batch_size 3 cannot be shared" in (workshop / "runs" / "wrong.log").read_text()
    first, second = (load_file(workshop / "runs" / name / "tokenizer.safetensors") for name in ("stage", "second"))
    same = {name for name in second if torch.equal(first[name], second[name])}
    assert {name for name in second if name.startswith("encoder.")} <= same and len(same) < len(second)


def test_the_longest_training_starts_first(workshop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In order of steps times batch, with those of earlier stages."""
    started: list[str] = []
    monkeypatch.setattr(embedded, "_AT_ONCE", 1)
    monkeypatch.setattr(embedded, "_train_one", lambda name: started.append(name) or 1)
    monkeypatch.setattr(embedded, "_last_line", lambda name: "no")
    with pytest.raises(UserError, match=r"training failed for plain \(no\), wrong \(no\), second \(no\)"):
        embedded.train_all(["plain", "wrong", "second"])
    assert started == ["second", "wrong", "plain"]


@pytest.mark.parametrize("arguments", [[], ["nonsense"], ["train", "nonsense"]])
def test_usage_is_told_in_one_line(arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr("sys.argv", ["embedded", *arguments])
    with pytest.raises(SystemExit) as stopped:
        run_module(embedded.main)
    assert stopped.value.code == 2
    assert capsys.readouterr().err.startswith("error: usage: embedded train|scores [ae|")


def test_the_table_lists_every_tokenizer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "TABLE", tmp_path / "table.md")
    monkeypatch.setattr(embedded, "IMAGES", 20)
    embedded.write_scores(["ae", "ibq"])
    lines = (tmp_path / "table.md").read_text().splitlines()
    assert [line.split(" | ")[0] for line in lines[-2:]] == ["| ae", "| ibq"]
    assert "20 test images" in "\n".join(lines)
