"""The shipped tokenizers: weights beside every configuration, small, made by it, and reconstructing as the table says."""

from pathlib import Path

import pytest

from latentlab import load_tokenizer, open_data
from latentlab.quality.reconstruction import reconstruction_scores
from latentlab.tokenizers import embedded
from latentlab.tokenizers.config import TrainConfig, load_config
from latentlab.tokenizers.zoo import embedded_path
from latentlab.weights import read_metadata

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


def test_usage_is_told() -> None:
    for arguments in ([], ["nonsense"], ["train", "nonsense"]):
        with pytest.raises(SystemExit, match=r"usage: embedded train\|scores"):
            embedded.main(arguments)


def test_the_table_lists_every_tokenizer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "TABLE", tmp_path / "table.md")
    monkeypatch.setattr(embedded, "IMAGES", 20)
    embedded.write_scores(["ae", "ibq"])
    lines = (tmp_path / "table.md").read_text().splitlines()
    assert [line.split(" | ")[0] for line in lines[-2:]] == ["| ae", "| ibq"]
    assert "20 test images" in "\n".join(lines)
