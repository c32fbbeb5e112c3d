"""Where and how a command computes: device, threads, and progress that is shown only to somebody watching."""

import ctypes
import math
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import torch

from latentlab.errors import UserError
from latentlab.files import write_text

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
"""Options of glibc's ``mallopt`` (malloc.h): unused memory at the end of the heap that is kept; smallest block outside it."""

_KEPT_BYTES = 512 << 20

_CPU_QUOTA = Path("/sys/fs/cgroup/cpu.max")
_MEMORY_LIMIT = Path("/sys/fs/cgroup/memory.max")


def choose_device(name: str = "auto") -> torch.device:
    """Return the device called ``name``: ``auto`` (CUDA, else Apple's MPS, else CPU), ``cpu``, ``cuda``, ``cuda:I`` or ``mps``.

    ``cuda`` is the GPU that torchrun gives this process, else the first one; it always has an index, without which torch does
    not take it as the current device.

    Raises:
        UserError: no such device, or this machine does not have it.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    if name == "cuda" and torch.cuda.is_available():
        name = f"cuda:{os.environ.get('LOCAL_RANK', 0)}"
    kind, _, number = name.partition(":")
    if kind not in ("cpu", "cuda", "mps") or (number and (kind != "cuda" or not number.isdecimal())):
        raise UserError(f"unknown device '{name}'. Available: {', '.join(['auto', *available_devices()])}")
    present = [device for device in available_devices() if device.partition(":")[0] == kind]
    if not present or (number and name not in present):
        raise UserError(f"this machine has no device '{name}'. Available: {', '.join(['auto', *available_devices()])}")
    return torch.device(name)


def available_devices() -> list[str]:
    """Return the names `choose_device` accepts on this machine, ``auto`` aside."""
    cuda = [f"cuda:{i}" for i in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    return ["cpu", *cuda, *(["mps"] if torch.backends.mps.is_available() else [])]


def whole_float32() -> AbstractContextManager[None]:
    """Let convolutions on a GPU keep float32 for as long as the block lasts, by kernels that are not chosen by timing.

    By default they would round their inputs to 10 bits (TF32).
    """
    flags: AbstractContextManager[None] = torch.backends.cudnn.flags(
        enabled=True, benchmark=False, deterministic=True, allow_tf32=False
    )
    return flags


def quick_bfloat16(device: torch.device) -> bool:
    """Return whether the device has instructions for bfloat16; a CPU without them is about ten times slower than in float32."""
    if device.type != "cpu":
        return True
    return any(torch.cpu.get_capabilities().get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))


def usable_cpus() -> int:
    """Return how many CPUs this process may use: its affinity, cut by the container's quota.

    Without the quota a container limited to 2 CPUs on a large host would run one thread per CPU of the host, which is
    many times slower than 2.
    """
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = _CPU_QUOTA.read_text().split()
        return max(1, min(affinity, math.ceil(int(quota) / int(period))))
    except (OSError, ValueError):  # no cgroup, or "max": no quota
        return affinity


def usable_memory() -> int:
    """Return how many bytes of memory this process may use: the machine's, cut by the container's limit."""
    import psutil

    total = psutil.virtual_memory().total
    try:
        return min(total, int(_MEMORY_LIMIT.read_text()))
    except (OSError, ValueError):  # no cgroup, or "max": no limit
        return total


def peak_memory(device: torch.device) -> int:
    """Return the most bytes in use so far: on a GPU of its tensors, else of the whole process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def prepare_threads() -> int:
    """Let torch use the CPUs this process really has, unless ``OMP_NUM_THREADS`` says otherwise; return the number.

    The memory of large arrays is kept from then on (`keep_freed_memory`).
    """
    keep_freed_memory()
    if not os.environ.get("OMP_NUM_THREADS"):
        torch.set_num_threads(usable_cpus())
    return torch.get_num_threads()


def keep_freed_memory() -> bool:
    """Let this process use the memory of freed arrays again instead of returning it; return whether that could be arranged.

    glibc gives blocks above 32 MB back to the system at once, and every page of the next one is fetched and zeroed anew: the
    activations of a decoder at 256x256 pixels cost a third of its time that way. Other C libraries are left as they are.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    options = (_M_MMAP_THRESHOLD, _M_TRIM_THRESHOLD)
    arranged = [mallopt(option, _KEPT_BYTES) for option in options]  # both of them, whatever becomes of one
    return all(arranged)


def make_writable(folder: Path) -> None:
    """Make ``folder`` and check that it can be written to, before hours of work depend on it.

    Raises:
        UserError: a file is in the way, or the folder is not writable.
    """
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file: choose another folder")
    write_text(folder / ".writable", "")
    (folder / ".writable").unlink(missing_ok=True)  # another rank may have been quicker


def say(message: str) -> None:
    """Write one line of news to stderr."""
    print(message, file=sys.stderr, flush=True)


@contextmanager
def progress(description: str, total: int, done: int = 0) -> Iterator[Callable[[int], None]]:
    """Show a bar with the time left on stderr; yield the function that notes how many more are done.

    Shows nothing when stderr is not a terminal.
    """
    if not sys.stderr.isatty():
        yield lambda amount: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(description, total=total, completed=done)
        yield lambda amount: bar.advance(task, amount)
