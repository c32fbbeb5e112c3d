"""Several processes on one job, as torchrun starts them: who does what, and how rank 0 gets the results."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

T = TypeVar("T")

_PATIENCE = timedelta(hours=12)
"""How long a rank that is done waits for the others."""


@dataclass(frozen=True)
class Ranks:
    """This process among ``size`` of them, numbered from 0; the default is a process by itself."""

    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        """Whether this is rank 0, which writes and prints."""
        return self.rank == 0

    def share(self, items: Sequence[T]) -> list[T]:
        """Return this rank's part of ``items``: every ``size``-th one."""
        return list(items[self.rank :: self.size])

    def wait(self) -> None:
        """Let all ranks arrive here before any goes on."""
        if self.size > 1:
            import torch.distributed

            torch.distributed.barrier()

    def agreed(self, value: T) -> T:
        """Return the value of rank 0 on every rank, each of which must call it: what all decide by must not differ."""
        if self.size == 1:
            return value
        import torch.distributed

        shared = [value]
        torch.distributed.broadcast_object_list(shared)
        return shared[0]

    def gather(self, value: T) -> list[T]:
        """Return the values of all ranks in order on rank 0, an empty list on the others; every rank must call it."""
        if self.size == 1:
            return [value]
        import torch.distributed

        gathered: list[T] | None = [value] * self.size if self.first else None
        torch.distributed.gather_object(value, gathered)
        return gathered or []


def launched_ranks() -> Ranks:
    """Return what torchrun says in the environment."""
    return Ranks(int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1)))


@contextmanager
def joined_ranks(tensors_on: str = "cpu") -> Iterator[Ranks]:
    """Connect the processes that torchrun started for as long as the block lasts; a process by itself needs nothing.

    Args:
        tensors_on: kind of device whose tensors are exchanged (``cpu``, ``cuda``); objects always are.
    """
    ranks = launched_ranks()
    if ranks.size == 1:
        yield ranks
        return
    import torch.distributed

    backend = "cpu:gloo,cuda:nccl" if tensors_on == "cuda" else "gloo"
    torch.distributed.init_process_group(backend, timeout=_PATIENCE)
    try:
        yield ranks
    finally:
        torch.distributed.destroy_process_group()
