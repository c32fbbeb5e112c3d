"""Which cell is next, what a failure blocks, and how long it will take: on made-up cells with known times."""

import json
from collections.abc import Iterable
from pathlib import Path

import pytest

from latentlab.study.cells.cell import Cell, Graph
from latentlab.study.engine.estimate import Durations, in_words
from latentlab.study.engine.schedule import Schedule

SECONDS = {"train_tokenizer": 100, "encode": 10, "train_generator": 50, "measure": 5}


def durations(folder: Path) -> Durations:
    """Return those of finished cells, one of each stage."""
    for stage, seconds in SECONDS.items():
        file = folder / "cells" / stage / "past" / "done.json"
        file.parent.mkdir(parents=True)
        file.write_text(json.dumps({"stage": stage, "sort": "", "seconds": seconds, "work": 1}))
    return Durations.of_study(folder)


def chain(number: int, steps: int = 1, measurements: int = 2) -> list[Cell]:
    """Return a training, an encoding, measurements and a generator on top."""
    config = {"optimiser": {"steps": steps, "batch_size": 1}}
    first = Cell("train_tokenizer", f"tokenizer {number}", {"config": config, "n": number})
    encoded = Cell("encode", f"encode {number}", {"images": "", "n": number}, {"tokenizer": first})
    needs = {"latents": encoded}
    measured = [
        Cell("measure", f"measure {number}.{i}", {"measurement": "", "n": [number, i]}, needs)
        for i in range(measurements)
    ]
    one_step = {"optimiser": {"steps": 1, "batch_size": 1}}
    return [
        first,
        encoded,
        *measured,
        Cell("train_generator", f"sit {number}", {"kind": "", "config": one_step}, needs),
    ]


def schedule(folder: Path, *chains: list[Cell], done: Iterable[Cell] = ()) -> Schedule:
    owners = {cell.key: number for number, cells in enumerate(chains) for cell in cells}
    graph = Graph(tuple(cell for cells in chains for cell in cells), (), owners)
    return Schedule(graph, durations(folder), {cell.key for cell in done})


def order(plan: Schedule) -> list[str]:
    """Return the titles in the order in which one worker does them."""
    done = []
    while ready := plan.ready():
        plan.done.add(ready[0].key)
        done.append(ready[0].title)
    return done


def test_long_chains_begin_first_and_one_tokenizer_is_finished_before_the_next(tmp_path: Path) -> None:
    assert order(schedule(tmp_path, chain(0), chain(1, steps=3), chain(2))) == [
        "tokenizer 1", "encode 1", "sit 1", "measure 1.0", "measure 1.1",
        "tokenizer 0", "encode 0", "sit 0", "measure 0.0", "measure 0.1",
        "tokenizer 2", "encode 2", "sit 2", "measure 2.0", "measure 2.1",
    ]  # fmt: skip


def test_a_continued_study_finishes_the_tokenizers_it_has_begun(tmp_path: Path) -> None:
    first, second = chain(0), chain(1)
    assert order(schedule(tmp_path, first, second, done=second[:3])) == [
        "sit 1", "measure 1.1",
        "tokenizer 0", "encode 0", "sit 0", "measure 0.0", "measure 0.1",
    ]  # fmt: skip


def test_a_failure_blocks_what_needs_it_and_nothing_else(tmp_path: Path) -> None:
    first, second = chain(0), chain(1)
    plan = schedule(tmp_path, first, second)
    plan.done.add(first[0].key)
    plan.give_up(first[1], "no memory")
    assert plan.failed == {first[1].key: "no memory"} and set(plan.blocked) == {cell.key for cell in first[2:]}
    assert order(plan) == ["tokenizer 1", "encode 1", "sit 1", "measure 1.0", "measure 1.1"]
    assert plan.left() == []


def test_time_left_is_the_work_shared_or_the_longest_chain(tmp_path: Path) -> None:
    """Two chains of 160 s with 10 s of measurements each: 340 s for one worker, 170 for two, and never less than 160."""
    plan = schedule(tmp_path, chain(0), chain(1))
    assert [plan.seconds_left(workers) for workers in (1, 2, 8)] == [340, 170, 160]
    plan.done.add(chain(0)[0].key)
    assert plan.seconds_left(1) == 240


def test_short_last_cells_share_a_process_up_to_a_minute(tmp_path: Path) -> None:
    """12 of 20 cells of 5 s; neither those of another tokenizer, nor what others wait for."""
    first, second = chain(0, measurements=20), chain(1)
    plan = schedule(tmp_path, first, second)
    plan.done |= {cell.key for cell in (*first[:2], *second[:2])}
    ready = plan.ready()
    measured = [cell for cell in ready if cell.title.startswith("measure 0")]
    assert plan.with_company(measured[0], [*measured, *second]) == tuple(measured[:12])
    assert plan.with_company(first[0], [first[0], *second]) == (first[0],)


def test_estimates_follow_work_sort_and_stage(tmp_path: Path) -> None:
    known = durations(tmp_path)
    tokenizer, encoded, measured, *_ = chain(0, steps=7)
    assert known.estimate(tokenizer) == 700 and known.estimate(encoded) == 10
    file = tmp_path / "cells" / "measure" / "other" / "done.json"
    file.parent.mkdir()
    file.write_text(json.dumps({"stage": "measure", "sort": "gmm", "seconds": 95, "work": 1}))
    known.note_file(file)
    slow = Cell("measure", "", {"measurement": "gmm"})
    fresh = Cell("measure", "", {"measurement": "new"})
    assert [known.estimate(cell) for cell in (measured, slow, fresh)] == [
        5,
        95,
        50,
    ]  # a new one takes the mean of the stage
    assert (
        known.known(fresh) and not known.known(Cell("decoder", "", {})) and known.estimate(Cell("decoder", "", {})) > 0
    )
    file.write_text("{")
    known.note_file(file)  # a damaged file says nothing
    assert known.estimate(slow) == 95


@pytest.mark.parametrize(("seconds", "words"), [(41.4, "41 s"), (600, "10 min"), (12000, "3 h 20 min")])
def test_durations_in_words(seconds: float, words: str) -> None:
    assert in_words(seconds) == words
