"""Our ST-LPIPS against the authors' own implementation in the wheel that carries the weights."""

import sys
from importlib import import_module
from types import ModuleType

import numpy as np
import pytest
import torch
from sklearn.datasets import load_sample_images
from torch import Tensor, nn
from torch.nn import functional

from latentlab.errors import UserError
from latentlab.quality import stlpips
from latentlab.quality.stlpips import SMALLEST_SIDE, STLPIPS

NETS = ("alex", "vgg")


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def ours() -> dict[str, STLPIPS]:
    return {net: STLPIPS(net) for net in NETS}


@pytest.fixture(scope="module", params=NETS)
def authors(request: pytest.FixtureRequest) -> nn.Module:
    """The authors' module; two packages it imports without using or declaring them are replaced by empty ones."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        for name, unused in (("IPython", "embed"), ("torchsummary", "summary")):
            module = ModuleType(name)
            setattr(module, unused, None)
            monkeypatch.setitem(sys.modules, name, module)
        return import_module("stlpips_pytorch.stlpips").LPIPS(
            net=request.param, variant="shift_tolerant", verbose=False
        )


def photographs(size: int) -> Tensor:
    """Two photographs, [2,3,size,size] in [-1,1]."""
    crops = np.stack(
        [photo[100 : 100 + 4 * size : 4, 200 : 200 + 4 * size : 4] for photo in load_sample_images().images]
    )
    return torch.from_numpy(crops).permute(0, 3, 1, 2) / 127.5 - 1


def pairs(kind: str) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    if kind == "photographs and blurred ones":
        photos = photographs(64)
        return photos, functional.avg_pool2d(photos, 5, stride=1, padding=2)
    if kind == "two photographs":
        photos = photographs(32)
        return photos, photos.flip(0)
    if kind == "smallest":
        return tuple(torch.rand(2, 2, 3, SMALLEST_SIDE, SMALLEST_SIDE, generator=generator) * 2 - 1)
    return tuple(torch.rand(2, 3, 3, 33, 46, generator=generator) * 2 - 1)


@pytest.mark.parametrize("kind", ["photographs and blurred ones", "two photographs", "noise, not square", "smallest"])
def test_equals_the_authors_implementation(ours: dict[str, STLPIPS], authors: nn.Module, kind: str) -> None:
    x, y = pairs(kind)
    expected = authors(x, y).flatten().detach()
    assert expected.min() > 1e-3
    torch.testing.assert_close(ours[authors.pnet_type](x, y), expected, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("net", NETS)
def test_is_a_distance_of_perception(ours: dict[str, STLPIPS], net: str) -> None:
    """Zero for equal images, symmetric, and a shift by one pixel counts less than blur of similar squared error."""
    photos = photographs(64)
    x, shifted = photos[..., 1:], photos[..., :-1]
    blurred = functional.avg_pool2d(x, 5, stride=1, padding=2)
    distance = ours[net]
    assert torch.equal(distance(x, x), torch.zeros(2))
    torch.testing.assert_close(distance(x, blurred), distance(blurred, x), rtol=1e-6, atol=0)
    squared = [(x - other).square().mean().item() for other in (shifted, blurred)]
    assert 0.5 < squared[0] / squared[1] < 2
    assert (distance(x, shifted) < 0.7 * distance(x, blurred)).all()


def test_images_do_not_influence_each_other(ours: dict[str, STLPIPS]) -> None:
    x, y = pairs("noise, not square")
    alone = torch.cat([ours["alex"](x[i : i + 1], y[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(ours["alex"](x, y), alone, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("net", NETS)
def test_gradients_against_finite_differences(net: str) -> None:
    distance = STLPIPS(net).double()
    generator = torch.Generator().manual_seed(1)
    x, y, along_x, along_y = torch.rand(4, 1, 3, 24, 24, generator=generator, dtype=torch.float64) * 2 - 1
    x.requires_grad_()
    y.requires_grad_()
    distance(x, y).sum().backward()
    step = 1e-6
    for image, direction, ends in (
        (x, along_x, lambda s: distance(x + s * along_x, y)),
        (y, along_y, lambda s: distance(x, y + s * along_y)),
    ):
        slope = (ends(step) - ends(-step)).sum().item() / (2 * step)
        assert (image.grad * direction).sum().item() == pytest.approx(slope, rel=1e-5)
    assert all(parameter.grad is None for parameter in distance.parameters())


@pytest.mark.parametrize("level", [-1.0, 0.0, 1.0])
def test_gradient_is_finite_where_all_features_are_equal(ours: dict[str, STLPIPS], level: float) -> None:
    """Norms of feature vectors that ReLU made zero have no derivative; a loss must not turn into NaN there."""
    x = torch.full((1, 3, 32, 32), level, requires_grad=True)
    ours["alex"](x, x.detach()).sum().backward()
    assert torch.isfinite(x.grad).all()


def test_parameters_are_frozen(ours: dict[str, STLPIPS]) -> None:
    for distance in ours.values():
        assert not distance.training
        assert not any(parameter.requires_grad for parameter in distance.parameters())


def test_wrong_use_is_explained(ours: dict[str, STLPIPS], monkeypatch: pytest.MonkeyPatch) -> None:
    small = torch.zeros(1, 3, SMALLEST_SIDE - 1, 64)
    for x, y in (
        (small, small),
        (torch.zeros(1, 1, 32, 32),) * 2,
        (torch.zeros(1, 3, 32, 32), torch.zeros(2, 3, 32, 32)),
    ):
        with pytest.raises(UserError, match=r"two batches of one shape \[n,3,H,W\]"):
            ours["alex"](x, y)
    with pytest.raises(UserError, match=r"unknown ST-LPIPS network 'alexnet'. Did you mean alex"):
        STLPIPS("alexnet")
    monkeypatch.setattr(stlpips, "_WHEEL", "stlpips-not-installed")
    with pytest.raises(UserError, match="pip install stlpips-not-installed"):
        STLPIPS("alex")
