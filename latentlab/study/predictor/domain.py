"""How far a new tokenizer lies outside a study: its Mahalanobis distance against those of the study's own left-out clusters.

d(x)^2 = z^T P z with z the measurements standardised by the study and P the inverse of their covariance, shrunk towards the
identity (Ledoit and Wolf, J. Multivariate Analysis 88, 2004), as a dozen correlated measurements of 20 tokenizers leave it near
singular. It notices a combination that the study never had, even where each measurement lies in its range.

The yardstick are the same distances of every tokenizer of the study from a study without its cluster: that far away the errors of
predictions are known, as the leave-one-cluster-out validation made them there. Further out nothing is known. The limit is their
ceil(0.95 (n+1))-th smallest (the largest below 39 tokenizers): one in twenty tokenizers like those of the study is refused.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from latentlab.study.predictor.ridge import standards

LEVEL = 0.95


@dataclass(frozen=True)
class Domain:
    """Where a study lies.

    Attributes:
        mean: [p].
        deviation: [p].
        precision: [p,p] inverse covariance of standardised measurements.
        distances: [n], ascending, of the tokenizers of the study from the rest of it.
    """

    mean: np.ndarray
    deviation: np.ndarray
    precision: np.ndarray
    distances: np.ndarray

    @property
    def limit(self) -> float:
        """Distance beyond which nothing is predicted."""
        return limit_of(self.distances)

    def distance(self, x: np.ndarray) -> np.ndarray:  # [...,p] => [...]
        """Return the distance from the middle of the study."""
        z = (x - self.mean) / self.deviation
        return np.sqrt(np.einsum("...i,ij,...j->...", z, self.precision, z))

    def parts(self, x: np.ndarray) -> np.ndarray:  # [p] => [p], sum 1
        """Return the share of each measurement in the squared distance; correlated ones may have negative shares."""
        z = (x - self.mean) / self.deviation
        squares = z * (self.precision @ z)
        return squares / squares.sum()


def limit_of(distances: np.ndarray) -> float:  # [n]
    """Return the limit that these left-out distances set."""
    rank = min(math.ceil(LEVEL * (len(distances) + 1)), len(distances))
    return float(np.sort(distances)[rank - 1])


def fit_domain(x: np.ndarray, groups: Sequence[str] | np.ndarray) -> Domain:
    """Return where the tokenizers with measurements ``x`` [n,p] in ``groups`` [n] lie."""
    names = np.asarray(groups)
    distances = np.empty(len(x))
    for name in np.unique(names):
        own = names == name
        distances[own] = Domain(*_shape(x[~own]), np.empty(0)).distance(x[own])
    return Domain(*_shape(x), np.sort(distances))


def _shape(x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return mean, deviation and shrunk precision of ``x`` [n,p]."""
    from sklearn.covariance import ledoit_wolf

    mean, deviation = standards(x)
    covariance, _ = ledoit_wolf((x - mean) / deviation, assume_centered=True)
    return mean, deviation, np.linalg.pinv(covariance, hermitian=True)
