"""Which perceptual distance is used and what it is called; LPIPS itself is checked on a trunk with made-up weights."""

import warnings
from pathlib import Path

import pytest
import torch
import torchvision
from torch import Tensor

from latentlab.errors import UserError
from latentlab.quality.perceptual import TRUNKS, perceptual_distance
from latentlab.quality.stlpips import STLPIPS


@pytest.fixture(autouse=True)
def empty_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Neither torch's nor latentlab's cache holds anything."""
    torch.set_num_threads(1)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setenv("LATENTLAB_HOME", str(tmp_path / "latentlab"))
    return tmp_path


def pairs() -> tuple[Tensor, Tensor]:
    images = torch.rand(2, 3, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    return images[0], images[1]


def write_trunk(path: Path) -> dict[str, Tensor]:
    """Write weights as torchvision publishes AlexNet's, the classifier (which LPIPS does not use) left out."""
    generator = torch.Generator().manual_seed(1)
    shapes = {0: (64, 3, 11, 11), 3: (192, 64, 5, 5), 6: (384, 192, 3, 3), 8: (256, 384, 3, 3), 10: (256, 256, 3, 3)}
    weights = {}
    for layer, shape in shapes.items():
        scale = (shape[1] * shape[2] * shape[3]) ** -0.5
        weights[f"features.{layer}.weight"] = torch.randn(shape, generator=generator) * scale
        weights[f"features.{layer}.bias"] = torch.randn(shape[0], generator=generator) * 0.1
    path.parent.mkdir(parents=True)
    torch.save(weights, path)
    return weights


def test_without_weights_it_is_st_lpips_and_says_so() -> None:
    distance = perceptual_distance()
    assert distance.name == "st_lpips"
    x, y = pairs()
    torch.testing.assert_close(distance(x, y), STLPIPS("alex")(x, y), rtol=0, atol=0)


@pytest.mark.parametrize("place", ["torch/hub/checkpoints", "latentlab/weights/torchvision"])
def test_lpips_is_the_package_on_the_weights_of_this_machine(empty_machine: Path, place: str) -> None:
    weights = write_trunk(empty_machine / place / TRUNKS["alex"].filename)
    distance = perceptual_distance()
    assert distance.name == "lpips"
    x, y = pairs()
    from lpips import LPIPS

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        peer = LPIPS(net="alex", pnet_rand=True, verbose=False)
        trunk = torchvision.models.alexnet().features
        trunk.load_state_dict({name.removeprefix("features."): value for name, value in weights.items()})
        peer.net.slice1, peer.net.slice2, peer.net.slice3 = trunk[:2], trunk[2:5], trunk[5:8]
        peer.net.slice4, peer.net.slice5 = trunk[8:10], trunk[10:12]
    with torch.no_grad():
        expected = peer(x, y).flatten()
    assert expected.min() > 1e-3
    torch.testing.assert_close(distance(x, y), expected, rtol=1e-5, atol=1e-7)
    assert torch.equal(distance(x, x), torch.zeros(3))


def test_lpips_can_be_differentiated(empty_machine: Path) -> None:
    write_trunk(empty_machine / "torch/hub/checkpoints" / TRUNKS["alex"].filename)
    distance = perceptual_distance("lpips")
    x, y = pairs()
    x.requires_grad_()
    distance(x, y).sum().backward()
    assert torch.isfinite(x.grad).all() and x.grad.abs().max() > 0
    assert not any(parameter.requires_grad for parameter in distance.network.parameters())


def test_weights_that_are_absent_are_named_and_not_fetched(empty_machine: Path) -> None:
    for name, file in (("lpips", "alexnet-owt-7be5be79.pth"), ("lpips_vgg", "vgg16-397923af.pth")):
        with pytest.raises(UserError, match=f"{file} .* not on this machine.*{empty_machine}.*curl"):
            perceptual_distance(name)
    with pytest.raises(UserError, match="unknown perceptual distance 'lpip'"):
        perceptual_distance("lpip")


def test_another_file_under_that_name_is_refused(empty_machine: Path) -> None:
    path = empty_machine / "torch/hub/checkpoints" / TRUNKS["alex"].filename
    path.parent.mkdir(parents=True)
    torch.save({"features.0.weight": torch.zeros(2, 2)}, path)
    with pytest.raises(UserError, match="does not hold torchvision's weights"):
        perceptual_distance()
