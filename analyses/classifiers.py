"""Linear classifiers on frozen features, one function per published protocol; each returns weights and biases."""

import math
import warnings
from collections.abc import Callable, Iterator
from typing import Literal, NamedTuple

import numpy as np
import scipy.linalg
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, linear

Protocol = Literal["logistic", "ridge", "dino_sgd", "bn_adamw"]
PROTOCOLS = ("logistic", "ridge", "dino_sgd", "bn_adamw")

MAX_ITERATIONS = 2000
"""L-BFGS iterations after which the logistic regression is reported as not converged."""

BN_ADAMW_EPOCHS = 10

_BATCH = 256
_CHUNK_BYTES = 16 << 20


class LinearClassifier(NamedTuple):
    """``logits = features @ weight.T + bias``."""

    weight: np.ndarray  # [k,d]
    bias: np.ndarray  # [k]
    converged: bool = True

    def logits(self, features: np.ndarray) -> Iterator[np.ndarray]:  # [n,d] => chunks of [b,k], float64
        """Yield the logits of all rows in order, a chunk at a time."""
        step = max(1, _CHUNK_BYTES // (8 * max(self.weight.shape)))
        for start in range(0, len(features), step):
            yield features[start : start + step].astype(np.float64) @ self.weight.T + self.bias


def logistic(features: np.ndarray, labels: np.ndarray, c: float = 1.0) -> LinearClassifier:
    """Fit multinomial logistic regression, penalty |w|^2 / (2 c) beside the summed loss, by L-BFGS to convergence.

    Args:
        features: [n,d], standardised.
        labels: [n], 0..k-1, each present.
        c: inverse strength of the penalty; intercepts are not penalised.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(C=c, max_iter=MAX_ITERATIONS)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ConvergenceWarning)
        model.fit(features, labels)
    converged = not any(issubclass(w.category, ConvergenceWarning) for w in caught)
    weight, bias = model.coef_.astype(np.float64), model.intercept_.astype(np.float64)
    if len(weight) == 1:  # two classes: one vector, whose logit is that of class 1 against class 0
        weight, bias = np.concatenate([np.zeros_like(weight), weight]), np.concatenate([np.zeros_like(bias), bias])
    return LinearClassifier(weight, bias, converged)


def ridge(features: np.ndarray, labels: np.ndarray, penalty: float = 1.0) -> LinearClassifier:
    """Solve ``min_W,b |X W + b - Y|^2 + penalty |W|^2`` with one-hot targets Y in closed form, in float64.

    The intercept is not penalised: it is removed by centring X and Y. Solved in the smaller of the two spaces, by the
    identity ``(X'X + p I)^-1 X' = X' (XX' + p I)^-1`` (Hastie et al., The Elements of Statistical Learning, 18.3.5).
    """
    n, d = features.shape
    targets = np.eye(labels.max() + 1)[labels]
    feature_mean, target_mean = features.mean(0, dtype=np.float64), targets.mean(0)
    targets -= target_mean
    if d <= n:
        gram, moments = np.zeros((d, d)), np.zeros((d, targets.shape[1]))
        for part in _parts(n, d):
            centred = features[part] - feature_mean
            gram += centred.T @ centred
            moments += centred.T @ targets[part]
        weight = _solve(gram, moments, penalty).T
    else:
        centred = features - feature_mean
        weight = _solve(centred @ centred.T, targets, penalty).T @ centred
    return LinearClassifier(weight, target_mean - weight @ feature_mean)


def _solve(gram: np.ndarray, right: np.ndarray, penalty: float) -> np.ndarray:
    gram.flat[:: len(gram) + 1] += penalty
    return scipy.linalg.solve(gram, right, assume_a="pos", overwrite_a=True, check_finite=False)


def dino_sgd(features: np.ndarray, labels: np.ndarray, seed: int = 0) -> LinearClassifier:
    """Train by SGD as in DINO's linear evaluation: 100 epochs, batch 256, momentum 0.9, cosine to 0, no weight decay.

    Protocol of Caron et al. (arXiv 2104.14294): weights from N(0, 0.01), biases 0, learning rate 0.1 * batch / 256.
    Without its image augmentation, since the features are given; the classifier after the last epoch counts.
    """
    generator = torch.Generator().manual_seed(seed)
    weight, bias = _head(0.01 * torch.randn(labels.max() + 1, features.shape[1], generator=generator))
    optimizer = torch.optim.SGD([weight, bias], lr=0.1 * _BATCH / 256, momentum=0.9)
    _train(features, labels, optimizer, lambda x: linear(x, weight, bias), epochs=100, generator=generator)
    return LinearClassifier(weight.detach().double().numpy(), bias.detach().double().numpy())


def bn_adamw(features: np.ndarray, labels: np.ndarray, seed: int = 0) -> LinearClassifier:
    """Train by AdamW after a batch norm without affine part: 10 epochs, rate and weight decay 1e-4, cosine to 0.

    Protocol of XQ-GAN (arXiv 2412.01762). The running statistics of the norm are folded into the weights returned.
    """
    generator = torch.Generator().manual_seed(seed)
    d = features.shape[1]
    weight, bias = _head((2 * torch.rand(labels.max() + 1, d, generator=generator) - 1) / math.sqrt(d))
    norm = nn.BatchNorm1d(d, eps=1e-6, affine=False)
    optimizer = torch.optim.AdamW([weight, bias], lr=1e-4, weight_decay=1e-4)
    _train(
        features,
        labels,
        optimizer,
        lambda x: linear(norm(x), weight, bias),
        epochs=BN_ADAMW_EPOCHS,
        generator=generator,
    )
    assert norm.running_mean is not None and norm.running_var is not None
    scaled = weight.detach().double() / (norm.running_var.double() + norm.eps).sqrt()
    return LinearClassifier(scaled.numpy(), (bias.detach().double() - scaled @ norm.running_mean.double()).numpy())


def steps(n: int, epochs: int) -> int:
    """Return how many optimiser steps ``epochs`` over n images take."""
    return epochs * math.ceil(n / _BATCH)


def _head(weight: Tensor) -> tuple[Tensor, Tensor]:
    return weight.requires_grad_(), torch.zeros(len(weight), requires_grad=True)


def _train(
    features: np.ndarray,
    labels: np.ndarray,
    optimizer: torch.optim.Optimizer,
    forward: Callable[[Tensor], Tensor],
    epochs: int,
    generator: torch.Generator,
) -> None:
    """Run ``epochs`` over the data in fresh order, the learning rate falling to 0 along a cosine, per step."""
    x, y = torch.from_numpy(features), torch.from_numpy(labels)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=steps(len(x), epochs))
    for _ in range(epochs):
        for batch in torch.randperm(len(x), generator=generator).split(_BATCH):
            if len(batch) > 1:  # a batch norm has no statistics of a single image
                optimizer.zero_grad()
                cross_entropy(forward(x[batch].float()), y[batch]).backward()
                optimizer.step()
            schedule.step()


def _parts(n: int, d: int) -> Iterator[slice]:
    step = max(1, _CHUNK_BYTES // (8 * d))
    for start in range(0, n, step):
        yield slice(start, min(start + step, n))
