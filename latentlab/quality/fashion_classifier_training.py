"""Training of the Fashion-MNIST classifier: a few minutes on one core, the same weights every time on the same machine."""

from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional

from latentlab import __version__
from latentlab.data import open_data
from latentlab.files import atomic_path
from latentlab.measurement import Estimate
from latentlab.pixels import SetPixels, to_unit_range
from latentlab.quality.fashion_classifier import NAME, FashionClassifier, FashionFeatures
from latentlab.quality.features import FeatureExtractor, features_of
from latentlab.quality.frozen_network import folded
from latentlab.quality.generation import frechet_of_features
from latentlab.randomness import generator
from latentlab.runtime import say

EPOCHS, BATCH = 6, 128
LEARNING_RATE, MOMENTUM, WEIGHT_DECAY = 0.1, 0.9, 5e-4
LABEL_SMOOTHING = 0.05
FLOOR_IMAGES = 5000


def train(path: Path) -> None:
    """Train on the 60,000 training images, score on the test images, and write the weights with the scores in their header."""
    torch.set_num_threads(1)  # sums in one order
    classifier = fitted(EPOCHS)
    folded(classifier)
    state = {name: value.half().contiguous() for name, value in classifier.state_dict().items()}
    classifier.load_state_dict(state)  # what is scored is what is kept
    accuracy, floor = accuracy_on_test_images(classifier), real_floor(classifier)
    say(
        f"accuracy {accuracy:.4f} on 10,000 test images; {FLOOR_IMAGES:,} of them are {floor.value:.4f} from the training images"
    )
    header = {
        "accuracy": f"{accuracy:.4f}",
        "floor": f"{floor.value:.5f}",
        "floor_images": f"{FLOOR_IMAGES} of fashion:test against fashion:train",
        "training": f"{EPOCHS} epochs of {BATCH}, SGD, one cycle up to {LEARNING_RATE}",
        "latentlab_version": __version__,
    }
    with atomic_path(path) as temporary:
        save_file(state, temporary, metadata=header)


def fitted(epochs: int, limit: int | None = None) -> FashionClassifier:
    """Return the classifier after ``epochs`` over the training images, or over at most ``limit`` of them.

    Stochastic gradient descent with Nesterov's momentum, the learning rate in one cycle (Smith and Topin 2017, arXiv
    1708.07120), images mirrored half of the time.
    """
    data = open_data("fashion:train", limit=limit)
    pixels, labels = data.images(np.arange(data.n)), torch.from_numpy(data.labels)
    torch.manual_seed(0)
    classifier = FashionClassifier().to(memory_format=torch.channels_last)
    optimiser = torch.optim.SGD(
        classifier.parameters(), LEARNING_RATE, MOMENTUM, weight_decay=WEIGHT_DECAY, nesterov=True
    )
    steps = data.n // BATCH
    rate = torch.optim.lr_scheduler.OneCycleLR(optimiser, LEARNING_RATE, total_steps=epochs * steps)
    for epoch in range(epochs):
        random = generator(0, "fashion-classifier", epoch)
        losses = []
        for rows in torch.randperm(data.n, generator=random)[: steps * BATCH].split(BATCH):
            images = _half_mirrored(to_unit_range(pixels[rows]), random)
            loss = functional.cross_entropy(classifier(images), labels[rows], label_smoothing=LABEL_SMOOTHING)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            rate.step()
            losses.append(float(loss.detach()))
        say(f"epoch {epoch + 1} of {epochs}: loss {np.mean(losses):.4f}")
    return classifier.eval()


def _half_mirrored(images: Tensor, random: torch.Generator) -> Tensor:
    chosen = torch.rand(len(images), generator=random) < 0.5
    mirrored = torch.where(chosen[:, None, None, None], images.flip(3), images)
    return mirrored.contiguous(memory_format=torch.channels_last)


@torch.no_grad()
def accuracy_on_test_images(classifier: FashionClassifier, limit: int | None = None) -> float:
    """Return the share of test images, or of at most ``limit`` of them, that are classified rightly."""
    data = open_data("fashion:test", limit=limit)
    labels = torch.from_numpy(data.labels)
    right = sum(
        int((classifier(to_unit_range(images)).argmax(1) == labels[rows]).sum()) for rows, images in data.batches(500)
    )
    return right / data.n


def real_floor(classifier: FashionClassifier) -> Estimate:
    """Return the Frechet distance of test images, balanced over classes, from all training images."""
    judge = FeatureExtractor(NAME, "fd_fashion_classifier", FashionFeatures(classifier))
    made, real = (
        features_of(judge, SetPixels(open_data(source, limit=limit)), keep=False)
        for source, limit in (("fashion:test", FLOOR_IMAGES), ("fashion:train", None))
    )
    return frechet_of_features(made, real)
