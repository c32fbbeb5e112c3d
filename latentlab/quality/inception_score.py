"""Inception score (Salimans et al. 2016, arXiv 1606.03498): how sure a classifier is of each image, and how many classes it sees.

    exp(mean over images of KL(p(class | image) || mean p)),   averaged over parts of the images

The parts matter: the score of n images is too low by about a constant over n. torch-fidelity shuffles and makes 10 parts; the
ADM suite (Dhariwal and Nichol 2021) takes parts of 5,000 in order. For 50,000 images in random order the two agree but for
the shuffling.
"""

from typing import NamedTuple

from torch import Tensor

from latentlab.errors import UserError

_ADM_PART = 5000


class InceptionScore(NamedTuple):
    """The score as torch-fidelity and as the ADM suite compute it."""

    value: float
    spread: float
    """Standard deviation over the parts."""
    adm: float


def inception_score(scores: Tensor, *, splits: int = 10, seed: int = 2020) -> InceptionScore:  # [n,classes]
    """Return the score of class scores (logits).

    Args:
        scores: [n,v] float32, in the order of the images.
        splits: parts of torch-fidelity's variant.
        seed: of its shuffling.

    Raises:
        UserError: fewer images than parts.
    """
    if len(scores) < splits:
        raise UserError(f"the Inception score of {splits} parts needs as many images, got {len(scores)}")
    from torch_fidelity.metric_isc import KEY_METRIC_ISC_MEAN, KEY_METRIC_ISC_STD, isc_features_to_metric

    shuffled = isc_features_to_metric(scores, splits=splits, shuffle=True, rng_seed=seed)
    parts = [isc_features_to_metric(part, splits=1, shuffle=False) for part in scores.split(_ADM_PART)]
    adm = sum(part[KEY_METRIC_ISC_MEAN] for part in parts) / len(parts)
    return InceptionScore(shuffled[KEY_METRIC_ISC_MEAN], shuffled[KEY_METRIC_ISC_STD], adm)
