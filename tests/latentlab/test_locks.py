"""Two runs in one folder: the second says that it waits, and goes on when the first is done."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from latentlab import locks
from latentlab.locks import alone
from latentlab.ranks import Ranks


def test_a_second_run_waits_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(locks, "_SILENT_SECONDS", 0.1)
    order: list[str] = []

    def second() -> None:
        with alone(tmp_path, Ranks()):
            order.append("second")

    with ThreadPoolExecutor() as pool:
        with alone(tmp_path, Ranks()):
            waiting = pool.submit(second)
            with pytest.raises(TimeoutError):
                waiting.result(timeout=0.5)
            order.append("first")
        waiting.result(timeout=30)
    assert order == ["first", "second"]
    assert capsys.readouterr().err == f"waiting: another run is at work in {tmp_path}\n"


def test_a_free_folder_is_taken_without_a_word(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for _ in range(2):
        with alone(tmp_path, Ranks()):
            pass
    assert capsys.readouterr().err == ""
