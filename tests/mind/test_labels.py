"""Classes of samples: balance, and every entry of the list on exactly one rank."""

import pytest
import torch

from latentlab.errors import UserError
from mind.labels import class_labels, rank_slice


def test_50000_samples_are_50_of_each_class() -> None:
    labels = class_labels(50_000, 1000)
    assert labels.dtype == torch.int64
    assert torch.equal(labels.bincount(), torch.full((1000,), 50))
    assert (labels[:1000].bincount(minlength=1000) == 0).any()  # shuffled over the whole list, not block by block
    assert not torch.equal(labels, labels.sort().values)


def test_the_rest_is_drawn_after_the_balanced_part() -> None:
    labels = class_labels(53, 10)
    assert torch.equal(labels[:50].bincount(minlength=10), torch.full((10,), 5))
    assert labels[50:].tolist() != [0, 1, 2]
    assert torch.equal(labels, class_labels(53, 10))
    assert not torch.equal(labels, class_labels(53, 10, seed=1))


def test_fewer_samples_than_classes() -> None:
    assert 550 < len(class_labels(999, 1000).unique()) < 700  # drawn with replacement: 632 different ones expected
    assert class_labels(0, 10).shape == (0,)


def test_random_labels_are_not_balanced() -> None:
    labels = class_labels(10_000, 10, "random")
    counts = labels.bincount(minlength=10)
    assert counts.sum() == 10_000
    assert counts.min() > 850  # mean 1000, standard deviation 30
    assert (counts != 1000).any()


@pytest.mark.parametrize(("count", "ranks"), [(53, 2), (50_000, 8), (50_000, 7), (3, 5), (0, 2), (10, 4)])
def test_ranks_use_every_entry_once(count: int, ranks: int) -> None:
    entries = list(range(count))
    parts = [entries[rank_slice(count, rank, ranks)] for rank in range(ranks)]
    assert [entry for part in parts for entry in part] == entries
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_53_samples_on_2_ranks() -> None:
    assert [rank_slice(53, rank, 2) for rank in (0, 1)] == [slice(0, 26), slice(26, 53)]


def test_refusals() -> None:
    with pytest.raises(UserError, match=r"unknown label sampling 'equals'. Did you mean equal"):
        class_labels(5, 3, "equals")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="at least 1 class"):
        class_labels(5, 0)
    with pytest.raises(UserError, match=r"rank must be in 0 .. 1, got 2"):
        rank_slice(5, 2, 2)
