"""What the commands of a study print: the plan with its time, how far it is, and what failed."""

import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from latentlab.runtime import say
from latentlab.study.cells.cell import Graph
from latentlab.study.cells.process import LOG
from latentlab.study.cells.state import STATES, settled, states
from latentlab.study.engine.estimate import Durations, in_words
from latentlab.study.engine.schedule import Schedule
from latentlab.study.stages.known import STAGES


def print_plan(schedule: Schedule, workers: int) -> None:
    """Print, by stage, what is done, what is to be done and about how long it takes."""
    durations, left = schedule.durations, schedule.left()
    lines = [("stage", "cells", "to do", "each", "together", "estimate")]
    for stage in STAGES:
        every = [cell for cell in schedule.graph.cells if cell.stage == stage]
        own = [cell for cell in left if cell.stage == stage]
        if not every:
            continue
        seconds = durations.total(own)
        told = "measured" if own and durations.known(own[0]) else "guessed" if own else ""
        each = in_words(seconds / len(own)) if own else ""
        lines.append((stage, str(len(every)), str(len(own)), each, in_words(seconds) if own else "", told))
    _print_columns(lines)
    print(
        f"{len(left)} of {len(schedule.graph.cells)} cells to do, {len(schedule.graph.rows)} rows; about "
        f"{in_words(schedule.seconds_left(workers))} with {workers} worker{'s' if workers > 1 else ''}"
    )


def _print_columns(lines: Sequence[tuple[str, ...]]) -> None:
    widths = [max(len(line[place]) for line in lines) for place in range(len(lines[0]))]
    for first, *others in lines:
        cells = [text.rjust(width) for text, width in zip(others, widths[1:], strict=True)]
        print("  ".join([first.ljust(widths[0]), *cells]).rstrip())


def status_of(out: Path) -> dict[str, Any]:
    """Return how far the study in a folder is, as JSON values.

    Raises:
        UserError: it holds no study.
    """
    graph = Graph.read(out)
    found = states(graph, out, {cell.key for cell in graph.cells} - settled(graph, out))
    durations = Durations.of_study(out)
    by_stage = {
        stage: {state: counts[state] for state in STATES}
        for stage in STAGES
        if (counts := Counter(found[cell.key].state for cell in graph.cells if cell.stage == stage))
    }
    left = [cell for cell in graph.cells if found[cell.key].state in ("running", "waiting")]
    rows = sum(all(found[cell.key].state == "done" for cell in row.cells.values()) for row in graph.rows)
    return {
        "title": graph.facts["title"],
        "cells": len(graph.cells),
        "done": sum(state.state == "done" for state in found.values()),
        "rows": len(graph.rows),
        "rows_done": rows,
        "seconds_of_work_left": round(durations.total(left)),
        "stages": by_stage,
        "running": [cell.title for cell in graph.cells if found[cell.key].state == "running"],
        "failed": [
            {"title": cell.title, "reason": found[cell.key].reason, "log": str(cell.folder(out) / LOG)}
            for cell in graph.cells
            if found[cell.key].state == "failed"
        ],
    }


def print_status(told: dict[str, Any]) -> None:
    """Print what `status_of` returned."""
    print(f"{told['title']}: {told['done']} of {told['cells']} cells, {told['rows_done']} of {told['rows']} rows done")
    lines = [("stage", *STATES)]
    lines += [(stage, *(str(counts[state] or "") for state in STATES)) for stage, counts in told["stages"].items()]
    _print_columns(lines)
    for title in told["running"]:
        print(f"running: {title}")
    for one in told["failed"]:
        print(f"failed: {one['title']}: {one['reason']} (log: {one['log']})")
    if told["seconds_of_work_left"]:
        print(f"about {in_words(told['seconds_of_work_left'])} of work left for one worker")


def print_failures(schedule: Schedule, out: Path) -> None:
    """Say on stderr which cells failed, why, where their logs are, and how much they block."""
    failed = [cell for cell in schedule.graph.cells if cell.key in schedule.failed]
    for cell in failed:
        say(f"failed: {cell.title}: {schedule.failed[cell.key]} (log: {cell.folder(out) / LOG})")
    if schedule.blocked:
        say(f"{len(schedule.blocked)} cells need them and were not done; the same command tries again")
    sys.stderr.flush()
