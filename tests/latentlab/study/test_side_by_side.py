"""Tasks in processes: order, failures, a process that dies, threads."""

import os
import time
from functools import partial

import pytest

from latentlab.study.training.side_by_side import Outcome, run_side_by_side

SQUARE = partial(pow, 3, 2)
FAILING = partial(exec, "raise ValueError('two\\nlines')")
DYING = partial(os._exit, 9)
THREADS = partial(os.getenv, "OMP_NUM_THREADS")
"""Functions that a fresh process can import."""


@pytest.mark.parametrize("jobs", [1, 2])
def test_outcomes_keep_the_order_and_failures_cost_no_other(jobs: int) -> None:
    seen: dict[int, Outcome] = {}
    tasks = [partial(time.sleep, 0.3), FAILING, SQUARE]
    outcomes = run_side_by_side(tasks, jobs, "tasks", seen.__setitem__)
    assert [outcome.value for outcome in outcomes] == [None, None, 9]
    assert outcomes[1].error == "ValueError: two lines"
    assert outcomes[0].error is None
    assert seen == dict(enumerate(outcomes))


def test_processes_share_the_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("latentlab.study.training.side_by_side.usable_cpus", lambda: 6)
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    outcomes = run_side_by_side([THREADS, THREADS], 2, "tasks")
    assert [outcome.value for outcome in outcomes] == ["3", "3"]
    assert os.environ["OMP_NUM_THREADS"] == "5"


def test_a_process_that_dies_is_an_error() -> None:
    outcomes = run_side_by_side([DYING, DYING], 2, "tasks")
    assert all(outcome.error and "terminated abruptly" in outcome.error for outcome in outcomes)
