"""Which class each sample is of: the class-balanced list of the released evaluation code, and its parts for several ranks."""

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

from latentlab.errors import UserError, unknown_name

LabelSampling = Literal["equal", "random"]


def class_labels(count: int, classes: int, sampling: LabelSampling = "equal", seed: int = 0) -> Tensor:
    """Return the classes of samples 0 .. count-1, int64 [count].

    Args:
        count: number of samples.
        classes: number of classes.
        sampling: ``equal`` gives each class count//classes samples in random order and draws the rest at random (50,000 images of
            1,000 classes: 50 each); ``random`` draws all independently.
        seed: of a generator on the CPU; 0 in the released code.

    Raises:
        UserError: unknown sampling, a negative count, or no class.
    """
    if sampling not in get_args(LabelSampling):
        raise unknown_name("label sampling", sampling, get_args(LabelSampling))
    if count < 0 or classes < 1:
        raise UserError(f"labels need a count of at least 0 and at least 1 class, got {count} and {classes}")
    generator = torch.Generator().manual_seed(seed)
    if sampling == "random":
        return torch.randint(classes, (count,), generator=generator)
    balanced = torch.arange(classes).repeat(count // classes)
    balanced = balanced[torch.randperm(len(balanced), generator=generator)]
    return torch.cat([balanced, torch.randint(classes, (count % classes,), generator=generator)])


def rank_slice(count: int, rank: int, ranks: int) -> slice:
    """Return the part of 0 .. count-1 that belongs to a rank: contiguous, and over all ranks every entry once.

    The last count % ranks ranks have one entry more than the others. The released code begins each slice at rank times its own
    length instead, so that uneven ones overlap or leave entries out.

    Args:
        count: number of samples of all ranks.
        rank: 0 .. ranks-1.
        ranks: number of processes.

    Raises:
        UserError: no such rank.
    """
    if not 0 <= rank < ranks:
        raise UserError(f"rank must be in 0 .. {ranks - 1}, got {rank}")
    share, rest = divmod(count, ranks)
    longer = max(0, rank - (ranks - rest))  # ranks below this one that have one entry more
    own = share + (rank >= ranks - rest)
    start = rank * share + longer
    return slice(start, start + own)


def checked_labels(labels: Tensor | Sequence[int], null_class: int) -> Tensor:
    """Return ``labels`` as class ids, int64 [n]; ``null_class`` stands for no class.

    Raises:
        UserError: none, not a list of integers, or ids that the model does not have.
    """
    classes = torch.as_tensor(labels)
    if not classes.numel():
        raise UserError("labels are empty: give the class id of each sample")
    if classes.ndim != 1 or classes.is_floating_point():
        raise UserError(f"labels must be a list of class ids, got {classes.dtype} of shape {list(classes.shape)}")
    low, high = int(classes.min()), int(classes.max())
    if not 0 <= low <= high <= null_class:
        raise UserError(f"labels must be in 0 .. {null_class - 1} (or {null_class} for no class), got {low} .. {high}")
    return classes.long()


def checked_numbers(indices: Tensor | None, first_index: int, count: int) -> Tensor:
    """Return the numbers of ``count`` samples, int64 [n]: ``indices``, or consecutive ones from ``first_index``.

    Raises:
        UserError: another number of them.
    """
    if indices is None:
        return torch.arange(first_index, first_index + count)
    if indices.shape != (count,):
        shape = list(indices.shape)
        raise UserError(f"indices must hold one sample number for each of {count} labels, got shape {shape}")
    return indices.long()
