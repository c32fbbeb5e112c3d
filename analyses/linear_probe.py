"""Linear probe: how well a linear classifier on frozen latents tells the classes apart.

Used as a measure of latent semantics by Zhong et al., "Diffusing in the Right Space" (arXiv 2606.03578) and by MAETok (Chen
et al., arXiv 2502.03444, sections 4.1 and 4.3, on flattened latents). Neither publishes a protocol, so four are offered; the
accuracy is always that of the final classifier, never of the epoch that happens to suit the test images best.
"""

from collections.abc import Iterator
from hashlib import blake2b
from typing import Any, NamedTuple

import numpy as np
import psutil

from analyses.classifiers import (
    BN_ADAMW_EPOCHS,
    MAX_ITERATIONS,
    PROTOCOLS,
    LinearClassifier,
    Protocol,
    bn_adamw,
    dino_sgd,
    logistic,
    ridge,
    steps,
)
from analyses.intervals import bootstrap_means, share_interval
from analyses.pooling import FEATURES, Feature, feature_width, features
from latentlab.errors import UserError, unknown_name
from latentlab.latents import ArrayLatents, ArrayLike, Latents
from latentlab.measurement import Estimate, Measurement, MetricCard
from latentlab.registry import measurement


class _Data(NamedTuple):
    """Standardised features and class indices (0..k-1) of the images trained on and tested on."""

    train: np.ndarray
    train_classes: np.ndarray
    test: np.ndarray
    test_classes: np.ndarray
    labels: np.ndarray  # [k], label of each class index


class _Split(NamedTuple):
    """Where the images trained on and tested on come from."""

    train: Latents
    train_indices: np.ndarray
    test: Latents
    test_indices: np.ndarray


@measurement(
    MetricCard(
        name="linear_probe",
        title="Linear probe",
        summary="share of unseen images whose class a linear classifier reads off the latent",
        formula="mean_n [ argmax_k (W f_n + b)_k = y_n ] over test images, W and b fitted on training images",
        unit="fraction",
        range="0 to 1; chance is the share of the largest class",
        better="higher",
        source="Zhong et al., Diffusing in the Right Space, arXiv 2606.03578; MAETok, arXiv 2502.03444 (flatten); the default, "
        "mean over cells and multinomial logistic regression to convergence, is our choice where the papers are silent",
        needs=("labels",),
        confounds="number of training images per class, number of classes, number of channels, pooling and classifier",
        variants={
            "feature='flatten'": "all numbers of the latent (MAETok) instead of the mean over cells",
            "feature='maxpool'": "largest value over cells; 'avgmaxpool': mean and largest",
            "classifier='ridge'": "least squares on one-hot targets, closed form",
            "classifier='dino_sgd'": "DINO's recipe: SGD, cosine schedule, 100 epochs",
            "classifier='bn_adamw'": "XQ-GAN's recipe: batch norm, AdamW, 10 epochs",
        },
        invariances="batch size, per-channel shift and scale (features are standardised), any rearrangement of the cells "
        "under pooling; the order of the images only through the split",
        bias="grows with the number of training images",
        known_values={"ridge": "closed form", "classes that do not overlap": "1", "labels at random": "1 / classes"},
        test="tests/analyses/test_linear_probe.py::test_ridge_is_the_closed_form",
    )
)
def linear_probe(
    latents: Latents,
    *,
    feature: Feature = "avgpool",
    classifier: Protocol = "logistic",
    regularization: float = 1.0,
    test: Latents | tuple[ArrayLike, ArrayLike] | None = None,
    test_fraction: float = 0.2,
    seed: int = 0,
) -> Measurement:
    """Train a linear classifier on some latents and measure its top-1 accuracy on others.

    Args:
        latents: training images with labels; when ``test`` is None, the test images are taken from them too.
        feature: ``avgpool``, ``maxpool``, ``avgmaxpool`` (both, one after the other) over cells or tokens, or ``flatten``.
            Features are standardised by the statistics of the training images; constant ones become 0.
        classifier: ``logistic`` (multinomial, L-BFGS to convergence), ``ridge`` (least squares on one-hot targets, closed
            form), ``dino_sgd`` or ``bn_adamw`` (two published training recipes, without image augmentation).
        regularization: C of ``logistic`` (inverse strength), penalty of ``ridge``; the recipes do not use it.
        test: latents of other images, with labels: a store or other `Latents`, or a pair of arrays (latents, labels).
        test_fraction: share of every class kept for testing when ``test`` is None.
        seed: of the split, of the recipes, and of the bootstrap over test images.

    Returns:
        Top-1 accuracy in [0, 1]; ``companions``: ``train`` accuracy, and ``top-5`` for more than 5 classes; ``details``:
        ``per_class`` {label: accuracy}, ``n_train``, ``chance`` (accuracy of always naming the largest class).

    Raises:
        UserError: no labels, fewer than 2 classes, a test class that is not trained on, training and test set the same,
            only constant features, features that do not fit into memory, non-finite latents.
    """
    _check_options(feature, classifier, regularization, test_fraction)
    if isinstance(test, tuple):
        test = ArrayLatents(test[0], labels=test[1])
    warnings: list[str] = []
    split = _given_split(latents, test) if test is not None else _split(latents, test_fraction, seed, warnings)
    data = _load(split, feature, classifier)
    fitted = _fit(classifier, data, regularization, seed)
    warnings += _cautions(fitted, classifier, len(data.train))
    correct, in_top5 = _hits(fitted, data.test, data.test_classes)
    trained, _ = _hits(fitted, data.train, data.train_classes)
    replicates, top5 = bootstrap_means(np.stack([correct, in_top5], axis=1), seed).T
    companions = {"train": Estimate(float(trained.mean()))}
    if len(data.labels) > 5:
        companions["top-5"] = Estimate(float(in_top5.mean()), share_interval(top5, len(data.test)))
    return Measurement(
        name="linear_probe",
        variant=_variant(split, feature, classifier),
        value=float(correct.mean()),
        interval=share_interval(replicates, len(data.test)),
        direction="higher",
        unit="fraction",
        n=len(data.test),
        parameters={
            "feature": feature,
            "classifier": classifier,
            "regularization": regularization,
            "test": None if test is None else test.fingerprint,
            "test_fraction": test_fraction,
            "seed": seed,
        },
        companions=companions,
        warnings=tuple(warnings),
        details=_details(correct, data),
        replicates=replicates,
    )


def _check_options(feature: str, classifier: str, regularization: float, test_fraction: float) -> None:
    if feature not in FEATURES:
        raise unknown_name("feature", feature, FEATURES)
    if classifier not in PROTOCOLS:
        raise unknown_name("classifier", classifier, PROTOCOLS)
    if not 0 < regularization < np.inf:
        raise UserError(f"regularization must be a positive number, got {regularization}")
    if not 0 < test_fraction < 1:
        raise UserError(f"test_fraction must lie between 0 and 1, got {test_fraction}")


def _labels(latents: Latents, role: str) -> np.ndarray:
    if latents.labels is None:
        raise UserError(f"linear_probe needs labels, and the {role} latents have none")
    return latents.labels


def _given_split(train: Latents, test: Latents) -> _Split:
    """Train on all of one set and test on all of another."""
    train_labels, test_labels = _labels(train, "training"), _labels(test, "test")
    if train.shape != test.shape:
        raise UserError(
            f"training latents are {list(train.shape)} and test latents {list(test.shape)}: encode them alike"
        )
    if train.fingerprint == test.fingerprint:
        raise UserError(
            "training and test latents are the same set: give other images, or leave test out to split them"
        )
    if shared := _shared_images(train, test):
        raise UserError(
            f"{shared} of {test.n} test latents are training latents too (the same numbers): the test set must hold other "
            "images"
        )
    unknown = np.setdiff1d(test_labels, train_labels)
    if len(unknown):
        raise UserError(
            f"{len(unknown)} test classes have no training image (first: label {unknown[0]}): train on them too"
        )
    return _Split(train, np.arange(train.n), test, np.arange(test.n))


def _shared_images(train: Latents, test: Latents) -> int:
    """Return how many latents of ``test`` occur in ``train``, number for number.

    Those that occur more than once among the test latents do not count: a collapsed or a discrete encoder gives different
    images the same latent.
    """
    seen = set(_content(train))
    counts: dict[bytes, int] = {}
    for content in _content(test):
        counts[content] = counts.get(content, 0) + 1
    return sum(1 for content, count in counts.items() if count == 1 and content in seen)


def _content(latents: Latents) -> Iterator[bytes]:
    for batch in latents.batches():
        for row in batch.flatten(1).numpy():
            yield blake2b(row.tobytes(), digest_size=16).digest()


def _split(latents: Latents, fraction: float, seed: int, warnings: list[str]) -> _Split:
    """Keep ``fraction`` of the images of every class for testing (at least one, and never all)."""
    labels = _labels(latents, "given")
    rng = np.random.default_rng(seed)
    tested = np.zeros(latents.n, dtype=bool)
    sizes = np.unique(labels, return_counts=True)[1]
    for members in np.split(np.argsort(labels, kind="stable"), np.cumsum(sizes)[:-1]):
        count = int(np.clip(round(fraction * len(members)), 1, max(1, len(members) - 1)))
        tested[rng.permutation(members)[:count]] = len(members) > 1
    if singles := int((sizes == 1).sum()):
        warnings.append(f"{singles} classes have a single image: they are trained on but not tested")
    if not tested.any():
        raise UserError("no class has 2 images, so none can be tested: give more images or a test set")
    return _Split(latents, np.flatnonzero(~tested), latents, np.flatnonzero(tested))


def _load(split: _Split, feature: Feature, classifier: Protocol) -> _Data:
    """Read the features of both sides and standardise them by the training side."""
    for side in {id(side): side for side in (split.train, split.test)}.values():
        _ = side.moments  # refuses NaN and infinity, naming the images
    train_labels = _labels(split.train, "training")[split.train_indices]
    labels, train_classes = np.unique(train_labels, return_inverse=True)
    if len(labels) < 2:
        raise UserError(f"linear_probe needs at least 2 classes, and all images have label {labels[0]}")
    _check_memory(split, feature, classifier, len(labels))
    test_classes = np.searchsorted(labels, _labels(split.test, "test")[split.test_indices])
    train = features(split.train, feature, split.train_indices)
    test = features(split.test, feature, split.test_indices)
    _standardise(train, test)
    return _Data(train, train_classes, test, test_classes, labels)


def _standardise(train: np.ndarray, test: np.ndarray) -> None:
    """Standardise both in place by the mean and standard deviation (ddof=0) of ``train``.

    Raises `UserError` when every feature is constant, that is, varies by no more than float32 rounding.
    """
    mean = train.mean(0, dtype=np.float64)
    for side in (train, test):
        side -= mean.astype(side.dtype)
    std = np.sqrt(np.einsum("nd,nd->d", train, train, dtype=np.float64) / len(train))
    varies = std > 1e-6 * np.abs(mean)
    if not varies.any():
        raise UserError("every feature of the training latents is constant: the latent space has collapsed")
    inverse = np.where(varies, 1 / np.where(varies, std, 1.0), 0.0)
    for side in (train, test):
        side *= inverse.astype(side.dtype)


def _check_memory(split: _Split, feature: Feature, classifier: Protocol, k: int) -> None:
    """Refuse features that will not fit, rather than being killed half-way."""
    n_train, n_test = len(split.train_indices), len(split.test_indices)
    d = feature_width(split.train, feature)
    item = 4 if feature == "flatten" else 8
    work = {
        "logistic": 30 * 8 * k * d + 3 * 8 * n_train * k,  # L-BFGS keeps 10 pairs of vectors of all weights
        "ridge": 2 * 8 * min(d, n_train) ** 2 + (8 * n_train * d if d > n_train else 0),
    }.get(classifier, 5 * 8 * k * d)
    needed = item * d * (n_train + n_test) + work
    available = psutil.virtual_memory().available
    if needed > available:
        raise UserError(
            f"feature='{feature}' with classifier='{classifier}' needs about {needed / 2**30:.1f} GiB for {n_train + n_test} "
            f"images, and {available / 2**30:.1f} GiB are free: use feature='avgpool' or fewer images"
        )


def _fit(classifier: Protocol, data: _Data, regularization: float, seed: int) -> LinearClassifier:
    if classifier == "logistic":
        return logistic(data.train, data.train_classes, regularization)
    if classifier == "ridge":
        return ridge(data.train, data.train_classes, regularization)
    recipe = {"dino_sgd": dino_sgd, "bn_adamw": bn_adamw}[classifier]
    return recipe(data.train, data.train_classes, seed)


def _cautions(fitted: LinearClassifier, classifier: Protocol, n_train: int) -> list[str]:
    if not fitted.converged:
        return [f"the logistic regression did not converge in {MAX_ITERATIONS} iterations"]
    # Adam moves a weight by at most its rate per step: below this many steps the random start still shows.
    if classifier == "bn_adamw" and (taken := steps(n_train, BN_ADAMW_EPOCHS)) < 10_000:
        return [
            f"bn_adamw was made for ImageNet: its {taken} steps at rate 1e-4 on {n_train} images hardly leave the start"
        ]
    return []


def _hits(fitted: LinearClassifier, rows: np.ndarray, classes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return for every row whether its class has the largest logit, and whether it is among the 5 largest."""
    ranks, start = [], 0
    for logits in fitted.logits(rows):
        own = np.take_along_axis(logits, classes[start : start + len(logits), None], axis=1)
        above = (logits > own).sum(1)
        # Equal logits count against the class, or a classifier that learned nothing would be right every time.
        ranks.append(above + (logits == own).sum(1) - 1)
        start += len(logits)
    rank = np.concatenate(ranks)
    return rank == 0, rank < 5


def _details(correct: np.ndarray, data: _Data) -> dict[str, Any]:
    k = len(data.labels)
    counts = np.bincount(data.test_classes, minlength=k)
    right = np.bincount(data.test_classes, weights=correct, minlength=k)
    return {
        "per_class": {int(data.labels[i]): float(right[i] / counts[i]) for i in range(k) if counts[i]},
        "n_train": len(data.train),
        "chance": float(counts.max() / counts.sum()),
    }


def _variant(split: _Split, feature: Feature, classifier: Protocol) -> str:
    """Return the definition used, in words."""
    how = {
        "logistic": "multinomial logistic regression",
        "ridge": "ridge regression on one-hot targets",
        "dino_sgd": "DINO's SGD recipe without image augmentation",
        "bn_adamw": "XQ-GAN's batch norm and AdamW recipe",
    }[classifier]
    where = "held-out images of the same set" if split.test is split.train else "separate test set"
    return f"{feature}, standardised by training statistics, {how}, final top-1 on {where}"
