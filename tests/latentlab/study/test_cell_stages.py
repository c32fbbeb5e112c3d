"""Stages that stand alone, what they write; and which networks a measurement's key names."""

from pathlib import Path

import numpy as np
import pytest
import torch

from analyses.embedding import umap_points
from latentlab import TokenizerSpec
from latentlab.files import read_json, write_json
from latentlab.quality.features import feature_extractor
from latentlab.store import StoreWriter
from latentlab.study.cells.networks import networks_of
from latentlab.study.cells.process import RESULT, CellRun, Finished
from latentlab.study.stages.latents import latent_map

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
