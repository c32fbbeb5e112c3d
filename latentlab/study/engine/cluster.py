"""Cells as tasks of a Ray cluster.

The folder of the study is the truth, and all machines must see it under the same path, with latentlab installed on each: a
worker that is lost costs only the cell that it was doing.
"""

import os
import signal
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from latentlab.errors import UserError
from latentlab.study.cells.process import INTERRUPTED
from latentlab.study.engine.local import Ended, Job
from latentlab.study.engine.processes import start_process, stop_processes
from latentlab.study.plan_file import Resources

_POLL_SECONDS = 0.1
_GIB = 2**30
_HANDED_ON = ("LATENTLAB_HOME", "HF_HUB_OFFLINE", "XDG_CACHE_HOME")
"""What cells on other machines must know of this process's environment."""


def do_cells(folders: Sequence[str], cwd: str, device: str, cpus: int, more: Mapping[str, str]) -> int:
    """Do cells in a process beside a worker of the cluster; return its exit status. This is what a task does.

    A task that is cancelled asks the process to stop and waits for it. Ray cancels by an interrupt, which is no exception where
    SIGINT is ignored, as in everything that a script starts in its background.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.chdir(cwd)  # image sources may be relative
    process = start_process([Path(folder) for folder in folders], device, cpus, more)
    try:
        while process.poll() is None:
            time.sleep(_POLL_SECONDS)
    except KeyboardInterrupt:
        stop_processes([process])
        return INTERRUPTED
    return process.returncode


class RayEngine:
    """Tasks of a cluster; Ray decides which machine does which.

    Attributes:
        name: for people.
    """

    name = "ray"

    def __init__(self, address: str | None = None, workers: int | None = None) -> None:
        """Connect to a cluster, or start one on this machine.

        Args:
            address: ``HOST:PORT`` or ``auto``; None for a cluster of this machine alone.
            workers: CPUs of such a cluster; None for all.

        Raises:
            UserError: Ray is not installed, or there is no cluster at the address.
        """
        self._ray = _ray()
        place = {"num_cpus": workers, "include_dashboard": False} if address is None else {"address": address}
        try:
            self._ray.init(**place, log_to_driver=False, logging_level="ERROR")
        except (ConnectionError, RuntimeError, ValueError) as error:
            where = "no Ray cluster can be started here" if address is None else f"there is no Ray cluster at {address}"
            raise UserError(f"{where}: {' '.join(str(error).split())[:200]}") from error
        self._running: dict[Any, Job] = {}

    @property
    def workers(self) -> float:
        """CPUs of the cluster."""
        return self._has("CPU")

    def _has(self, what: str) -> float:
        return float(self._ray.cluster_resources().get(what, 0))

    def check(self, wants: Resources, stage: str) -> None:
        """See `Engine`."""
        nodes = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        wanted = {key: amount for key, amount in _wanted(wants).items() if amount}
        if not any(all(node.get(key, 0) >= amount for key, amount in wanted.items()) for node in nodes):
            asked = " and ".join(_amount(key, amount) for key, amount in wanted.items())
            there = "; ".join(", ".join(_amount(key, node.get(key, 0)) for key in wanted) for node in nodes)
            raise UserError(
                f"resources.{stage} asks for {asked}, which no machine of the cluster has ({there}): change the study file"
            )

    def room(self, wants: Resources) -> bool:
        """See `Engine`; Ray queues what does not fit its machines after all."""
        taken = [_wanted(job.wants) for job in self._running.values()]
        return all(
            sum(one[key] for one in taken) + wanted <= self._has(key)
            for key, wanted in _wanted(wants).items()
            if wanted
        )

    def start(self, job: Job) -> None:
        """See `Engine`."""
        wants = _wanted(job.wants)
        options = {"num_cpus": wants["CPU"], "num_gpus": wants["GPU"], "memory": wants["memory"] or None}
        task = self._ray.remote(do_cells).options(**options, max_retries=0)
        more = {name: os.environ[name] for name in _HANDED_ON if name in os.environ}
        folders = [str(folder.resolve()) for folder in job.folders]
        self._running[task.remote(folders, os.getcwd(), job.device, job.wants.cpus, more)] = job

    def ended(self) -> list[Ended]:
        """See `Engine`."""
        if not self._running:
            return []
        over, _ = self._ray.wait(list(self._running), num_returns=len(self._running), timeout=0)
        return [self._ended(task) for task in over]

    def _ended(self, task: Any) -> Ended:
        job = self._running.pop(task)
        try:
            return Ended(job, int(self._ray.get(task)))
        except self._ray.exceptions.RayTaskError as error:  # before the process began, as where the folder is not there
            return Ended(job, 1, f"the machine could not begin: {' '.join(str(error).split())[-200:]}")
        except self._ray.exceptions.RayError as error:  # its worker or machine is gone
            return Ended(job, -9, f"the worker was lost: {' '.join(str(error).split())[:200]}")

    def stop(self) -> None:
        """See `Engine`."""
        for task in self._running:
            self._ray.cancel(task, force=False)
        if self._running:
            self._ray.wait(list(self._running), num_returns=len(self._running), timeout=None)
        self._running.clear()
        self._ray.shutdown()


def _amount(key: str, amount: float) -> str:
    """Return an amount of a resource for people."""
    return f"{amount / _GIB:.3g} GiB of memory" if key == "memory" else f"{amount:g} {key}"


def _wanted(wants: Resources) -> dict[str, float]:
    """Return what a cell takes, as Ray counts it."""
    return {"CPU": wants.cpus, "GPU": wants.gpus, "memory": (wants.memory or 0) * _GIB}


def _ray() -> Any:
    """Return the module.

    Raises:
        UserError: it is not installed.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError as error:
        raise UserError("--engine ray needs Ray: pip install latentlab[cluster]") from error
    return ray
