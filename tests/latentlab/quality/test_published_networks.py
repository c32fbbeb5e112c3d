"""Networks whose weights are not shipped: made-up weights of the published layouts, and one line where there are none."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional

from latentlab.errors import UserError
from latentlab.quality import vision_transformers
from latentlab.quality.features import extractor_names, feature_extractor
from latentlab.quality.vision_transformers import VISION_TRANSFORMERS
from latentlab.weights import WeightFile


@pytest.fixture(autouse=True)
def empty_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    torch.set_num_threads(1)
    for name in ("TORCH_HOME", "LATENTLAB_HOME", "HF_HOME"):
        monkeypatch.setenv(name, str(tmp_path / name))
    return tmp_path


SHIPPED = ("efficientnet-lite0", "fashion-classifier")
"""Extractors whose weights come with the package or a dependency of it."""


def images(n: int, side: int) -> Tensor:
    return torch.rand(n, 3, side, side, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.mark.parametrize("name", [name for name in extractor_names() if name not in SHIPPED])
def test_absent_weights_are_told_in_one_line(name: str) -> None:
    with pytest.raises(UserError, match=r"not on this machine: get them from .* and put them at") as caught:
        feature_extractor(name)
    assert "\n" not in str(caught.value)


def test_timm_knows_the_networks() -> None:
    sizes = {name: timm.is_model(network.timm_name) for name, network in VISION_TRANSFORMERS.items()}
    assert all(sizes.values()), sizes
    assert VISION_TRANSFORMERS["clip-vit-l-14-336"].files[0].repo == "timm/vit_large_patch14_clip_336.openai"


def smaller(monkeypatch: pytest.MonkeyPatch, name: str, **sizes: Any) -> Any:
    """Let `name` be a smaller network of its kind; return a function that makes one with random weights."""
    create = timm.create_model

    def small(model: str, **options: Any) -> Any:
        return create(model, **{**options, **sizes})

    monkeypatch.setattr(timm, "create_model", small)
    torch.manual_seed(0)
    return small(VISION_TRANSFORMERS[name].timm_name, img_size=518 if name.startswith("dino") else 224).eval()


@pytest.mark.parametrize("name", ["dinov2-vit-s-14", "dinov2-vit-g-14"])
def test_dinov2_in_the_authors_layout(name: str, empty_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their file has positions for 518 pixels, a mask token, and in the largest size other names of the gated layers."""
    network = smaller(monkeypatch, name, embed_dim=32, depth=2, num_heads=2)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_(std=0.3)
    weights = dict(network.state_dict())
    published = {"mask_token": torch.zeros(1, 32), **weights}
    if name.endswith("g-14"):
        published = {k.replace("mlp.fc1.", "mlp.w12.").replace("mlp.fc2.", "mlp.w3."): v for k, v in published.items()}
        assert "blocks.0.mlp.w12.weight" in published
    file = VISION_TRANSFORMERS[name].files[0]
    path = empty_home / "TORCH_HOME/hub/checkpoints" / file.filename
    path.parent.mkdir(parents=True)
    torch.save(published, path)

    extractor = feature_extractor(name)
    assert extractor.distance == f"fd_{name.replace('-', '_')}" and extractor.resize == "224x224 bicubic, antialiased"
    direct = timm.create_model(VISION_TRANSFORMERS[name].timm_name, img_size=224).eval()
    weights["pos_embed"] = resampled(weights["pos_embed"], 37, 16)
    direct.load_state_dict(weights)
    pixels = images(2, 300)
    resized = functional.interpolate(pixels, (224, 224), mode="bicubic", antialias=True)
    mean, std = (torch.tensor(row)[:, None, None] for row in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    with torch.no_grad():
        expected = direct.forward_features((resized / 2 + 0.5 - mean) / std)[:, 0]
    torch.testing.assert_close(extractor(pixels), expected, rtol=1e-4, atol=1e-4)


def resampled(table: Tensor, old: int, new: int) -> Tensor:
    """Bicubic interpolation (a = -0.75) at places (i + 0.5) / scale - 0.5 with scale (new + 0.1) / old, point by point."""

    def weight(distance: float) -> float:
        x = abs(distance)
        if x <= 1:
            return (1.25 * x - 2.25) * x * x + 1
        return -0.75 * (((x - 5) * x + 8) * x - 4) if x < 2 else 0.0

    rows = np.zeros((new, old))
    for i in range(new):
        place = (i + 0.5) * old / (new + 0.1) - 0.5
        for j in range(int(np.floor(place)) - 1, int(np.floor(place)) + 3):
            rows[i, min(max(j, 0), old - 1)] += weight(place - j)
    grid = table[0, 1:].double().numpy().reshape(old, old, -1)
    moved = np.einsum("ai,bj,ijd->abd", rows, rows, grid).reshape(1, new * new, -1)
    return torch.cat([table[:, :1], torch.from_numpy(moved).float()], 1)


def test_clip_from_the_hub_cache(empty_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network = smaller(monkeypatch, "clip-vit-b-32", embed_dim=32, depth=2, num_heads=2, num_classes=12)
    path = vision_transformers.VISION_TRANSFORMERS["clip-vit-b-32"].files[0].path
    path.parent.mkdir(parents=True)
    save_file(network.state_dict(), path)
    extractor, pixels = feature_extractor("clip-vit-b-32"), images(3, 224)
    mean, std = (torch.tensor(row)[:, None, None] for row in vision_transformers._OPENAI)
    with torch.no_grad():
        expected = network((pixels / 2 + 0.5 - mean) / std)
    assert expected.shape == (3, 12)
    torch.testing.assert_close(extractor(pixels), expected, rtol=1e-4, atol=1e-5)
    assert extractor.version and path.name in extractor.version

    save_file({**network.state_dict(), "head.weight": torch.zeros(5, 32)}, path)
    with pytest.raises(UserError, match=r"does not hold the weights of clip-vit-b-32 \('head.weight' differs\)"):
        feature_extractor("clip-vit-b-32")


def test_extractors_registered_with_torch_fidelity(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch_fidelity import registry
    from torch_fidelity.feature_extractor_base import FeatureExtractorBase

    class Means(FeatureExtractorBase):
        def __init__(self, name: str, features_list: list[str], weights: str | None = None) -> None:
            assert weights is None
            super().__init__(name, features_list)

        def forward(self, levels: Tensor) -> tuple[Tensor]:
            assert levels.dtype == torch.uint8
            return (levels.float().mean((2, 3)),)

        @staticmethod
        def get_provided_features_list() -> tuple[str]:
            return ("means",)

        @staticmethod
        def get_default_feature_layer_for_metric(metric: str) -> str:
            return "means"

    monkeypatch.setitem(registry.FEATURE_EXTRACTORS_REGISTRY, "my-means", Means)
    extractor = feature_extractor("torch-fidelity:my-means")
    assert extractor.distance == "fd_torch_fidelity_my_means"
    pixels = images(5, 8)
    expected = ((pixels + 1) * 127.5).round().mean((2, 3))
    torch.testing.assert_close(extractor(pixels), expected)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("torch-fidelity:clip-vit-b-23", "Did you mean clip-vit-b-32"),
        ("torch-fidelity:dinov2-vit-l-14", "use the extractor 'dinov2-vit-l-14'"),
        ("torch-fidelity:clip-vit-b-32", "ViT-B-32.pt .* not on this machine"),
        ("torch-fidelity:inception-v3-compat", "not on this machine"),
    ],
)
def test_registered_networks_that_cannot_be_had(name: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        feature_extractor(name)


def test_only_plain_tensors_and_the_published_archive_are_opened(empty_home: Path) -> None:
    folder = empty_home / "TORCH_HOME/hub/checkpoints"
    folder.mkdir(parents=True)
    torch.save({"features.0.weight": Path("code")}, folder / "vgg16-397923af.pth")
    with pytest.raises(UserError, match="is refused: beside tensors it asks for"):
        feature_extractor("vgg16")
    torch.save({"features.0.weight": torch.zeros(3)}, folder / "vgg16-397923af.pth")
    with pytest.raises(UserError, match="does not hold the weights of vgg16"):
        feature_extractor("vgg16")
    from torch_fidelity.feature_extractor_clip import MODEL_METADATA

    (folder / f"clip-rn50-{MODEL_METADATA['clip-rn50']['hash']}.pt").write_bytes(b"something else")
    with pytest.raises(UserError, match="not the file that OpenAI published"):
        feature_extractor("torch-fidelity:clip-rn50")


def test_a_file_beside_the_first_choice_is_found(empty_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = WeightFile("someone/else", "model.safetensors")
    here.path.parent.mkdir(parents=True)
    save_file({"x": torch.zeros(1)}, here.path)
    name = "dinov2-vit-s-14"
    known = VISION_TRANSFORMERS[name]
    monkeypatch.setitem(VISION_TRANSFORMERS, name, replace(known, files=(*known.files, here)))
    assert vision_transformers.vision_transformer_file(name) == here.path
