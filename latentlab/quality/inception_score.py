"""Inception score (Salimans et al. 2016, arXiv 1606.03498): how sure a classifier is of each image, and how many classes it sees.

    exp(mean over images of KL(p(class | image) || mean p)),   averaged over parts of the images

The parts matter: the score of n images is too low by about a constant over n. torch-fidelity shuffles and makes 10 parts; the
ADM suite (Dhariwal and Nichol 2021) takes parts of 5,000 in order. For 50,000 images in random order the two agree but for
the shuffling. Part after part is classified, so only the probabilities of one are in memory.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from latentlab.errors import UserError

_ADM_PART = 5000


class InceptionScore(NamedTuple):
    """The score as torch-fidelity and as the ADM suite compute it."""

    value: float
    spread: float
    """Standard deviation over the parts."""
    adm: float


def inception_score(
    features: np.ndarray, classify: Callable[[Tensor], Tensor], *, splits: int = 10, seed: int = 2020
) -> InceptionScore:  # [n,d]
    """Return the score of images by their features.

    Args:
        features: [n,d] float32, in the order of the images.
        classify: features [b,d] -> class scores (logits) [b,classes].
        splits: parts of torch-fidelity's variant.
        seed: of its shuffling.

    Raises:
        UserError: fewer images than parts.
    """
    n = len(features)
    if n < splits:
        raise UserError(f"the Inception score of {splits} parts needs as many images, got {n}")
    shuffled = np.random.RandomState(seed).permutation(n)  # torch-fidelity's
    parts = (features[shuffled[i * n // splits : (i + 1) * n // splits]] for i in range(splits))
    scores = [_score(classify(torch.from_numpy(part))) for part in parts]
    in_order = (features[first : first + _ADM_PART] for first in range(0, n, _ADM_PART))
    adm = [_score(classify(torch.from_numpy(part))) for part in in_order]
    return InceptionScore(float(np.mean(scores)), float(np.std(scores)), float(np.mean(adm)))


def _score(scores: Tensor) -> float:
    """Return the score of one part."""
    from torch_fidelity.metric_isc import KEY_METRIC_ISC_MEAN, isc_features_to_metric

    return float(isc_features_to_metric(scores, splits=1, shuffle=False)[KEY_METRIC_ISC_MEAN])
