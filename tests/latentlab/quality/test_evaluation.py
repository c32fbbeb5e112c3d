"""An evaluation as a whole: values against the parts they are made of, what is refused, and what every value tells."""

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric

from analyses.frechet import Moments, frechet_distance
from latentlab.data import open_data
from latentlab.errors import UserError
from latentlab.measurement import Measurement
from latentlab.pixels import ArrayPixels
from latentlab.quality import evaluation as module
from latentlab.quality import inception, judged
from latentlab.quality.evaluation import METRICS, Evaluation, evaluate
from latentlab.quality.features import FeatureExtractor
from latentlab.quality.image_sets import EvaluationSet, open_reference
from latentlab.quality.judged import QualitySettings
from latentlab.quality.kernel_distance import kernel_distance
from latentlab.quality.manifold import manifold_scores
from latentlab.quality.quality_results import QualityResults
from latentlab.quality.sample_file import write_sample_file

SMALL = QualitySettings(kid_subset_size=20, kid_subsets=5, pr_k=2, dc_k=4)
SAMPLING = {"seed": 7, "generator": "sit", "sampler": {"solver": "euler"}, "steps": 50, "guidance": {"cfg_scale": 2.0},
            "precision": "float32", "request": {}}  # fmt: skip


@pytest.fixture(autouse=True)
def no_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TORCH_HOME", "LATENTLAB_HOME", "HF_HOME"):
        monkeypatch.setenv(name, str(tmp_path / name))


def colours(images: Tensor) -> Tensor:
    return images.mean((2, 3))


def brightness(images: Tensor) -> Tensor:
    return torch.stack([images.mean((1, 2, 3)), images.amax((1, 2, 3))], 1)


def pictures(n: int, seed: int, shift: float = 0.0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (rng.normal(120 + shift, 40, (n, 3, 1, 1)) + rng.normal(0, 9, (n, 3, 4, 4))).clip(0, 255).astype(np.uint8)


def images(n: int, seed: int, shift: float = 0.0, **fields: Any) -> EvaluationSet:
    pixels = ArrayPixels(pictures(n, seed, shift))
    facts = {"path": f"images {seed}", "n": n, "fingerprint": pixels.fingerprint}
    return EvaluationSet(f"images {seed}", pixels, facts, **fields)


def request(**changes: Any) -> Evaluation:
    given = Evaluation(images(60, 0, 8, sampling=SAMPLING), images(80, 1), extractors=(colours,), settings=SMALL)
    return replace(given, **changes)


def values(results: QualityResults) -> dict[str, Measurement]:
    return {measurement.name: measurement for measurement in results.measurements}


def test_values_are_those_of_the_features() -> None:
    found = values(evaluate(request(metrics=("fd", "kid", "pr", "dc"))))
    made, real = (
        colours(torch.from_numpy(pictures(*which)).float() / 127.5 - 1).numpy() for which in ((60, 0, 8), (80, 1))
    )
    assert list(found) == [
        "fd_colours",
        "kd_colours",
        "precision_colours",
        "recall_colours",
        "density_colours",
        "coverage_colours",
    ]
    expected = frechet_distance(made.mean(0), np.cov(made.T), real.mean(0), np.cov(real.T))
    assert found["fd_colours"].value == pytest.approx(expected, rel=1e-4)
    kernel = kernel_distance(made, real, subsets=5, subset_size=20)
    assert found["kd_colours"].value == pytest.approx(kernel.value, rel=1e-4)
    scores = manifold_scores(made, real, k=2, density_k=4)
    for name in ("precision", "recall", "density", "coverage"):
        one = found[f"{name}_colours"]
        assert one.value == pytest.approx(getattr(scores, name).mean())
        assert one.interval is not None and one.interval[0] < one.value < one.interval[1]
        assert "60 generated and 80 real images" in one.warnings[0]
    assert found["fd_colours"].direction == "lower" and found["recall_colours"].direction == "higher"


def test_few_images_are_said_to_be_few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Frechet distances and Inception scores move with the number of images, kernel distances do not."""
    found = values(evaluate(request()))
    (words,) = found["fd_colours"].warnings
    assert (
        words.startswith("60 images: it falls as their number grows")
        and "compare values of equal numbers only" in words
    )
    assert found["kd_colours"].warnings == ()
    alike = values(evaluate(request(reference=images(60, 1), metrics=("pr",))))
    assert "60 generated and 60 real images" in alike["recall_colours"].warnings[0]
    monkeypatch.setattr(judged, "_MANY", 60)
    monkeypatch.setattr(judged, "_MANY_IN_MANIFOLDS", 60)
    assert values(evaluate(request()))["fd_colours"].warnings == ()
    assert values(evaluate(request(reference=images(60, 1), metrics=("pr",))))["recall_colours"].warnings == ()


def test_sfid_is_made_once() -> None:
    assert request(metrics=("fd", "sfid"), extractors=("inception-spatial",)).plan() == {"inception-spatial": ("fd",)}
    assert request(metrics=("sfid", "is"), extractors=("vgg16",)).plan() == {
        "inception": ("is",), "inception-spatial": ("sfid",)
    }  # fmt: skip


def test_what_limits_a_set_limits_every_value() -> None:
    results = evaluate(request(samples=images(60, 0, 8, cautions=("2 images were left out",)), metrics=("fd", "kid")))
    assert all("2 images were left out" in measurement.warnings for measurement in results.measurements)


def test_order_and_company_of_metrics_do_not_matter() -> None:
    whole = values(evaluate(request(metrics=("pr", "dc"))))
    for metrics in (("dc", "pr"), ("pr",), ("dc",)):
        for name, one in values(evaluate(request(metrics=metrics))).items():
            assert (one.value, one.variant) == (whole[name].value, whole[name].variant)


def test_distance_is_torch_fidelitys() -> None:
    (found,) = evaluate(request(metrics=("fd",))).measurements
    statistics = [
        fid_features_to_statistics(colours(torch.from_numpy(pictures(*which)).float() / 127.5 - 1))
        for which in ((60, 0, 8), (80, 1))
    ]
    expected = fid_statistics_to_metric(*statistics, verbose=False)["frechet_inception_distance"]
    assert found.value == pytest.approx(expected, rel=1e-6)


def test_inceptions_values_are_torch_fidelitys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On made-up weights: its own path from 8-bit images to values, and ours."""
    from torch_fidelity import calculate_metrics

    path = tmp_path / "TORCH_HOME/hub/checkpoints" / inception.WEIGHTS.filename
    path.parent.mkdir(parents=True)
    write_inception(path)
    settings = QualitySettings(kid_subset_size=4, kid_subsets=3, is_splits=2, pr_k=1)
    made, real = images(7, 0, -40), images(5, 1)
    given = Evaluation(made, real, metrics=("kid", "pr", "is"), settings=settings)
    found = values(evaluate(given))

    class Levels(torch.utils.data.Dataset[Tensor]):
        def __init__(self, levels: np.ndarray) -> None:
            self.levels = torch.from_numpy(levels)

        def __len__(self) -> int:
            return len(self.levels)

        def __getitem__(self, index: int) -> Tensor:
            return self.levels[index]

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about its worker processes
        peer = calculate_metrics(
            input1=Levels(pictures(7, 0, -40)), input2=Levels(pictures(5, 1)), cuda=False, isc=True, kid=True, prc=True,
            feature_extractor="inception-v3-compat", feature_extractor_weights_path=str(path), verbose=False, cache=False,
            kid_subset_size=4, kid_subsets=3, isc_splits=2, prc_neighborhood=1,
        )  # fmt: skip
    assert found["kid"].value == pytest.approx(peer["kernel_inception_distance_mean"], rel=1e-3)
    assert found["inception_score"].value == pytest.approx(peer["inception_score_mean"], rel=1e-5)
    assert found["precision_inception"].value == pytest.approx(peer["precision"], abs=1e-6)
    assert found["recall_inception"].value == pytest.approx(peer["recall"], abs=1e-6)


def write_inception(path: Path) -> None:
    from torch_fidelity import feature_extractor_inceptionv3 as published

    with pytest.MonkeyPatch.context() as patch:  # its constructor insists on weights: give it its own
        patch.setattr(published, "load_state_dict_from_url", lambda *_, **__: {})
        patch.setattr(published.FeatureExtractorInceptionV3, "load_state_dict", lambda *_: None)
        torch.manual_seed(0)
        network = published.FeatureExtractorInceptionV3("made-up", ["2048"])
    for parameter in network.parameters():  # so that activations keep their size through the network
        if parameter.ndim == 4:
            torch.nn.init.kaiming_normal_(parameter, nonlinearity="relu")
    torch.save(network.state_dict(), path)


def test_every_value_says_what_it_is_of() -> None:
    results = evaluate(request(validation=images(60, 2)), command="latentlab evaluate")
    assert list(values(results))[-1] == "fdr_1" and len(results.measurements) == 7
    for measurement in results.measurements:
        facts = measurement.provenance
        assert (facts["reference"], facts["n_reference"], measurement.n) == ("images 1", 80, 60)
        assert (facts["seed"], facts["steps"], facts["guidance"], facts["precision"]) == (
            7,
            50,
            {"cfg_scale": 2.0},
            "float32",
        )
        assert facts["sampler"] == {"solver": "euler"} and facts["image_size"] == facts["reference_size"] == "4x4"
        assert facts["latentlab"] and facts["libraries"]["torch-fidelity"]
        if measurement.name != "fdr_1":
            assert facts["extractor"] == facts["version"] == "colours" and "resize" in facts
    written = results.to_dict()
    assert written["samples"]["sampling"]["steps"] == 50 and written["reference"]["n"] == 80
    assert written["settings"]["pr_k"] == 2 and written["command"] == "latentlab evaluate"
    assert Measurement.from_dict(written["measurements"][0]) == results.measurements[0]


def test_fdr_is_the_mean_ratio_to_the_validation_set() -> None:
    given = request(metrics=("fdr",), extractors=(colours, brightness), validation=images(60, 2))
    (found,) = evaluate(given).measurements
    ratios = []
    for extractor in (colours, brightness):
        (made,) = evaluate(request(metrics=("fd",), extractors=(extractor,))).measurements
        (real,) = evaluate(request(metrics=("fd",), extractors=(extractor,), samples=images(60, 2))).measurements
        ratios.append(made.value / real.value)
    assert found.name == "fdr_2" and found.value == pytest.approx(np.mean(ratios))
    assert [estimate.value for estimate in found.companions.values()] == pytest.approx(ratios)
    assert found.warnings == () and found.provenance["n_validation"] == 60
    real = evaluate(request(metrics=("fdr",), samples=images(60, 2), validation=images(60, 2)))
    assert real.measurements[0].value == 1
    warned = evaluate(request(metrics=("fdr",), validation=images(50, 2))).measurements[0]
    assert "60 generated and 50 validation images" in warned.warnings[0]
    refused = evaluate(request(metrics=("fdr",), validation=images(80, 1)))
    assert "distance 0 from the reference" in refused.refused["fdr"]


def test_the_reference_is_no_validation_set_whatever_it_is_called(tmp_path: Path) -> None:
    """On features of a real network, whose distance of equal sets is a residue of rounding."""
    reference = open_reference("fashion:test", limit=120)
    copy = tmp_path / "copy.npz"
    levels = open_data("fashion:test", limit=120).images(np.arange(120)).permute(0, 2, 3, 1).numpy()
    write_sample_file(copy, levels.shape[:3], [levels], np.zeros(120, np.int64))
    samples = open_reference("fashion:train", limit=60)
    for validation in (reference, open_reference(str(copy))):
        asked = Evaluation(samples, reference, ("fdr",), ("fashion-classifier",), validation)
        assert "distance 0 from the reference" in evaluate(asked).refused["fdr"]


def test_published_statistics_stand_in_for_images(monkeypatch: pytest.MonkeyPatch) -> None:
    judge = FeatureExtractor("inception", "fid", colours)
    monkeypatch.setattr(module, "feature_extractor", lambda name, device: judge)
    features = np.random.default_rng(0).standard_normal((50, 3))
    moments = Moments(features.mean(0), np.cov(features.T))
    statistics = EvaluationSet("VIRTUAL.npz", None, {"path": "VIRTUAL.npz", "sha256": "ab"}, {"inception": moments})
    results = evaluate(request(reference=statistics, metrics=("fd", "kid", "pr"), extractors=("inception",)))
    (distance,) = results.measurements
    made = colours(torch.from_numpy(pictures(60, 0, 8)).float() / 127.5 - 1).double().numpy()
    assert distance.name == "fid" and distance.value == pytest.approx(
        frechet_distance(made.mean(0), np.cov(made.T), *moments)
    )
    assert distance.interval is None and "no interval" in distance.warnings[0]
    assert distance.provenance["reference_fingerprint"] == "ab" and distance.provenance["n_reference"] is None
    assert sorted(results.refused) == ["kid on inception", "pr on inception"]
    assert "no images: of it only fid and sfid can be made" in results.refused["pr on inception"]
    both = replace(statistics, pixels=images(40, 1).pixels)
    found = values(evaluate(request(reference=both, metrics=("fd", "pr"), extractors=("inception",))))
    assert found["fid"].value == distance.value and found["fid"].provenance["reference_form"] == "statistics"
    assert found["precision_inception"].provenance["n_reference"] == 40
    assert "k=2" in found["precision_inception"].variant
    wrong = replace(statistics, moments={"inception": Moments(np.zeros(5), np.eye(5))})
    refusal = evaluate(request(reference=wrong, metrics=("fd",), extractors=("inception",))).refused["fd on inception"]
    assert "have 5 dimensions, features of inception 3" in refusal


def test_variants_of_precision_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, words in (("inception", "ADM suite"), ("vgg16", "torch-fidelity"), ("dinov2-vit-l-14", "Kynkaanniemi")):
        judge = FeatureExtractor(name, "fd_x", colours)
        monkeypatch.setattr(module, "feature_extractor", lambda name, device, judge=judge: judge)
        (precision, _) = evaluate(request(metrics=("pr",), extractors=(name,), settings=QualitySettings())).measurements
        assert words in precision.variant and "k=3" in precision.variant
        assert precision.name == f"precision_{name.replace('-', '_')}"


def test_what_cannot_be_had_is_refused_and_the_rest_is_made() -> None:
    given = request(metrics=tuple(METRICS)[:6], extractors=(colours, "dinov2-vit-l-14"), settings=QualitySettings())
    results = evaluate(given)
    assert list(values(results)) == [
        "fd_colours", "precision_colours", "recall_colours", "density_colours", "coverage_colours"
    ]  # fmt: skip
    assert "subsets of 1000 need as many generated images, got 60" in results.refused["kid on colours"]
    for name in ("fd on dinov2-vit-l-14", "is on inception", "sfid on inception-spatial"):
        assert "not on this machine" in results.refused[name]


def test_defaults_offline() -> None:
    given = Evaluation(images(12, 0), images(12, 1), settings=replace_size(5))
    assert given.plan() == {"efficientnet-lite0": ("fd", "kid", "pr", "dc")}
    results = evaluate(given)
    assert not results.refused and results.measurements[0].name == "fd_efficientnet_lite0"
    assert not any("fid" in measurement.name for measurement in results.measurements)
    assert "12 images for 1280" in results.measurements[0].warnings[0]
    assert results.measurements[0].provenance["resize"] == "224x224 bilinear, antialiased"


def replace_size(size: int) -> QualitySettings:
    return QualitySettings(kid_subset_size=size, kid_subsets=2)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"metrics": ("fdd",)}, "unknown metric 'fdd'. Did you mean fd"),
        ({"metrics": ()}, "no metric is named"),
        ({"metrics": ("fdr",)}, "give a validation set"),
        ({"metrics": ("clip",)}, "needs the text of every image"),
        ({"extractors": ("inceptoin",)}, "Did you mean inception"),
        ({"texts": ["one"], "metrics": ("fd",)}, "60 images need as many texts, got 1"),
    ],
)
def test_mistakes(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        evaluate(request(**changes))


def test_clip_is_refused_without_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    from latentlab.quality import clip_score

    def absent(name: str) -> None:
        raise ImportError(name)

    monkeypatch.setattr(clip_score, "import_module", absent)
    results = evaluate(request(texts=["a cat"] * 60))
    assert "pip install transformers" in results.refused["clip"] and len(results.measurements) == 6


def test_clip_score_of_a_model(monkeypatch: pytest.MonkeyPatch) -> None:
    class Model:
        name = "made up"
        judge = FeatureExtractor("clip-score-made-up", "fd_made_up", colours)

        def __init__(self, *given: str) -> None:
            assert given == ("mine", "cpu")

        def embed(self, texts: list[str]) -> np.ndarray:
            return np.tile([[1.0, 1, 1]], (len(texts), 1))

    monkeypatch.setattr(module, "ClipModel", Model)
    (found,) = evaluate(request(metrics=("clip",), texts=["grey"] * 60, clip_model="mine")).measurements
    made = colours(torch.from_numpy(pictures(60, 0, 8)).float() / 127.5 - 1).double().numpy()
    cosines = (made.sum(1) / np.linalg.norm(made, axis=1) / np.sqrt(3)).clip(0)
    assert found.value == pytest.approx(100 * cosines.mean(), rel=1e-5) and found.interval is not None
    assert found.provenance["extractor"] == "clip-score-made-up" and found.variant == "100 max(cos, 0), made up"
