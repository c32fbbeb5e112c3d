"""Independent pieces of work side by side: many small matrices keep cores busier one per thread than all threads on each."""

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")


def map_in_threads(function: Callable[[Item], Result], items: Iterable[Item], most: int) -> list[Result]:
    """Return ``function`` of every item, in order, at most ``most`` at a time.

    As many run together as torch has threads, each with one of them; torch has them all back afterwards.
    """
    threads = torch.get_num_threads()
    workers = min(threads, most)
    if workers < 2:
        return [function(item) for item in items]
    torch.set_num_threads(1)  # holds for threads that start later
    try:
        with ThreadPoolExecutor(workers) as pool:
            return list(pool.map(function, items))
    finally:
        torch.set_num_threads(threads)
