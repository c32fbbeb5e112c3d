"""The study of token tables: weights and training runs side by side, pictures of codes, and the command."""

import csv
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from latentlab import learned_geometry as module
from latentlab import load_tokenizer
from latentlab.cli.main import app
from latentlab.errors import UserError
from latentlab.learned_geometry import code_pictures, shown_codes, study_geometry
from latentlab.tokenizers.base import DiscreteTokenizer
from mind.config import sized
from mind.learned_geometry import nearest_codes
from mind.network import Mind
from mind.released import save_mind

TINY = {"hidden_size": 16, "num_heads": 2, "num_blocks": 1, "cond_dim": 8, "mapper_width": 16}
IBQ = {"tokenizer": json.dumps({"name": "ibq", "release": "fashion32", "weights_sha256": None})}


@pytest.fixture(scope="module")
def codebook() -> torch.Tensor:
    tokenizer = load_tokenizer("ibq", release="fashion32")
    assert isinstance(tokenizer, DiscreteTokenizer)
    return tokenizer.codebook.detach()


def write_weights(path: Path, rows: torch.Tensor | None = None, header: dict[str, str] = IBQ, **config: Any) -> Path:
    """Untrained weights of a tiny MIND, with the token table ``rows`` where given."""
    torch.manual_seed(0)
    model = Mind(sized("mind-fashion", **TINY, **config))
    if rows is not None:
        with torch.no_grad():
            model.table.embedding.copy_(rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_mind(path, model.state_dict(), model.config, header)
    return path


def write_run(folder: Path, norms: list[float], **options: Any) -> Path:
    write_weights(folder / "mind.safetensors", **options)
    lines = [
        {"step": 10 * i, "loss": 6.0, "latent_norm": 2.0, "raw_norm": norm, "nearest_angle": 45.0}
        for i, norm in enumerate(norms, 1)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory, codebook: torch.Tensor) -> tuple[Path, dict[str, Any]]:
    """A table that is the tokenizer's codebook, scaled to one norm, and a run at its start."""
    place = tmp_path_factory.mktemp("study")
    directions = torch.nn.functional.normalize(codebook, dim=1)[:, :16]
    weights = write_weights(place / "copied.safetensors", directions, normalise=False)
    run = write_run(place / "some run", [0.004, 0.006])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "SHOWN_CODES", 2)  # quick figures
        return place, study_geometry([weights], [run], place / "out", command="latentlab geometry")


def test_numbers_and_figures(study: tuple[Path, dict[str, Any]]) -> None:
    place, results = study
    assert json.loads((place / "out" / "results.json").read_text()) == json.loads(json.dumps(results))
    copied, run = results["tables"]["copied"], results["tables"]["some run"]
    assert (copied["codes"], copied["width"], copied["subvector_size"]) == (512, 16, 4)
    assert run["separation"]["ratio"] == pytest.approx(1, abs=0.03)  # untrained rows are uniform
    assert run["history"]["raw_norm"] == [0.004, 0.006] and copied["history"] == {}
    assert run["norms"]["rows"]["mean"] == pytest.approx(2, abs=0.01)
    chance = run["codebook_agreement"]["8"]
    assert chance["overlap"] == pytest.approx(chance["chance"], abs=0.01) and chance["chance"] == 8 / 511
    assert copied["codebook_agreement"]["1"]["overlap"] > 0.2  # half of the codebook's own coordinates say something
    names = {Path(file).name for file in results["figures"]}
    assert names >= {
        "angular_separation.png", "latent_norms.png", "nearest_codes_copied.png", "nearest_codes_some-run.png",
    }  # fmt: skip
    assert all((place / "out" / file).is_file() for file in [*results["figures"], *results["neighbours"]])


def test_neighbours_of_every_code_are_listed(study: tuple[Path, dict[str, Any]], codebook: torch.Tensor) -> None:
    place, _ = study
    lines = list(csv.DictReader((place / "out" / "neighbours_copied.csv").read_text().splitlines()))
    rows = torch.nn.functional.normalize(torch.nn.functional.normalize(codebook, dim=1)[:, :16].double(), dim=1)
    cosines = (rows @ rows.T).fill_diagonal_(-2)
    assert [int(line["neighbour_1"]) for line in lines] == cosines.argmax(1).tolist()
    degrees = torch.rad2deg(torch.arccos(cosines.max(1).values))
    np.testing.assert_allclose([float(line["degrees_1"]) for line in lines], degrees, atol=1e-3)


def test_summary_says_what_its_columns_mean(study: tuple[Path, dict[str, Any]]) -> None:
    text = (study[0] / "out" / "summary.md").read_text()
    assert "| copied | 512 x 16 (4), no sphere |" in text and "| some run | 512 x 16 (4) |" in text
    for part in ("above 1 is further apart than chance", "latentlab geometry", "![angular_separation]"):
        assert part in text


def test_pictures_of_codes_are_the_middle_of_pictures_of_that_code_alone(codebook: torch.Tensor) -> None:
    tokenizer = load_tokenizer("ibq", release="fashion32").eval()
    assert isinstance(tokenizer, DiscreteTokenizer)
    codes = torch.tensor([[3, 5], [7, 3]])
    pictures = code_pictures(tokenizer, (8, 8), codes)
    assert pictures.shape == (2, 2, 3, 16, 16) and pictures.dtype == np.uint8
    np.testing.assert_array_equal(pictures[0, 0], pictures[1, 1])
    with torch.inference_mode():
        whole = tokenizer.decode_indices(torch.full((1, 8, 8), 5))[0, :, 8:24, 8:24]
    np.testing.assert_allclose(pictures[0, 1], (whole.numpy() + 1) * 127.5, atol=1)
    assert shown_codes(512).tolist() == [0, 73, 146, 219, 292, 365, 438, 511] and shown_codes(3).tolist() == [0, 1, 2]


def test_frames_mark_neighbours_of_the_codebook(study: tuple[Path, dict[str, Any]], codebook: torch.Tensor) -> None:
    subject = module.open_subject(study[0] / "copied.safetensors", "copied")
    ids, angles, shared = module._neighbour_arrays(subject)
    theirs, _ = nearest_codes(codebook.double(), 8)
    for row, code in enumerate(ids[:, 0]):
        assert shared[row].tolist() == [neighbour in theirs[code].tolist() for neighbour in ids[row, 1:]]
    assert angles.shape == (8, 8) and (np.diff(angles, axis=1) >= 0).all() and shared.any()


def test_without_the_tokenizer_the_table_is_still_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = write_weights(tmp_path / "alone.safetensors", header={})
    results = study_geometry([weights], [], tmp_path / "out")
    assert results["tables"]["alone"]["codebook_agreement"] is None
    assert "no comparison with the codebook" in capsys.readouterr().err
    assert not any("nearest_codes" in file for file in results["figures"])


def test_mistakes(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="give weights or folders"):
        study_geometry([], [], tmp_path / "out")
    (tmp_path / "unfinished").mkdir()
    with pytest.raises(UserError, match=r"unfinished holds no mind\.safetensors"):
        study_geometry([], [tmp_path / "unfinished"], tmp_path / "out")
    weights = write_weights(tmp_path / "a.safetensors")
    with pytest.raises(UserError, match=r"a\.safetensors is given twice"):
        study_geometry([weights, weights], [], tmp_path / "out")


# --- command ----------------------------------------------------------------------------------------------------------


def test_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(module, "SHOWN_CODES", 1)
    write_run(Path("first"), [0.1])
    write_run(Path("second"), [0.2], normalise=False)
    result = CliRunner().invoke(app, ["geometry", "--runs", "first,second", "--json"])
    assert result.exit_code == 0, result.output
    assert list(json.loads(result.stdout)["tables"]) == ["first", "second"]
    folder = Path("runs/geometry-first-second")
    assert str(folder / "summary.md") in result.stderr and (folder / "figures" / "latent_norms.svg").is_file()
    plain = CliRunner().invoke(app, ["geometry", "--weights", "first/mind.safetensors", "--out", "there"])
    assert "512 x 16 (4)" in plain.stdout and "there/results.json" in plain.stdout
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f]", plain.stdout)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--runs", "absent"], "--runs: absent is not a folder of a training run"),
        (["--weights", "fashion23"], "unknown MIND weights 'fashion23'. Did you mean fashion32"),
        (["--weights", "absent.safetensors"], r"absent\.safetensors does not exist"),
    ],
)
def test_command_mistakes_are_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, ["geometry", *arguments])
    assert result.exit_code == 2 and result.stdout == ""
    assert re.fullmatch(rf"error: [^\n]*{message}[^\n]*\n", result.stderr), result.stderr
