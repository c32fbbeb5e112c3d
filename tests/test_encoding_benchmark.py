"""The encoding benchmark: its peer does the same work without a background, and everything is put back afterwards."""

import io
import runpy
import threading
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from latentlab import encoding
from latentlab.prefetching import WriteBehind, read_ahead

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return runpy.run_path(str(BENCHMARKS / "encoding.py"))


def test_photographs_are_as_large_as_said(benchmark: dict[str, Any], tmp_path: Path) -> None:
    benchmark["write_photographs"](tmp_path, 2)
    first, second = (file.read_bytes() for file in sorted(tmp_path.iterdir()))
    assert Image.open(io.BytesIO(first)).size == Image.open(io.BytesIO(second)).size == benchmark["SIZE"]
    assert first != second and len(first) > 20_000  # with detail: a flat picture would be read too quickly


def test_every_way_takes_the_time_of_the_stand_in(benchmark: dict[str, Any], tmp_path: Path) -> None:
    benchmark["write_photographs"](tmp_path, 8)
    seconds = max(benchmark["STAND_IN_SECONDS"])
    for way in ("overlapped", "in_turns", "encoding_alone"):
        assert benchmark[way](tmp_path, 8, benchmark["StandIn"](seconds)) >= 8 * seconds
    assert benchmark["reading"](tmp_path, 8, benchmark["StandIn"](seconds)) > 0
    assert encoding.read_ahead is read_ahead and encoding.WriteBehind is WriteBehind


def test_in_turns_nothing_happens_in_the_background(benchmark: dict[str, Any]) -> None:
    read: list[int] = []
    for item, _ in benchmark["_not_ahead"](range(5), read.append):
        assert read == list(range(item + 1))
    with benchmark["_Immediately"](2) as writing:
        threads: list[threading.Thread] = []
        writing.do(lambda: threads.append(threading.current_thread()))
        assert threads == [threading.main_thread()]
