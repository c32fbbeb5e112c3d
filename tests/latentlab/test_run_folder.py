"""The folder of a training run: one configuration each, metrics that survive a kill, signals that wait for the step."""

import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from latentlab.checkpoints import save_checkpoint
from latentlab.errors import UserError
from latentlab.run_folder import RunFolder, stop_signal, write_grid


def test_a_folder_belongs_to_one_configuration(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    folder.prepare("a: 1\n")
    folder.prepare("a: 1\n")
    with pytest.raises(UserError, match=r"another configuration \(.*\): choose another --out"):
        folder.prepare("a: 2\n")
    assert (tmp_path / "run" / "config.yaml").read_text() == "a: 1\n"


def test_a_folder_belongs_to_its_data(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    folder.prepare("a: 1\n")  # and no note, as in folders of earlier versions
    for _ in range(2):
        folder.note_data({"data.train": "first"})
    with pytest.raises(
        UserError, match=r"data that have changed since \(data.train is first there, other here\)"
    ) as told:
        folder.note_data({"data.train": "other"})
    assert "\n" not in str(told.value)
    folder.note_data({"data.train": "first"})


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full, a device that is always full")
def test_a_full_disk_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").symlink_to("/dev/full")
    with pytest.raises(UserError, match=r"cannot write .*metrics\.jsonl: No space left on device; free space"):
        RunFolder(tmp_path).append(1, {"loss": 1.0})


def test_what_an_earlier_version_did_not_note_is_noted(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.note_data({})
    folder.note_data({"data.store": "a"})
    with pytest.raises(UserError, match=r"data that have changed since \(data.store is a there, b here\)"):
        folder.note_data({"data.store": "b"})


def test_the_newest_checkpoint_is_named(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    assert folder.newest() is None
    assert folder.last_good() == "there is no checkpoint yet"
    for step in (5, 40):
        save_checkpoint(folder.checkpoints, step, {"x": torch.zeros(1)})
    assert folder.newest() == tmp_path / "run" / "checkpoints" / "step_00000040.safetensors"
    assert folder.last_good() == f"the last good checkpoint is {folder.newest()}"


def test_metrics_come_back_as_written(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    assert folder.metrics() == []
    folder.append(1, {"loss": 0.1 + 0.2, "name": "é"})
    folder.append(2, {"loss": float("inf")})
    assert folder.metrics() == [{"step": 1, "loss": 0.1 + 0.2, "name": "é"}, {"step": 2, "loss": float("inf")}]


@pytest.mark.parametrize("cut", ['{"step": 3, "lo', "", "3", '{"loss": 1}', '{"step": null}'])
def test_steps_taken_again_and_a_cut_line_are_forgotten(tmp_path: Path, cut: str) -> None:
    folder = RunFolder(tmp_path)
    folder.forget_after(0)
    assert not (tmp_path / "metrics.jsonl").exists()
    for step in (1, 2, 3):
        folder.append(step, {"loss": step / 3})
    kept = (tmp_path / "metrics.jsonl").read_text().splitlines(keepends=True)[:2]
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write(cut)
    folder.forget_after(2)
    assert (tmp_path / "metrics.jsonl").read_text() == "".join(kept)
    folder.append(3, {"loss": 1.0})
    assert [line["step"] for line in folder.metrics()] == [1, 2, 3]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_first_signal_is_a_flag_and_the_second_an_interrupt(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with pytest.raises(KeyboardInterrupt), stop_signal() as stop:
        assert not stop
        os.kill(os.getpid(), number)
        assert stop
        os.kill(os.getpid(), number)
    assert signal.getsignal(number) is before


def test_a_grid_keeps_order_and_range(tmp_path: Path) -> None:
    values = torch.tensor([-1.0, 0.0, 1.0, 3.0])
    write_grid(tmp_path / "new" / "grid.png", values.view(4, 1, 1, 1).expand(4, 3, 8, 8), columns=2)
    picture = np.asarray(Image.open(tmp_path / "new" / "grid.png"))
    assert picture.shape == (2 * 10 + 2, 2 * 10 + 2, 3)  # two pixels of border around every image
    assert [picture[y, x].tolist() for y in (6, 16) for x in (6, 16)] == [[v] * 3 for v in (0, 128, 255, 255)]
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["grid.png"]
