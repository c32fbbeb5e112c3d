"""Reading ahead and writing behind: order, bounds, overlap, and errors that come in their turn."""

import threading
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor

from latentlab.data.base import ImageSet
from latentlab.prefetching import WriteBehind, read_ahead


def test_items_come_in_order_with_what_was_read() -> None:
    assert list(read_ahead(range(20), lambda i: i * i, ahead=3)) == [(i, i * i) for i in range(20)]
    assert list(read_ahead([], lambda i: i)) == []


def test_the_next_item_is_read_while_this_one_is_used() -> None:
    """The consumer of item 0 waits for item 1 to be read: without overlap it would wait forever."""
    read = [threading.Event() for _ in range(5)]
    for item, _ in read_ahead(range(5), lambda i: read[i].set(), ahead=1):
        assert read[min(item + 1, 4)].wait(timeout=20)


def test_no_more_is_read_than_may_wait() -> None:
    """Memory does not grow with the number of items: at any time at most ``ahead`` + 1 results are held."""
    started: list[int] = []
    for item, _ in read_ahead(range(50), started.append, ahead=4):
        assert len(started) <= item + 5
    assert started == list(range(50))


def test_items_are_made_only_when_they_are_due() -> None:
    made = iter(range(10**9))
    for item, _ in read_ahead(made, lambda i: i, ahead=2):
        if item == 5:
            break
    assert next(made) <= 9


def test_an_error_comes_in_the_turn_of_its_item() -> None:
    def read(i: int) -> int:
        if i == 3:
            raise ValueError("item 3")
        return i

    seen = []
    with pytest.raises(ValueError, match="item 3"):
        for item, _ in read_ahead(range(10), read, ahead=5):
            seen.append(item)
    assert seen == [0, 1, 2]


def test_leaving_early_leaves_no_thread() -> None:
    for item, _ in read_ahead(range(100), lambda i: i):
        if item == 2:
            break
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("read-ahead")]


def test_image_sets_read_the_next_batches_while_one_is_used() -> None:
    class Numbers(ImageSet):
        name, n = "numbers", 10
        read: ClassVar = [threading.Event() for _ in range(10)]

        def images(self, indices: np.ndarray) -> Tensor:
            for i in indices:
                self.read[i].set()
            return torch.from_numpy(indices)

    seen = []
    for indices, images in Numbers().batches(4):
        assert Numbers.read[min(indices[-1] + 1, 9)].wait(timeout=20) and indices.tolist() == images.tolist()
        seen.append(indices.tolist())
    assert seen == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]


def test_work_is_done_in_order_and_all_of_it() -> None:
    done: list[int] = []
    with WriteBehind(waiting=2) as behind:
        for i in range(30):
            behind.do(lambda i=i: done.append(i))
    assert done == list(range(30))


def test_a_bounded_number_of_pieces_waits() -> None:
    """With two allowed to wait, the third blocks until the first is done."""
    gate, entered = threading.Event(), []
    with WriteBehind(waiting=2) as behind:
        behind.do(gate.wait)
        behind.do(lambda: entered.append(1))
        blocked = threading.Thread(target=behind.do, args=(lambda: entered.append(2),))
        blocked.start()
        blocked.join(timeout=0.2)
        assert blocked.is_alive() and not entered
        gate.set()
        blocked.join(timeout=20)
    assert entered == [1, 2]


def test_nothing_is_done_after_a_failure() -> None:
    """What follows a failed write must not be written in its place."""
    done: list[int] = []

    def fail() -> None:
        raise ValueError("disk")

    with pytest.raises(ValueError, match="disk"), WriteBehind(waiting=8) as behind:
        behind.do(lambda: done.append(0))
        behind.do(fail)
        behind.do(lambda: done.append(1))
    assert done == [0]


def test_an_interruption_keeps_what_was_given() -> None:
    done: list[int] = []
    with pytest.raises(KeyboardInterrupt), WriteBehind(waiting=8) as behind:
        behind.do(lambda: done.append(0))
        raise KeyboardInterrupt
    assert done == [0]
