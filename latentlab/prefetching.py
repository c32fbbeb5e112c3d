"""Reading ahead: what comes next is read in the background while the present item is worked on."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
U = TypeVar("U")

AHEAD = 4
"""Batches that are read or waiting to be used: enough to ride out a slow file, few enough not to matter in memory."""


def read_ahead(items: Iterable[T], read: Callable[[T], U], ahead: int = AHEAD) -> Iterator[tuple[T, U]]:
    """Yield ``(item, read(item))`` in order, up to ``ahead`` items being read or ready in the meantime.

    One thread reads, item after item, so that ``read`` need not stand being called twice at once; images are decoded by
    several threads within one call. What ``read`` raises is raised here, in the item's turn.
    """
    pending: deque[tuple[T, Future[U]]] = deque()
    reader = ThreadPoolExecutor(max_workers=1, thread_name_prefix="read-ahead")
    try:
        for item in items:
            pending.append((item, reader.submit(read, item)))
            if len(pending) > ahead:
                first, future = pending.popleft()
                yield first, future.result()
        while pending:
            first, future = pending.popleft()
            yield first, future.result()
    finally:
        reader.shutdown(cancel_futures=True)


class WriteBehind:
    """Does pieces of work in the background, one after the other; a bounded number of them waits.

    Once one of them fails none is done any more; its error is raised by a later call of `do`, or when the block ends.
    """

    def __init__(self, waiting: int = AHEAD) -> None:
        """Allow ``waiting`` pieces to be unfinished before `do` waits for the oldest."""
        self._waiting, self._failed = waiting, False
        self._pending: deque[Future[None]] = deque()
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="write-behind")

    def do(self, work: Callable[[], object]) -> None:
        """Have ``work`` done after everything before it."""
        self._pending.append(self._worker.submit(self._run, work))
        while len(self._pending) > self._waiting:
            self._pending.popleft().result()

    def _run(self, work: Callable[[], object]) -> None:
        if self._failed:
            return
        try:
            work()
        except BaseException:
            self._failed = True
            raise

    def __enter__(self) -> "WriteBehind":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Wait until everything is done, also when the block was interrupted."""
        self._worker.shutdown()
        while self._pending and kind is None:
            self._pending.popleft().result()
