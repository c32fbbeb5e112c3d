"""A small classifier of Fashion-MNIST as a judge of generated images: ``fashion-classifier``, with weights that ship.

Five convolutions, 81,000 weights, trained on the training images by ``python -m latentlab.quality.fashion_classifier train``
(`fashion_classifier_training`). Features: the 96 pooled activations before the last layer; the Frechet distance on them is
``fd_fashion_classifier``. The header of the weight file says how accurate it is and what real images score. It takes images as
`latentlab.data` gives them, 32x32 with 3 channels, and colours only as far as its first layer happens to tell them apart: it
never saw any.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from latentlab.errors import UserError, run_module
from latentlab.files import file_sha256
from latentlab.quality.frozen_network import FrozenNetwork, folded
from latentlab.weights import read_metadata, read_state_dict

NAME = "fashion-classifier"
WEIGHTS = Path(__file__).parent / "weights" / "fashion_classifier.safetensors"
RESIZE = "none, 32x32 only"
SIDE, CLASSES = 32, 10


class FashionClassifier(nn.Module):
    """Images [b,3,32,32] in [-1,1] -> logits [b,10].

    Attributes:
        describe: the features, [b,96].
        classify: the last layer.
    """

    def __init__(self) -> None:
        super().__init__()
        self.describe = nn.Sequential(
            _convolution(3, 24, side=5, stride=2),  # 16x16
            _convolution(24, 24),
            nn.MaxPool2d(2),  # 8x8
            _convolution(24, 48),
            _convolution(48, 48),
            nn.MaxPool2d(2),  # 4x4
            _convolution(48, 96),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
        )
        self.classify = nn.Linear(96, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits."""
        logits: Tensor = self.classify(self.describe(images))
        return logits


def _convolution(channels_in: int, channels_out: int, side: int = 3, stride: int = 1) -> nn.Sequential:
    convolution = nn.Conv2d(channels_in, channels_out, side, stride, padding=side // 2, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(channels_out), nn.ReLU())


class FashionFeatures(FrozenNetwork):
    """The features of a `FashionClassifier` whose normalisation is folded into its convolutions."""

    def __init__(self, classifier: FashionClassifier) -> None:
        super().__init__(classifier.describe)

    def prepared(self, images: Tensor) -> Tensor:
        """Return the images as they are.

        Raises:
            UserError: they are not 3x32x32.
        """
        if images.shape[1:] != (3, SIDE, SIDE):
            raise UserError(f"{NAME} describes images 3x{SIDE}x{SIDE}, got {'x'.join(map(str, images.shape[1:]))}")
        return images.contiguous(memory_format=torch.channels_last)


def load_fashion_classifier(path: Path = WEIGHTS) -> FashionClassifier:
    """Return the trained classifier, in evaluation mode and float32.

    Raises:
        UserError: the weights are missing or damaged.
    """
    if not path.is_file():
        raise UserError(
            f"{path} is missing: install latentlab again, or python -m latentlab.quality.fashion_classifier train"
        )
    classifier = FashionClassifier()
    folded(classifier)
    classifier.load_state_dict(read_state_dict(path))
    return classifier.eval()


def open_fashion_classifier() -> tuple[nn.Module, str]:
    """Return the network of the features with the weights that ship, and what they are.

    Raises:
        UserError: the weights are missing or damaged.
    """
    return FashionFeatures(load_fashion_classifier()), f"{NAME} {file_sha256(WEIGHTS)[:16]}"


def scores(path: Path = WEIGHTS) -> dict[str, float]:
    """Return ``accuracy`` on the 10,000 test images and ``floor``, the distance of 5,000 of them from the training images."""
    header = read_metadata(path)
    return {name: float(header[name]) for name in ("accuracy", "floor")}


def main(arguments: Sequence[str]) -> None:
    """Run ``train``.

    Raises:
        UserError: asked for anything else.
    """
    if list(arguments) != ["train"]:
        raise UserError("usage: fashion_classifier train")
    from latentlab.quality.fashion_classifier_training import train

    train(WEIGHTS)


if __name__ == "__main__":
    run_module(main)
