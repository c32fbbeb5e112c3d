"""The study file: what it must hold, and what is said of a mistake in it."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from latentlab.errors import UserError
from latentlab.quality.vision_transformers import VISION_TRANSFORMERS
from latentlab.study.cells.graph import build_graph
from latentlab.study.plan_file import Resources, load_study
from latentlab.tokenizers.objectives.vision_networks import VISION_NETWORKS
from latentlab.tokenizers.row_file import read_rows

from .engine_world import JUDGE, opened, tiny_study, written

STUDIES = Path(__file__).parents[3] / "studies" / "diffusability"
AE, MIXED = tiny_study()["tokenizers"]
SIT = tiny_study()["generators"][0]


def test_a_whole_file_is_read(tmp_path: Path) -> None:
    study = load_study(
        written(tmp_path, tiny_study(resources={"sample": {"cpus": 2}})), ["samples=20", "trajectories.n=4"]
    )
    assert study.samples == 20 and study.trajectories is not None and study.trajectories.n == 4
    assert study.takes("sample") == Resources(cpus=2) and study.takes("encode") == Resources()
    assert study.measure == {"rmsc": {}, "codebook": {}} and study.retries == 1


def test_a_measurement_without_parameters_needs_no_braces(tmp_path: Path) -> None:
    assert load_study(written(tmp_path, tiny_study(measure={"rmsc": None}))).measure == {"rmsc": {}}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sampels": 3}, "unknown key 'sampels'. Did you mean samples"),
        ({"tokenizers": [{**AE, "clustr": "x"}]}, "unknown key 'clustr'. Did you mean cluster"),
        ({"tokenizers": [AE, AE]}, "ae is there twice"),
        ({"tokenizers": [{**AE, "name": "kl"}]}, "give one of train, name"),
        ({"tokenizers": [{**AE, "cluster": ""}]}, "say its cluster"),
        ({"tokenizers": [{**AE, "family": ""}]}, "tokenizer 'ae': say its family"),
        ({"judges": ["auto"]}, "judge 'auto' is another network on another machine"),
        ({"tokenizers": [{**AE, "label": "a/b"}]}, "label"),
        ({"tokenizers": [AE, {**MIXED, "of": "ea"}]}, "unknown tokenizer of control 'mixed' 'ea'. Did you mean ae"),
        ({"tokenizers": [AE, MIXED, {"label": "m", "control": "orthogonal", "of": "mixed"}]}, "is a control itself"),
        ({"tokenizers": [AE, {**MIXED, "seeds": [3]}]}, "'ae' has no seed 3"),
        ({"tokenizers": [{**AE, "generators": ["sitt"]}]}, "Did you mean sit"),
        ({"generators": [{**SIT, "kind": "sitt"}]}, "unknown kind of generator 'sitt'. Did you mean sit"),
        ({"generators": [{**SIT, "sample": {"cfg_scale": 2}}]}, "give the scales in guidance"),
        ({"generators": [{**SIT, "seeds": [1, 1]}]}, "1 is there twice"),
        ({"resources": {"samples": {}}}, "unknown stage 'samples'. Did you mean sample"),
        ({"resources": {"sample": {"cpu": 1}}}, "unknown key 'cpu'. Did you mean cpus"),
        ({"analysis": {"held_out": ["aee"]}}, "unknown tokenizer in analysis.held_out 'aee'. Did you mean ae"),
        ({"samples": 3}, "samples"),
        ({"judges": [JUDGE, JUDGE]}, "judges: fashion-classifier is there twice"),
        ({"judges": [{"extractor": JUDGE, "guidence": [1.0]}]}, "unknown key 'guidence'. Did you mean guidance"),
        (
            {"judges": [{"extractor": JUDGE, "guidance": [7.5]}]},
            "judge 'fashion-classifier': no generator has the scale 7.5",
        ),
        ({"judges": [{"extractor": JUDGE, "generator_seeds": [9]}]}, "no generator has the seed 9"),
        ({"base": {}, "rows": {}}, "this is a list of tokenizers, not a study: name its rows"),
    ],
)
def test_mistakes_in_the_file(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as error:
        load_study(written(tmp_path, tiny_study(**changes)))
    assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"measure": {"viiv": {}}}, "unknown measurement 'viiv'. Did you mean viv"),
        ({"measure": {"lnc": {"kk": 3}}}, "unknown parameter of 'lnc' 'kk'"),
        ({"judges": ["fashion-clasifier"]}, "Did you mean fashion-classifier"),
        (
            {"tokenizers": [{**AE, "train": "aee"}]},
            "tokenizer 'ae': unknown tokenizer configuration 'aee'. Did you mean ae",
        ),
        ({"tokenizers": [{**AE, "set": ["optimizer.steps=3"]}]}, "ae_fashion32.yaml: unknown key 'optimizer'"),
        ({"tokenizers": [AE, {**MIXED, "control": "ortogonal"}]}, "Did you mean orthogonal"),
        (
            {"tokenizers": [{"label": "x", "cluster": "x", "family": "conv", "weights": "/nowhere.safetensors"}]},
            "there is no file /nowhere",
        ),
        ({"generators": [{**SIT, "base": "sit-fashon"}]}, "generator 'sit': unknown sit configuration 'sit-fashon'"),
        ({"generators": [{**SIT, "sample": {"stepz": 3}}]}, "generator 'sit'"),
    ],
)
def test_what_cannot_be_done_is_said_before_anything_is(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as error:
        build_graph(load_study(written(tmp_path, tiny_study(**changes))))
    assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("column", ["gfd_typo", "m_viv", "gfd_efficientnet_lite0", "straightnes"])
def test_columns_that_will_not_be_there_are_refused_before_anything_runs(column: str, tmp_path: Path) -> None:
    """The tiny study measures no viv and has one judge."""
    asked = {"targets": ["gfd_fashion_classifier"], "predictors": [column, "m_rmsc", "straightness"]}
    with pytest.raises(UserError, match=f"unknown column of the analysis '{column}'"):
        build_graph(load_study(written(tmp_path, tiny_study(analysis=asked))))


def test_what_all_trainings_share_comes_before_their_own(tmp_path: Path) -> None:
    shared = ["optimiser.steps=3", "seed=7", "data.limit=32"]
    _, graph = opened(tmp_path, tiny_study(tokenizer_set=shared))
    (training,) = (cell for cell in graph.cells if cell.stage == "train_tokenizer")
    config = training.settings["config"]
    assert (config["optimiser"]["steps"], config["data"]["limit"], config["seed"]) == (4, 64, 0)
    alone = {**tiny_study()["tokenizers"][0], "set": ["data.limit=64"]}
    _, graph = opened(tmp_path, tiny_study(tokenizer_set=shared, tokenizers=[alone]))
    assert graph.cells[1].settings["config"]["optimiser"]["steps"] == 3


def test_a_dear_judge_sees_the_samples_it_is_given_and_all_reconstructions(tmp_path: Path) -> None:
    generators = [{**SIT, "seeds": [0, 1], "guidance": [1.0, 2.0]}]
    dear = {"extractor": "efficientnet-lite0", "guidance": [1.0], "generator_seeds": [1]}
    _, alone = opened(tmp_path, tiny_study(generators=generators))
    _, graph = opened(tmp_path, tiny_study(generators=generators, judges=[JUDGE, dear]))
    seen = [
        (row.identity["generator_seed"], row.identity["guidance"])
        for row in graph.rows
        if "evaluate efficientnet-lite0" in row.cells
    ]
    assert seen == [(1, 1.0)] * len(tiny_study()["tokenizers"])
    assert all("reconstruction_distance efficientnet-lite0" in row.cells for row in graph.rows)
    added = {cell.key for cell in graph.cells} - {cell.key for cell in alone.cells}
    assert {cell.key for cell in alone.cells} <= {cell.key for cell in graph.cells}
    stages = sorted(cell.stage for cell in graph.cells if cell.key in added)
    assert stages == ["evaluate"] * 2 + ["floor"] + ["reconstruction_distance"] * 2


def test_the_reference_study_has_what_it_must() -> None:
    """At least 24 tokenizers in 8 clusters, a second seed for a quarter, two generators with two seeds and three scales."""
    study = load_study(STUDIES / "fashion.yaml")
    graph = build_graph(study)
    own = [one for one in study.tokenizers if one.of is None]
    assert len(study.tokenizers) >= 24 and len({one.cluster for one in own}) >= 8
    assert sum(len(one.seeds) > 1 for one in own) * 4 >= len(own)
    assert all(len(one.seeds) == 2 and len(one.guidance) == 3 for one in study.generators) and study.samples >= 5000
    assert len(graph.rows) == 12 * sum(len(one.seeds) for one in study.tokenizers)
    assert [one.extractor for one in study.judges] == ["fashion-classifier", "efficientnet-lite0"]
    assert study.judges[0].guidance is None and study.judges[0].generator_seeds is None


def test_the_study_of_cifar10_can_be_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With binary files of a few made-up records; every configuration and name in it exists."""
    folder = tmp_path / "data" / "cifar10"
    folder.mkdir(parents=True)
    records = np.random.default_rng(0).integers(0, 256, (20, 3073), dtype=np.uint8)
    records[:, 0] = np.arange(20) % 10
    for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"):
        (folder / f"{name}.bin").write_bytes(records.tobytes())
    judge = ["judges=[efficientnet-lite0]", "measure.ifid.extractor=efficientnet-lite0"]  # whose weights are here
    columns = ["analysis.targets=[gfd_efficientnet_lite0]", "analysis.covariates=[rfd_efficientnet_lite0]"]
    study = load_study(STUDIES / "cifar10.yaml", [*judge, *columns])
    monkeypatch.chdir(tmp_path)
    graph = build_graph(study)
    assert len({row.identity["cluster"] for row in graph.rows}) >= 12
    assert len(study.tokenizers) >= 24 and len(graph.rows) == 12 * sum(len(one.seeds) for one in study.tokenizers)
    widths = {
        cell.settings["config"]["architecture"].get("ch") for cell in graph.cells if cell.stage == "train_tokenizer"
    }
    assert widths == {64, None}


def test_a_list_of_tokenizers_is_no_study() -> None:
    with pytest.raises(UserError, match=r"imagenet\.yaml: this is a list .* as 'train: FILE#ROW'"):
        load_study(STUDIES / "imagenet.yaml")


def test_the_published_study_trains_every_row_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a folder of four made-up images, a judge whose weights are here, and files in the places of those of the teachers."""
    monkeypatch.setenv("LATENTLAB_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    for network in VISION_NETWORKS.values():
        weights = network.weights if network.judge is None else VISION_TRANSFORMERS[network.judge].files[0]
        if weights is not None:
            weights.path.parent.mkdir(parents=True, exist_ok=True)
            weights.path.write_text(network.architecture)
    for number in range(4):
        file = tmp_path / "images" / f"class{number % 2}" / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((8, 8, 3), 60 * number, dtype=np.uint8)).save(file)
    images, judge = f"imagefolder:{tmp_path / 'images'}", "efficientnet-lite0"
    changes = [
        f"images={images}", f"held_out_images={images}", f"tokenizer_set=[data.train={images}, data.validation={images}]",
        f"judges=[{judge}]", "analysis.targets=[gfd_efficientnet_lite0]",
        "analysis.covariates=[rfd_efficientnet_lite0, decoder_sensitivity]",
    ]  # fmt: skip
    monkeypatch.chdir(STUDIES.parents[1])
    study = load_study(STUDIES / "imagenet_study.yaml", changes)
    rows = read_rows(STUDIES / "imagenet.yaml")
    assert [one.train for one in study.tokenizers] == [f"studies/diffusability/imagenet.yaml#{row.id}" for row in rows]
    told = [(one.cluster, one.family, one.label.partition("-")[2]) for one in study.tokenizers]
    assert told == [(row.cluster, row.architecture, row.name.replace(" ", "-")) for row in rows]
    graph = build_graph(study)
    assert sum(cell.stage == "train_tokenizer" for cell in graph.cells) == 86
    trained = [cell.settings for cell in graph.cells if cell.stage == "train_generator"]
    published = {
        "SiT-B": (400_000, 256, 1e-4, 0.999, "b"), "SiT-XL": (80_000, 256, 1e-4, 0.999, "xl"),
        "LightningDiT-B": (100_000, 1024, 2e-4, 0.95, "b"), "LightningDiT-XL": (100_000, 1024, 2e-4, 0.95, "xl"),
    }  # fmt: skip
    assert [one.label for one in study.generators] == list(published) and len(trained) == 86 * 4
    for settings, expected in zip(trained, [*published.values()] * 86, strict=True):
        optimiser, model = settings["config"]["optimiser"], settings["config"]["model"]
        found = (optimiser["steps"], optimiser["batch_size"], optimiser["learning_rate"], optimiser["betas"][1])
        assert (*found, model["size"]) == expected and model["patch"] == 1
        assert model.get("qk_norm", settings["kind"] == "lightningdit")  # which always has it
    assert all(one.sample == {"solver": "euler", "steps": 50} for one in study.generators)
    assert len(graph.rows) == 86 * 4 * 5


def test_generators_may_differ_on_the_latents_of_one_tokenizer(tmp_path: Path) -> None:
    other = {**AE, "label": "other", "generator_set": ["model.patch=2"]}
    _, graph = opened(tmp_path, tiny_study(tokenizers=[AE, other]))
    patches = [cell.settings["config"]["model"]["patch"] for cell in graph.cells if cell.stage == "train_generator"]
    assert patches == [4, 2]
