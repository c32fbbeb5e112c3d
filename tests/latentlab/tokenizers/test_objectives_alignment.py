"""Alignment with a vision network: closed forms, finite differences, adaptive weights, and that optimising it aligns."""

import dataclasses
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from latentlab.errors import UserError
from latentlab.tokenizers.objectives.adaptive import LARGEST, gradient_ratio
from latentlab.tokenizers.objectives.alignment import Alignment, mcos_loss, mdms_loss, repa_loss
from latentlab.tokenizers.objectives.settings import AlignmentSettings
from latentlab.tokenizers.objectives.vision_networks import VISION_NETWORKS, VisionMaps, open_vision_maps, vision_width


def vectors(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def slow_mdms(z: Tensor, f: Tensor, margin: float) -> float:
    """Pair by pair, in Python."""
    n, _, cells = z.shape
    total = 0.0
    for a in range(n):
        for i in range(cells):
            for j in range(cells):
                of_z = float(z[a, :, i] @ z[a, :, j] / (z[a, :, i].norm() * z[a, :, j].norm()))
                of_f = float(f[a, :, i] @ f[a, :, j] / (f[a, :, i].norm() * f[a, :, j].norm()))
                total += max(0.0, abs(of_z - of_f) - margin)
    return total / (n * cells**2)


def test_cosine_terms_in_closed_form() -> None:
    f = torch.eye(4, dtype=torch.float64)[None, :, :2]  # two cells: the first two axes
    turned = torch.zeros_like(f)
    turned[0, 0, 0] = 2.0  # cosine 1
    turned[0, :2, 1] = torch.tensor([3.0, 4.0])  # cosine 0.8
    assert float(repa_loss(turned, f)) == pytest.approx((0 + 0.2) / 2)
    assert float(mcos_loss(turned, f, 0.5)) == 0.0
    assert float(mcos_loss(turned, f, 0.1)) == pytest.approx((0 + 0.1) / 2)
    assert float(mcos_loss(-turned, f, 0.5)) == pytest.approx((1.5 + 1.3) / 2)


def test_distances_equal_the_slow_version() -> None:
    z, f = vectors(2, 3, 5), vectors(2, 7, 5, seed=1)
    assert float(mdms_loss(z, f, 0.25)) == pytest.approx(slow_mdms(z, f, 0.25), rel=1e-12)
    assert float(mdms_loss(z, 5 * z, 0.0)) == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize("loss", [repa_loss, mcos_loss])
def test_gradients_of_the_cosine_terms(loss: object) -> None:
    assert callable(loss)
    z, f = vectors(2, 4, 3).requires_grad_(), vectors(2, 4, 3, seed=1)
    assert torch.autograd.gradcheck(lambda x: loss(x, f), z)


def test_gradient_of_the_distances() -> None:
    z, f = vectors(1, 3, 4).requires_grad_(), vectors(1, 5, 4, seed=1)
    assert torch.autograd.gradcheck(lambda x: mdms_loss(x, f, 0.1), z)


@pytest.mark.parametrize("terms", [{"repa": 1.0}, {"mcos": 1.0}, {"mdms": 1.0}, {"mcos": 1.0, "mdms": 1.0}])
def test_optimising_aligns(terms: dict[str, float]) -> None:
    torch.manual_seed(0)
    features = vectors(2, 8, 4, 4, seed=1).float()
    latents = torch.nn.Parameter(vectors(2, 4, 4, 4).float())
    alignment = Alignment(AlignmentSettings(network="efficientnet-lite0", **terms), 4, 8)
    optimiser = torch.optim.Adam([latents, *alignment.parameters()], lr=0.03)
    history = []
    for _ in range(60):
        found = alignment(latents, features)
        assert set(found) == set(terms)
        total = alignment.total(found)
        history.append(total.item())
        optimiser.zero_grad()
        total.backward()
        optimiser.step()
    assert history[-1] < 0.6 * history[0]


def test_the_sum_is_weighted() -> None:
    alignment = Alignment(AlignmentSettings(network="efficientnet-lite0", mcos=2.0, mdms=3.0), 4, 8)
    parts = {"mcos": torch.tensor(0.5), "mdms": torch.tensor(0.25)}
    assert float(alignment.total(parts)) == 1.75


def test_the_ratio_makes_both_pull_alike() -> None:
    weight = torch.nn.Parameter(vectors(3, 3))
    reference, term = 7.0 * (weight * vectors(3, 3, seed=1)).sum(), 0.01 * (weight * vectors(3, 3, seed=2)).sum()
    ratio = gradient_ratio(reference, term, weight)
    wanted = 7.0 * vectors(3, 3, seed=1).norm() / (0.01 * vectors(3, 3, seed=2).norm() + 1e-4)
    assert float(ratio) == pytest.approx(float(wanted), rel=1e-5) and not ratio.requires_grad
    assert weight.grad is None
    assert float(gradient_ratio(1e9 * weight.sum(), 0 * weight.sum(), weight)) == LARGEST


def test_efficientnet_sees_every_cell_where_it_is() -> None:
    network = open_vision_maps("efficientnet-lite0")
    images = vectors(1, 3, 32, 32).float().clamp(-1, 1)
    features = network(images, (8, 8))
    assert features.shape == (1, vision_width("efficientnet-lite0"), 8, 8) and network.width == features.shape[1]
    other = images.clone()
    other[..., 24:, 24:] = -images[..., 24:, 24:]
    change = (network(other, (8, 8)) - features).norm(dim=1)[0]
    assert change[6:, 6:].mean() > 2 * change[:2, :2].mean()


def test_features_have_no_trained_weights_but_images_get_gradients() -> None:
    network = open_vision_maps("efficientnet-lite0").train()
    assert not network.network.training and not any(p.requires_grad for p in network.parameters())
    images = vectors(1, 3, 32, 32).float().requires_grad_()
    network(images, (2, 2)).sum().backward()
    assert images.grad is not None and images.grad.abs().sum() > 0


def test_transformers_of_timm_give_a_map_of_the_grid() -> None:
    from timm import create_model

    torch.manual_seed(0)
    fixed = create_model("vit_tiny_patch16_224", num_classes=0, img_size=64)
    free = create_model("vit_tiny_patch16_224", num_classes=0, img_size=64, dynamic_img_size=True)
    free.load_state_dict(fixed.state_dict())
    statistics = ((0.5,) * 3, (0.5,) * 3)
    images = vectors(2, 3, 48, 48).float()
    of_free, of_fixed = VisionMaps(free, 192, 16, statistics, None), VisionMaps(fixed, 192, 16, statistics, 64)
    assert of_free(images, (3, 3)).shape == of_fixed(images, (3, 3)).shape == (2, 192, 3, 3)
    torch.testing.assert_close(of_free(images, (4, 4)), of_fixed(images, (4, 4)))
    assert [tuple(m.shape) for m in of_free.several(images)] == [(2, 192, 3, 3)] * 4 and of_free.widths() == [192] * 4


@pytest.mark.parametrize("name", sorted(VISION_NETWORKS.keys() - {"efficientnet-lite0"}))
def test_missing_weights_are_told_in_a_line(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LATENTLAB_HOME", str(tmp_path))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(UserError, match=r"weights .* are not on this machine: get them from") as told:
        open_vision_maps(name)
    assert "\n" not in str(told.value)


def place(monkeypatch: pytest.MonkeyPatch, name: str, architecture: str, width: int, **changes: object) -> Path:
    """Let ``name`` be a small network of its layout; return where its file belongs."""
    small = dataclasses.replace(VISION_NETWORKS[name], architecture=architecture, width=width, **changes)  # type: ignore[arg-type]
    monkeypatch.setitem(VISION_NETWORKS, name, small)
    assert small.weights is not None
    small.weights.path.parent.mkdir(parents=True)
    return small.weights.path


def test_a_checkpoint_of_moco_is_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The encoder of a training checkpoint, with the names that two blocks of the released one have."""
    from timm import create_model

    monkeypatch.setenv("LATENTLAB_HOME", str(tmp_path))
    path = place(monkeypatch, "mocov3-l", "vit_tiny_patch16_224", 192)
    monkeypatch.setattr("timm.create_model", partial(create_model, depth=16, embed_dim=12, num_heads=3))
    torch.manual_seed(0)
    encoder = create_model("vit_tiny_patch16_224", depth=16, embed_dim=12, num_heads=3, num_classes=5)
    misnamed = {
        "blocks.13.norm1.": "blocks.13.norm13.", "blocks.13.mlp.fc1.": "blocks.13.mlp.fc13.",
        "blocks.14.norm2.": "blocks.14.norm14.", "blocks.14.mlp.fc2.": "blocks.14.mlp.fc14.",
    }  # fmt: skip
    state = {}
    for key, value in encoder.state_dict().items():
        wrong = next((key.replace(right, other) for right, other in misnamed.items() if key.startswith(right)), key)
        state |= {f"module.base_encoder.{wrong}": value, f"module.momentum_encoder.{key}": torch.zeros_like(value)}
    torch.save({"epoch": 300, "arch": "vit_large", "state_dict": state, "optimizer": {"state": {}}}, path)
    images = vectors(2, 3, 224, 224).float().clamp(-1, 1)
    maps = open_vision_maps("mocov3-l")
    with torch.no_grad():
        wanted = encoder.eval().forward_features(((images + 1) / 2 - maps.mean) / maps.std)[:, 1:]
        found = maps(images, (14, 14)).flatten(2).transpose(1, 2)
    torch.testing.assert_close(found, wanted)


def test_a_file_of_transformers_is_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The same features as the model that wrote it, under the names of the published file."""
    from timm import create_model
    from transformers import Dinov2Config, Dinov2Model

    monkeypatch.setenv("LATENTLAB_HOME", str(tmp_path))
    path = place(monkeypatch, "webssl-300m", "vit_small_patch14_dinov2", 12, image_side=56)
    monkeypatch.setattr("timm.create_model", partial(create_model, depth=2, embed_dim=12, num_heads=3))
    torch.manual_seed(0)
    sizes = {"hidden_size": 12, "num_hidden_layers": 2, "num_attention_heads": 3, "image_size": 56, "patch_size": 14}
    model = Dinov2Model(Dinov2Config(**sizes, layerscale_value=0.7)).eval()
    for parameter in model.parameters():  # biases start at 0, which would hide one that is forgotten
        torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(path.parent)
    names = set(load_file(path))
    assert {f"encoder.layer.1.attention.attention.{part}.bias" for part in ("query", "key", "value")} <= names
    images = vectors(2, 3, 56, 56).float().clamp(-1, 1)
    maps = open_vision_maps("webssl-300m")
    with torch.no_grad():
        wanted = model(((images + 1) / 2 - maps.mean) / maps.std).last_hidden_state[:, 1:]
        found = maps(images, (4, 4)).flatten(2).transpose(1, 2)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
    save_file({"encoder.layer.0.attention.attention.query.weight": torch.zeros(12, 12)}, path)
    with pytest.raises(UserError, match=r"does not hold the weights of vit_small_patch14_dinov2"):
        open_vision_maps("webssl-300m")


def test_unknown_networks_are_refused() -> None:
    with pytest.raises(UserError, match=r"vision network 'dinov2-xl'"):
        open_vision_maps("dinov2-xl")


@pytest.mark.parametrize("name", sorted(VISION_NETWORKS))
def test_widths_and_strides_are_timms(name: str) -> None:
    from timm import create_model

    wanted = VISION_NETWORKS[name]
    with torch.device("meta"):
        network = create_model(wanted.architecture, num_classes=0)
    info = [level for level in network.feature_info if level["reduction"] <= wanted.stride]
    assert info[-1]["num_chs"] == wanted.width and info[-1]["reduction"] == wanted.stride
