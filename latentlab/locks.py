"""One run at a time in a folder."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from latentlab.ranks import Ranks
from latentlab.runtime import say

_SILENT_SECONDS = 2.0


@contextmanager
def alone(folder: Path, ranks: Ranks) -> Iterator[None]:
    """Keep other runs out of ``folder``, which must exist: a second one says that it waits, and finds the work done."""
    with ExitStack() as held:
        if ranks.first:
            _take(folder, held)
        ranks.wait()
        yield


def _take(folder: Path, held: ExitStack) -> None:
    from filelock import Timeout
    from huggingface_hub.utils import WeakFileLock

    lock = folder / ".lock"
    try:
        held.enter_context(WeakFileLock(lock, timeout=_SILENT_SECONDS))
    except Timeout:
        say(f"waiting: another run is at work in {folder}")
        held.enter_context(WeakFileLock(lock))
