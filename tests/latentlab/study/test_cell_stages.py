"""Stages that stand alone, what they write; and which networks a measurement's key names."""

from pathlib import Path

import numpy as np
import pytest
import torch

from analyses.embedding import umap_points
from latentlab import TokenizerSpec
from latentlab.data import open_data
from latentlab.errors import UserError
from latentlab.files import read_json, write_json
from latentlab.pixels import SetPixels
from latentlab.quality.features import feature_extractor
from latentlab.store import StoreWriter
from latentlab.study.cells.cell import Cell
from latentlab.study.cells.networks import networks_of
from latentlab.study.cells.process import CELL, RESULT, CellRun, Finished
from latentlab.study.cells.state import note_places, prepare
from latentlab.study.stages.inputs import tokenizer_choice
from latentlab.study.stages.latents import latent_map, measure
from latentlab.tokenizers.load import load_tokenizer

LATENTS = torch.randn(40, 4, 2, 2, generator=torch.Generator().manual_seed(0))


def test_a_map_of_latents_holds_points_labels_and_names(tmp_path: Path) -> None:
    spec = TokenizerSpec("toy", "test", "continuous", "grid", channels=4)
    names = ("shoe", "shirt")
    writer = StoreWriter(tmp_path / "encode" / "latents", request={}, spec=spec, class_names=names)
    writer.append(LATENTS, np.arange(40) % 2)
    store = writer.finish()
    write_json(tmp_path / "encode" / RESULT, {"latents": "latents"})
    cell = CellRun(tmp_path / "map", {"n": 30, "seed": 0}, {}, {"latents": Finished(tmp_path / "encode")}, "cpu")
    cell.folder.mkdir()
    told = latent_map(cell)
    found = read_json(cell.folder / told["details"])
    points, labels = umap_points(store, n=30, seed=0)
    np.testing.assert_allclose(found["points"], points, atol=1e-4)
    assert labels is not None and found["labels"] == labels.tolist()
    assert found["class_names"] == list(names) and told["n"] == 30


@pytest.mark.parametrize(
    ("measurement", "parameters", "options"),
    [
        ("viv", {}, {}),
        ("ifid", {}, {"extractor": "efficientnet-lite0"}),
        ("ifid", {"extractor": "fashion-classifier"}, {"extractor": "fashion-classifier"}),
        ("sensitivity", {"extractor": None, "perceptual": "st_lpips"}, {"perceptual": "st_lpips"}),
    ],
)
def test_a_key_names_the_weights_that_a_measurement_looks_through(
    measurement: str, parameters: dict[str, object], options: dict[str, str]
) -> None:
    versions = {key: name if key == "perceptual" else feature_extractor(name).version for key, name in options.items()}
    assert networks_of(measurement, parameters) == versions


def test_the_perceptual_distance_that_auto_chooses_is_named() -> None:
    assert networks_of("sensitivity", {})["perceptual"] in ("lpips", "st_lpips")


def test_weights_that_have_moved_are_read_where_they_are(tmp_path: Path) -> None:
    """Their path is no part of a cell's key: one that is done says where they were."""

    def cell(path: str) -> Cell:
        return Cell(
            "tokenizer_at_hand", "open", {"name": "kl", "release": None, "sha256": "ab"}, places={"weights": path}
        )

    before, now = cell("/there/kl.safetensors"), cell("/here/kl.safetensors")
    folder = prepare(before, tmp_path)
    write_json(folder / RESULT, {"name": "kl", "release": "fashion32", "weights": "/there/kl.safetensors"})
    note_places(now, tmp_path)
    assert now.folder(tmp_path) == folder
    assert tokenizer_choice(Finished(folder))["weights"] == Path("/here/kl.safetensors")


@pytest.mark.parametrize(("tokenizer", "refused"), [("maetok", True), ("ae", False)])
def test_what_1d_tokens_cannot_have_is_no_failure(tokenizer: str, refused: bool, tmp_path: Path) -> None:
    """Equivariance asks the encoder, not the store, for a grid: in a study with such a tokenizer it is left empty."""
    opened = load_tokenizer(tokenizer, release="fashion32")
    images = SetPixels(open_data("fashion:test", limit=8))
    writer = StoreWriter(tmp_path / "encode" / "latents", request={}, spec=opened.spec)
    with torch.inference_mode():
        writer.append(opened.encode(images.take(slice(None))), np.zeros(8, dtype=np.int64))
    writer.finish()
    write_json(tmp_path / "encode" / RESULT, {"latents": "latents"})
    (tmp_path / "tokenizer").mkdir()
    write_json(tmp_path / "tokenizer" / CELL, {"places": {}})
    write_json(tmp_path / "tokenizer" / RESULT, {"name": tokenizer, "release": "fashion32", "weights": None})
    needs = {"latents": Finished(tmp_path / "encode"), "tokenizer": Finished(tmp_path / "tokenizer")}
    settings = {"measurement": "equivariance", "parameters": {}, "seed": 0, "images": {"limit": 8}}
    cell = CellRun(tmp_path / "measure", settings, {"images": "fashion:test"}, needs, "cpu")
    cell.folder.mkdir()
    told = measure(cell)
    assert (told["refused"] is not None) is refused
    assert "1-D tokens" in told["refused"] if refused else told["value"] > 0


def measured(folder: Path, name: str, latents: torch.Tensor, labels: np.ndarray) -> dict[str, object]:
    """Return what the stage makes of a measurement of latents [n,c,h,w]."""
    spec = TokenizerSpec("toy", "test", "continuous", "grid", channels=latents.shape[1])
    writer = StoreWriter(folder / "encode" / "latents", request={}, spec=spec)
    writer.append(latents, labels)
    writer.finish()
    write_json(folder / "encode" / RESULT, {"latents": "latents"})
    settings = {"measurement": name, "parameters": {}, "seed": 0}
    cell = CellRun(folder / "measure", settings, {}, {"latents": Finished(folder / "encode")}, "cpu")
    cell.folder.mkdir()
    return measure(cell)


def test_a_property_that_latents_lack_is_no_failure_and_a_mistake_is_one(tmp_path: Path) -> None:
    """Codes of signs on a grid have no intrinsic dimension; classes of one image give no LNC, which other images would."""
    signs = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0])] * 6)[:, :, None, None]
    told = measured(tmp_path / "signs", "intrinsic_dimension", signs, np.arange(64) % 2)
    assert "such latents have no intrinsic dimension" in str(told["refused"])
    with pytest.raises(UserError, match="lnc needs a class with at least 2 images"):
        measured(tmp_path / "classes", "lnc", LATENTS, np.arange(40))
