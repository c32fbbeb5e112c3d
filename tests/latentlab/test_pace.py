"""Rates and times left, in words, and when they are shown."""

import pytest

from latentlab import pace
from latentlab.pace import Pace, duration, shown_pace


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.04, "0.0 s"),
        (59.4, "59.4 s"),
        (60, "1 min 0 s"),
        (250.2, "4 min 10 s"),
        (3599.6, "1 h 0 min"),
        (7500, "2 h 5 min"),
    ],
)
def test_durations_in_words(seconds: float, words: str) -> None:
    assert duration(seconds) == words


def test_rate_and_time_left_count_this_run_only(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    monkeypatch.setattr(pace.time, "perf_counter", lambda: clock[0])
    running = Pace(total=1000, done=400)
    assert running.text("images").endswith("unknown time left")
    clock[0], running.done = 120.0, 600
    assert running.text("images") == "600 of 1,000 images, 10.0 images/s, 40.0 s left"
    assert running.summary("images") == "200 images in 20.0 s, 10.0 images/s"
    clock[0], running.done = 2100.0, 653
    assert "653 of 1,000 images, 0.13 images/s, " in running.text("images")  # not 0.1, which says little


def test_a_log_gets_a_line_now_and_then_and_a_summary(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = [0.0]
    monkeypatch.setattr(pace.time, "perf_counter", lambda: clock[0])
    with shown_pace("encoding toys", "images", total=100) as advance:
        for _ in range(10):
            clock[0] += 10
            advance(10)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "encoding toys: 30 of 100 images, 1.0 images/s, 1 min 10 s left"
    assert len(lines) == 4 and lines[-1] == "encoding toys: 100 images in 1 min 40 s, 1.0 images/s"


def test_quiet_and_failed_jobs_say_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with shown_pace("encoding", "images", total=1, quiet=True) as advance:
        advance(1)
    with pytest.raises(ValueError), shown_pace("encoding", "images", total=1) as advance:
        raise ValueError
    assert capsys.readouterr().err == ""
