"""The subset a limit keeps is balanced, nested, seeded and in the order of the source."""

import numpy as np
import pytest

from latentlab.data.subset import choose_subset

LABELS = np.random.default_rng(5).permutation(np.repeat(np.arange(5), [40, 30, 3, 20, 7]))


def slow_subset(labels: np.ndarray, limit: int, seed: int) -> list[int]:
    """Deal the shuffled images out one by one, as the docstring says."""
    random = np.random.default_rng(seed)
    order = random.permutation(len(labels))
    queues = {c: [i for i in order if labels[i] == c] for c in np.unique(labels)}
    turns = np.empty(len(queues), int)
    turns[random.permutation(len(queues))] = list(queues)
    chosen: list[int] = []
    while len(chosen) < limit:
        for c in turns:
            if queues[c] and len(chosen) < limit:
                chosen.append(queues[c].pop(0))
    return sorted(chosen)


@pytest.mark.parametrize("seed", [0, 7])
@pytest.mark.parametrize("limit", [1, 4, 5, 17, 60, 99])
def test_agrees_with_dealing_one_by_one(limit: int, seed: int) -> None:
    assert choose_subset(len(LABELS), LABELS, limit, seed).tolist() == slow_subset(LABELS, limit, seed)


@pytest.mark.parametrize("limit", [5, 12, 33, 80])
def test_counts_differ_by_at_most_one_until_a_class_is_used_up(limit: int) -> None:
    counts = np.bincount(LABELS[choose_subset(len(LABELS), LABELS, limit, 0)], minlength=5)
    assert counts.sum() == limit
    unfinished = counts[counts < np.bincount(LABELS)]
    assert unfinished.max() - unfinished.min() <= 1
    assert (counts <= unfinished.max()).all()


@pytest.mark.parametrize("labels", [LABELS, None])
def test_a_smaller_limit_chooses_from_a_larger_one(labels: np.ndarray | None) -> None:
    small, large = (choose_subset(100, labels, limit, 3) for limit in (20, 50))
    assert set(small) < set(large)
    assert (np.diff(large) > 0).all()


@pytest.mark.parametrize("labels", [LABELS, None])
def test_the_seed_decides(labels: np.ndarray | None) -> None:
    first, again, other = (choose_subset(100, labels, 20, seed).tolist() for seed in (0, 0, 1))
    assert first == again
    assert first != other


@pytest.mark.parametrize("limit", [None, 100, 5000])
def test_everything_in_order(limit: int | None) -> None:
    assert choose_subset(100, LABELS, limit, 3).tolist() == list(range(100))
