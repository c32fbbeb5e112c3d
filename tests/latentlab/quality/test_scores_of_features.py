"""Kernel distance, Inception score and CLIP score against slow versions and cases known by hand."""

import builtins
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch_fidelity.metric_isc import isc_features_to_metric

from latentlab.errors import UserError
from latentlab.quality import clip_score
from latentlab.quality.clip_score import ClipModel, clip_scores, read_texts
from latentlab.quality.inception_score import inception_score
from latentlab.quality.kernel_distance import kernel_distance


def features(n: int, seed: int, shift: float = 0.0) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal((n, 6)) + shift).astype(np.float32)


def unbiased(x: np.ndarray, y: np.ndarray) -> float:
    """Squared maximum mean discrepancy of two sets, pair by pair."""

    def kernel(a: np.ndarray, b: np.ndarray) -> float:
        return float((a @ b / len(a) + 1) ** 3)

    x, y = x.astype(np.float64), y.astype(np.float64)
    n, m = len(x), len(y)
    within_x = sum(kernel(x[i], x[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    within_y = sum(kernel(y[i], y[j]) for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
    return within_x + within_y - 2 * sum(kernel(a, b) for a in x for b in y) / (n * m)


def test_one_subset_of_all_images_is_the_unbiased_estimate() -> None:
    made, real = features(30, 0, 0.4), features(30, 1)
    found = kernel_distance(made, real, subsets=1, subset_size=30)
    assert found.value == pytest.approx(unbiased(made, real), rel=1e-4)
    assert found.spread == 0


def test_subsets_vary_about_the_estimate_and_depend_on_the_seed() -> None:
    made, real = features(60, 0, 0.4), features(80, 1)
    found = kernel_distance(made, real, subsets=400, subset_size=20)
    assert found.value == pytest.approx(unbiased(made, real), abs=4 * found.spread / 20)
    assert found.spread > 0
    assert found == kernel_distance(made, real, subsets=400, subset_size=20)
    assert found != kernel_distance(made, real, subsets=400, subset_size=20, seed=1)


def test_subsets_need_images() -> None:
    with pytest.raises(UserError, match="1000 need as many real images, got 40: give more, or set kid_subset_size"):
        kernel_distance(features(1000, 0), features(40, 1))


def test_a_sure_classifier_that_sees_all_classes_equally_scores_their_number() -> None:
    scores = np.eye(5, dtype=np.float32).repeat(40, 0) * 100
    found = inception_score(scores, nn.Identity(), splits=1)
    assert found.value == pytest.approx(5) and found.adm == pytest.approx(5) and found.spread == 0


def test_equal_predictions_score_one() -> None:
    found = inception_score(np.tile(np.arange(7.0), (50, 1)), nn.Identity())
    assert found.value == pytest.approx(1) and found.adm == pytest.approx(1)


def test_parts_of_the_adm_suite_are_5000_images_in_order() -> None:
    """Each part of this set sees one half of the classes only: 2 and 3, where the whole would give more."""
    classes = np.concatenate([np.arange(5000) % 2, 2 + np.arange(3000) % 3])
    found = inception_score(np.eye(5, dtype=np.float32)[classes] * 100, nn.Identity())
    assert found.adm == pytest.approx((2 + 3) / 2)
    assert found.value > 3.5


def test_score_of_parts_is_torch_fidelitys_of_all_at_once() -> None:
    """103 images in 10 parts of 10 or 11; classes come of a linear map."""
    weight = torch.from_numpy(features(9, 1))
    found = inception_score(features(103, 0), lambda part: part @ weight.T)
    peer = isc_features_to_metric(torch.from_numpy(features(103, 0)) @ weight.T, splits=10, shuffle=True, rng_seed=2020)
    assert found.value == pytest.approx(peer["inception_score_mean"], rel=1e-6)
    assert found.spread == pytest.approx(peer["inception_score_std"], rel=1e-5)


def test_only_one_part_is_classified_at_a_time() -> None:
    """So that memory is that of a part: for 20,000 images 5,000, where all of them would be 160 MB of probabilities."""
    seen: list[int] = []

    def classify(part: torch.Tensor) -> torch.Tensor:
        seen.append(len(part))
        return part

    inception_score(np.zeros((20_000, 2), np.float32), classify, splits=8)
    assert seen == [2500] * 8 + [5000] * 4


def test_score_by_hand() -> None:
    """Two images with p = (0.9, 0.1) and (0.5, 0.5): mean (0.7, 0.3)."""
    p = np.array([[0.9, 0.1], [0.5, 0.5]])
    expected = np.exp(np.mean((p * np.log(p / p.mean(0))).sum(1)))
    found = inception_score(np.log(p).astype(np.float32), nn.Identity(), splits=1)
    assert found.value == pytest.approx(expected) and found.adm == pytest.approx(expected)
    with pytest.raises(UserError, match="10 parts needs as many images, got 2"):
        inception_score(p, nn.Identity())


def test_clip_scores_by_hand() -> None:
    images, texts = np.array([[2.0, 0], [1, 1], [1, 0]]), np.array([[5.0, 0], [0, 3], [-1, 0]])
    np.testing.assert_allclose(clip_scores(images, texts), [100, 100 / np.sqrt(2), 0])
    with pytest.raises(UserError, match="3 images need as many texts"):
        clip_scores(images, texts[:2])


def test_texts_are_lines(tmp_path: Path) -> None:
    file = tmp_path / "texts"
    file.write_text("a cat\nein Hügel\n", encoding="utf-8")
    assert read_texts(file) == ["a cat", "ein Hügel"]
    for content, words in (("a\n\nb", "line 2 is empty"), ("", "no lines")):
        file.write_text(content)
        with pytest.raises(UserError, match=words):
            read_texts(file)
    with pytest.raises(UserError, match="not a readable text file"):
        read_texts(tmp_path / "none")


def test_clip_without_its_package_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> None:
        raise builtins.ImportError(name)

    monkeypatch.setattr(clip_score, "import_module", absent)
    with pytest.raises(UserError, match="pip install transformers"):
        ClipModel()


def test_clip_embeds_images_and_texts(tmp_path: Path) -> None:
    """On a made-up model of the published layout: the score is that of the package's own joint pass."""
    transformers = pytest.importorskip("transformers")
    made_up_clip(tmp_path)
    model = ClipModel(str(tmp_path))
    images = torch.rand(5, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    texts = ["a b", "b", "a a b b a", "b a", "a"]
    pixels = model.judge.network.prepared(images)  # type: ignore[attr-defined]
    reference = transformers.CLIPModel.from_pretrained(tmp_path).eval()
    tokens = transformers.AutoTokenizer.from_pretrained(tmp_path)(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        joint = reference(pixel_values=pixels, input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"])
    expected = 100 * (joint.image_embeds * joint.text_embeds).sum(1).clamp_min(0)
    found = clip_scores(model.judge(images).numpy(), model.embed(texts))
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-3)
    with pytest.raises(UserError, match="not on this machine as safetensors"):
        ClipModel(str(tmp_path / "none"))


def made_up_clip(folder: Path) -> None:
    """Write a tiny CLIP and a tokenizer that knows two letters."""
    import json

    import transformers

    vocabulary = ["a</w>", "b</w>", "a", "b", "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(vocabulary)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    transformers.CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt")).save_pretrained(folder)
    small = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {**small, "vocab_size": 6, "max_position_embeddings": 8, "bos_token_id": 4, "eos_token_id": 5}
    torch.manual_seed(0)
    config = transformers.CLIPConfig(
        text_config={**text, "pad_token_id": 5},
        vision_config={**small, "image_size": 32, "patch_size": 8},
        projection_dim=12,
    )
    transformers.CLIPModel(config).save_pretrained(folder)
