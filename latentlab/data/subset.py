"""Which images a limit keeps: a class-balanced subset that depends only on labels, limit and seed."""

import numpy as np


def choose_subset(
    n: int, labels: np.ndarray | None, limit: int | None, seed: int
) -> np.ndarray:  # => int64 [m], sorted
    """Return the positions of at most ``limit`` of ``n`` images, in the order of the source.

    With labels [n] the images are taken round-robin: each class is shuffled, every round takes one image of each class that
    has one left, and the classes take their turns in one shuffled order, so that class counts differ by at most one until
    a class is used up. Without labels the subset is the beginning of one shuffle. A smaller limit with the same seed always
    chooses from the images of a larger one.
    """
    if limit is None or limit >= n:
        return np.arange(n)
    random = np.random.default_rng(seed)
    order = random.permutation(n)
    if labels is not None:
        order = order[_round_robin(labels[order], random)]
    return np.sort(order[:limit])


def _round_robin(labels: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Return the positions of shuffled ``labels`` in the order in which they are dealt out."""
    classes, inverse, counts = np.unique(labels, return_inverse=True, return_counts=True)
    by_class = np.argsort(inverse, kind="stable")
    starts = np.repeat(np.cumsum(counts) - counts, counts)
    rounds = np.empty(len(labels), np.int64)  # how many of its class come before an image
    rounds[by_class] = np.arange(len(labels)) - starts
    turns = random.permutation(len(classes))
    return np.lexsort((turns[inverse], rounds))
