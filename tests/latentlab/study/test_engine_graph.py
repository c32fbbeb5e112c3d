"""Cells are named after what determines them: what is added computes itself only; file names and labels decide nothing."""

import hashlib
import re
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from latentlab import registry
from latentlab.errors import UserError
from latentlab.study.cells import graph as graph_module
from latentlab.study.cells.cell import Cell, Graph
from latentlab.study.cells.networks import networks_of
from latentlab.tokenizers.objectives.vision_networks import VISION_NETWORKS
from latentlab.tokenizers.zoo import embedded_path

from .engine_world import opened, tiny_study

AE, MIXED = tiny_study()["tokenizers"]
SIT = tiny_study()["generators"][0]


def keys(graph: Graph) -> set[str]:
    return {cell.key for cell in graph.cells}


def graph_of(folder: Path, **changes: Any) -> Graph:
    return opened(folder, tiny_study(**changes))[1]


def new_stages(folder: Path, **changes: Any) -> Counter[str]:
    """Return the stages of the cells that a change of the study adds; it must take none away that others need."""
    before = keys(graph_of(folder))
    return Counter(cell.stage for cell in graph_of(folder, **changes).cells if cell.key not in before)


def test_the_cells_of_a_study(tmp_path: Path) -> None:
    graph = graph_of(tmp_path)
    assert Counter(cell.stage for cell in graph.cells) == {
        "train_tokenizer": 1, "control": 1, "encode": 4, "measure": 4, "reconstruct": 2, "reconstruct_training": 2,
        "reconstruction_distance": 2, "decoder": 2, "floor": 1, "train_generator": 2, "sample": 4, "evaluate": 4,
        "latent_distance": 4, "trajectories": 2,
    }  # fmt: skip
    assert len(graph.rows) == 4 and len(keys(graph)) == len(graph.cells)
    seen: set[str] = set()
    for cell in graph.cells:
        assert all(need.key in seen for need in cell.needs.values())  # each after those it needs
        seen.add(cell.key)


def test_a_guidance_scale_adds_itself_only(tmp_path: Path) -> None:
    sit = {**SIT, "guidance": [1.0, 2.0, 3.0]}
    assert new_stages(tmp_path, generators=[sit]) == {"sample": 2, "evaluate": 2, "latent_distance": 2}


def test_a_measurement_adds_itself_only(tmp_path: Path) -> None:
    assert new_stages(tmp_path, measure={"rmsc": {}, "codebook": {}, "lnc": {}}) == {"measure": 2}
    assert new_stages(tmp_path, measure={"rmsc": {"normalize": False}, "codebook": {}}) == {"measure": 2}


def test_a_seed_of_a_generator_changes_its_descendants_only(tmp_path: Path) -> None:
    assert new_stages(tmp_path, generators=[{**SIT, "seeds": [5]}]) == {
        "train_generator": 2, "sample": 4, "evaluate": 4, "latent_distance": 4, "trajectories": 2,
    }  # fmt: skip


def test_a_seed_of_a_tokenizer_changes_all_but_the_floor(tmp_path: Path) -> None:
    changed = graph_of(tmp_path, tokenizers=[{**AE, "seeds": [1]}, {**MIXED, "seeds": [1]}])
    common = keys(changed) & keys(graph_of(tmp_path))
    assert [cell.stage for cell in changed.cells if cell.key in common] == ["floor"]


def test_labels_titles_and_order_decide_nothing(tmp_path: Path) -> None:
    renamed = [{**MIXED, "label": "other", "of": "plain"}, {**AE, "label": "plain", "cluster": "x"}]
    assert keys(graph_of(tmp_path, tokenizers=renamed, title="Other")) == keys(graph_of(tmp_path))


def test_a_file_is_known_by_its_content(tmp_path: Path) -> None:
    """The same weights elsewhere are the same; other weights under the same name are not."""
    here, there = tmp_path / "here.safetensors", tmp_path / "there.safetensors"
    shutil.copy(embedded_path("ae", "fashion32"), here)
    shutil.copy(here, there)
    graphs = [
        graph_of(tmp_path, tokenizers=[{"label": "w", "cluster": "x", "family": "conv", "weights": str(file)}])
        for file in (here, there)
    ]
    assert keys(graphs[0]) == keys(graphs[1])
    shutil.copy(embedded_path("kl", "fashion32"), there)
    changed = graph_of(tmp_path, tokenizers=[{"label": "w", "cluster": "x", "family": "conv", "weights": str(there)}])
    assert "floor" in {cell.stage for cell in changed.cells if cell.key in keys(graphs[0])}
    assert not keys(changed) & {cell.key for cell in graphs[0].cells if cell.stage != "floor"}


def test_some_generators_and_seeds_only(tmp_path: Path) -> None:
    """What a tokenizer leaves out is not in the table."""
    both = [{**SIT, "seeds": [0, 1]}, {**SIT, "label": "dit", "kind": "dit", "base": "dit-fashion"}]
    graph = graph_of(
        tmp_path, generators=both, tokenizers=[{**AE, "generators": ["sit"], "generator_seeds": [1]}, MIXED]
    )
    rows = Counter(
        (row.identity["tokenizer"], row.identity["generator"], row.identity["generator_seed"]) for row in graph.rows
    )
    assert rows == {("ae", "sit", 1): 2, ("mixed", "sit", 0): 2, ("mixed", "sit", 1): 2, ("mixed", "dit", 0): 2}


def test_a_graph_is_the_same_after_reading(tmp_path: Path) -> None:
    graph = graph_of(tmp_path)
    graph.write(tmp_path)
    again = Graph.read(tmp_path)
    assert [cell.key for cell in again.cells] == [cell.key for cell in graph.cells]
    assert all(one.key == Cell(one.stage, "", one.settings, one.needs).key for one in again.cells)
    assert [dict(row.identity) for row in again.rows] == [dict(row.identity) for row in graph.rows]
    assert again.owners == graph.owners and again.facts == graph.facts


def test_two_files_of_a_tokenizer_are_known_by_their_content(tmp_path: Path) -> None:
    """Of the TAESD family: their folder, or one of them; a change of either is another tokenizer."""
    folder = tmp_path / "tae files"
    folder.mkdir()
    for half in ("encoder", "decoder"):
        (folder / f"taef2_{half}.pth").write_text(half)

    def opened_by(path: Path) -> Cell:
        own = {"label": "tiny", "cluster": "published", "family": "conv", "name": "taef2", "weights": str(path)}
        return next(cell for cell in graph_of(tmp_path, tokenizers=[own]).cells if cell.stage == "tokenizer_at_hand")

    before = opened_by(folder)
    assert before.key == opened_by(folder / "taef2_decoder.pth").key
    assert before.places["weights"] == str(folder / "taef2_encoder.pth")
    (folder / "taef2_decoder.pth").write_text("another")
    after = opened_by(folder)
    assert after.key != before.key
    (folder / "config.json").write_text("{}")  # may have a say in the architecture
    assert opened_by(folder).key != after.key
    with pytest.raises(UserError, match=r"there is no file .*nowhere"):
        opened_by(tmp_path / "nowhere")


def test_the_weights_of_a_teacher_are_part_of_the_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same name and another file is another training; without a teacher no cell is named after one."""
    monkeypatch.setenv("LATENTLAB_HOME", str(tmp_path / "home"))
    file = VISION_NETWORKS["dinov3-l"].weights
    assert file is not None
    file.path.parent.mkdir(parents=True)

    def trained(*more: str) -> Cell:
        own = {**AE, "set": [*AE["set"], *more]}
        return next(cell for cell in graph_of(tmp_path, tokenizers=[own]).cells if cell.stage == "train_tokenizer")

    teacher = "objectives.alignment={network: dinov3-l, repa: 1.0, weight: 0.5}"
    keys = []
    for content in ("one", "another"):
        file.path.write_text(content)
        cell = trained(teacher)
        keys.append(cell.key)
        assert cell.settings["networks"] == {"dinov3-l": hashlib.sha256(content.encode()).hexdigest()[:16]}
    assert keys[0] != keys[1]
    adversary = "objectives.adversarial={kind: features, network: dinov3-l}"
    assert trained(adversary).settings["networks"] == cell.settings["networks"]
    for shipped in ("seed=0", "objectives.alignment={network: efficientnet-lite0, repa: 1.0, weight: 0.5}"):
        assert "networks" not in trained(shipped).settings
    file.path.unlink()
    with pytest.raises(UserError, match=r"tokenizer 'ae': weights .* are not on this machine"):
        trained(teacher)


def test_plugins_are_known_by_their_version_and_weights(
    tmp_path: Path, installed_example: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    for place in installed_example:
        monkeypatch.syspath_prepend(place)
    registry._locations.cache_clear()
    own = {"label": "pixels", "cluster": "none", "family": "none", "name": "pixel-patches"}

    def found() -> dict[str, Cell]:
        graph = graph_of(tmp_path, tokenizers=[own], measure={"channel_correlation": {}})
        return {cell.stage: cell for cell in graph.cells if cell.stage in ("tokenizer_at_hand", "measure")}

    try:
        before = found()
        metadata = next(installed_example[0].rglob("METADATA"))
        version = metadata.read_text().rpartition("Version: ")[2].strip()
        for told in (
            before["measure"].settings["networks"]["plug-in"],
            before["tokenizer_at_hand"].settings["plug-in"],
        ):
            assert re.fullmatch(rf"latentlab-plugin-example {version} [0-9a-f]+", told)
        assert re.fullmatch("[0-9a-f]{16}", before["tokenizer_at_hand"].settings["sha256"])
        metadata.write_text(metadata.read_text().replace(version, "77"))
        after = found()
        assert all(after[stage].key != before[stage].key for stage in before)
    finally:
        registry._locations.cache_clear()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokenizers": [{**AE, "set": ["architecture.chh=8"]}]}, "tokenizer 'ae': unknown architecture field 'chh'"),
        ({"generators": [{**SIT, "set": ["model.dpth=1"]}]}, "generator 'sit': .*unknown key of model 'dpth'"),
        ({"generators": [{**SIT, "set": ["optimiser.lr=1"]}]}, "generator 'sit': .*unknown key of optimiser 'lr'"),
    ],
)
def test_settings_of_trainings_are_checked_before_anything_runs(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        graph_of(tmp_path, **changes)


def test_networks_are_opened_once_for_all_tokenizers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def counted(name: str, parameters: dict[str, Any]) -> dict[str, str]:
        asked.append(name)
        return networks_of(name, parameters)

    monkeypatch.setattr(graph_module, "networks_of", counted)
    graph_of(tmp_path, measure={"rmsc": {}, "codebook": {}})
    assert sorted(asked) == ["codebook", "rmsc"]
