"""Trackers: what was logged can be read back, an interrupted run is one curve, and what is missing is named."""

import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from latentlab.errors import UserError
from mind.tracking import Trackers


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "grid.png"
    Image.fromarray(np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)).save(path)
    return path


def test_tensorboard_shows_every_step_once_after_a_kill(tmp_path: Path, picture: Path) -> None:
    accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator", reason="tensorboard is not installed"
    )
    killed = Trackers(["tensorboard"], tmp_path, {"seed": 3})
    for step in (1, 2, 3):
        killed.log(step, {"loss": 10.0 + step, "rate": 0.5})
    killed.close()
    resumed = Trackers(["tensorboard"], tmp_path, {"seed": 3}, step=2)
    for step in (3, 4):
        resumed.log(step, {"loss": 20.0 + step, "rate": 0.5})
    resumed.image(4, "samples", picture)
    resumed.close()

    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(e.step, e.value) for e in events.Scalars("loss")] == [(1, 11.0), (2, 12.0), (3, 23.0), (4, 24.0)]
    assert [e.value for e in events.Scalars("rate")] == [0.5] * 4
    (image,) = events.Images("samples")
    (tmp_path / "read.png").write_bytes(image.encoded_image_string)
    assert image.step == 4
    assert np.array_equal(np.asarray(Image.open(tmp_path / "read.png")), np.asarray(Image.open(picture)))


def test_wandb_offline_keeps_one_run_for_a_folder(
    tmp_path: Path, picture: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb", reason="wandb is not installed")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    for step in (1, 2):
        trackers = Trackers(["wandb"], tmp_path, {"seed": 3})
        trackers.log(step, {"loss": 1.0 / step})
        trackers.image(step, "samples", picture)
        trackers.close()
    files = list(tmp_path.glob("wandb/offline-run-*/*.wandb"))
    assert {file.stem for file in files} == {f"run-{(tmp_path / 'wandb_id.txt').read_text()}"}


def test_no_trackers_write_nothing(tmp_path: Path, picture: Path) -> None:
    before = sorted(tmp_path.iterdir())
    trackers = Trackers([], tmp_path, {})
    trackers.log(1, {"loss": 1.0})
    trackers.image(1, "samples", picture)
    trackers.close()
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("name", ["tensorboard", "wandb"])
def test_a_missing_package_is_named(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UserError, match=rf"{name} is not installed: pip install 'latentlab\[track\]'"):
        Trackers([name], tmp_path, {})


def test_an_unknown_tracker_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"unknown tracker 'tensorbord'.* Did you mean tensorboard"):
        Trackers(["tensorbord"], tmp_path, {})
